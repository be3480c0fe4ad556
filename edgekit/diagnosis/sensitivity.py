"""Layers ranked by what quantizing them does to the model's outputs, from the errors they were seen to add."""

from __future__ import annotations

from edgekit.diagnosis.examination import Examination
from edgekit.diagnosis.subject import lowest_sqnr
from edgekit.diagnosis.values import LayerError, Sensitivity

__all__ = ["quantized_layers", "rank"]

EXACT_DB = 200.0


def quantized_layers(examination: Examination) -> tuple[LayerError, ...]:
    """Layers that add an error and could be kept in float, in graph order."""
    calls = {node.name for node in examination.program_nodes if node.op == "call_function"}
    return tuple(
        layer for layer in examination.diagnosis.layers if layer.node in calls and layer.local_sqnr_db is not None
    )


def rank(examination: Examination) -> tuple[Sensitivity, ...]:
    """Every such layer, the one whose absence would win most first.

    The errors of the file's own layers, as its runtime computed them, are replayed in PyTorch: one alone, and all but
    one. Nothing is converted for it.
    """
    now = lowest_sqnr(examination.diagnosis.outputs)
    now = EXACT_DB if now is None else now
    found = [_sensitivity(examination, layer, now) for layer in quantized_layers(examination)]
    return tuple(sorted(found, key=lambda item: (-(item.gain_db or 0.0), item.alone_sqnr_db or 0.0)))


def _sensitivity(examination: Examination, layer: LayerError, now: float) -> Sensitivity:
    piece = examination.pieces[layer.node]
    told = examination.pieces.layer(layer.node)
    return Sensitivity(
        node=layer.node,
        op=" + ".join(examination.pieces.ops(layer.node)),
        module=told.module,
        alone_sqnr_db=layer.alone_sqnr_db,
        without_sqnr_db=layer.without_sqnr_db,
        gain_db=None if layer.without_sqnr_db is None else layer.without_sqnr_db - now,
        macs=piece.macs,
        weight_values=piece.weight_values,
    )
