"""One artifact examined: every layer's error against PyTorch, how much is its own, and what it does to the outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact import Artifact, Format
from edgekit.converters.base import QuantizationOptions
from edgekit.converters.fidelity import compare, reference_outputs, worst_sqnr_db
from edgekit.converters.host_runtimes import runtime_name
from edgekit.diagnosis.breaking import first_break, floor_of
from edgekit.diagnosis.pieces import Pieces, op_name
from edgekit.diagnosis.probing import Probe, probe_file
from edgekit.diagnosis.replay import Replay
from edgekit.diagnosis.subject import Subject, lowest_sqnr
from edgekit.diagnosis.sums import LayerSums, decibels, integer_range
from edgekit.diagnosis.values import ArtifactDiagnosis, LayerError
from edgekit.diagnosis.wire import ProbeRequest, Tap

if TYPE_CHECKING:
    from torch.fx import Node

__all__ = ["Examination", "examine", "quantization_of"]

_CHANNELS_FIRST = ("conv", "batch_norm", "group_norm", "instance_norm", "pool", "pixel", "upsample", "interpolate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What is known of one artifact; the errors of its layers can be replayed."""

    artifact: Artifact
    probe: Probe
    pieces: Pieces
    diagnosis: ArtifactDiagnosis
    program_nodes: Sequence[Node]
    effects: Mapping[str, tuple[float, float]]
    """Layer to (SQNR of the worst output were its error the only one, were it the only one missing), dB."""

    def nodes_of(self, layers: Iterable[str]) -> tuple[str, ...]:
        """The nodes of these layers that a rule can be for: they compute floats. An input of the model has none."""
        known = {node.name for node in self.program_nodes if node.op == "call_function" and _is_float(node)}
        names = [name for layer in layers for name in self.pieces[layer].nodes]
        return tuple(name for name in dict.fromkeys(names) if name in known)


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return bool(getattr(value, "is_floating_point", lambda: False)())


def quantization_of(artifact: Artifact) -> QuantizationOptions:
    """The options an artifact was made with, from its passport."""
    passport = artifact.passport
    facts = passport.calibration
    io_dtype = "float32" if passport.inputs and passport.inputs[0].dtype.startswith("float") else "int8"
    options: dict[str, object] = {"io_dtype": io_dtype}
    if facts is not None and facts.rule != "trained":
        options |= {"ranges": facts.rule, "bias_correction": facts.bias_correction, "rules": facts.rules}
    return QuantizationOptions.model_validate(options)


def examine(
    subject: Subject,
    artifact: Artifact,
    float_file: Artifact | None,
    *,
    effects: bool = True,
    for_device: bool = False,
) -> Examination:
    """The artifact, layer by layer, on the subject's samples. `float_file` is the float file of its format.

    `effects` adds what each layer's error does to the outputs, which takes two runs of the model a layer and sample.
    `for_device` leaves out tensors that a device cannot give back.
    """
    batch = int(subject.samples[0][0].shape[0]) if for_device else None
    probe = _probed(subject, artifact, float_file, batch)
    pieces = Pieces(subject.program, [tap.node for tap in probe.taps])
    replay = Replay(subject.program)
    sums = {tap.node: _sums(tap, pieces, subject) for tap in probe.taps}
    expected = reference_outputs(subject.program, subject.samples)
    effects = effects and _is_worth_it(artifact, expected, probe.outputs(len(subject.samples)))
    effect = _Effects(list(sums), expected) if effects else None
    for index, sample in enumerate(subject.samples):
        held = _with_inputs(probe.held(index), artifact, subject, sample)
        reference = replay.reference(sample, held.keys())
        own = replay.forced(sample, held)
        for name in sums:
            sums[name].add(reference[name], held[name], own[name])
        if effect is not None:
            effect.add(replay, sample, own)
    effects_found = effect.found() if effect is not None else {}
    layers = _layer_errors(probe, pieces, sums, effects_found)
    return Examination(
        artifact=artifact,
        probe=probe,
        pieces=pieces,
        diagnosis=_diagnosis(subject, artifact, probe, layers, expected),
        program_nodes=tuple(subject.program.graph.nodes),
        effects=effects_found,
    )


def _is_worth_it(artifact: Artifact, expected: list[list[np.ndarray]], found: list[list[np.ndarray]]) -> bool:
    """Whether to ask what each layer does to the outputs: not of a float file whose outputs are right."""
    scheme = artifact.passport.scheme
    return scheme is None or not scheme.is_float or worst_sqnr_db(expected, found) < floor_of(scheme)


def _probed(subject: Subject, artifact: Artifact, float_file: Artifact | None, batch: int | None) -> Probe:
    passport = artifact.passport
    again = passport.format is Format.EXECUTORCH and passport.scheme is not None and passport.scheme.is_static
    trained = passport.calibration is not None and passport.calibration.rule == "trained"
    request = ProbeRequest(
        path=str(artifact.path.resolve()),
        format=passport.format,
        scheme=passport.scheme,
        float_path=str(float_file.path.resolve()) if float_file is not None else None,
        sha256=subject.sha256,
        backend=passport.backend or passport.format.value,
        quantization=quantization_of(artifact),
        is_trained=trained,
        batch=batch,
        has_calibration=again,
    )
    calibration = subject.calibration_of(artifact) if again else ()
    return probe_file(artifact, request, subject.program_path, subject.samples, calibration, subject.work)


def _with_inputs(
    held: dict[str, np.ndarray], artifact: Artifact, subject: Subject, sample: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """`held`, and the model's inputs as the file takes them, where it takes integers."""
    from edgekit.benchmarks.inputs import dequantize, quantize

    names = subject.program.graph_signature.user_inputs
    for name, spec, array in zip(names, artifact.passport.inputs, sample, strict=False):
        is_float = np.issubdtype(array.dtype, np.floating)
        if is_float and spec.quantization is not None and np.dtype(spec.dtype).kind in "iu":
            held[str(name)] = dequantize(quantize(array, spec.quantization, spec.dtype), spec.quantization)
    return held


def _sums(tap: Tap, pieces: Pieces, subject: Subject) -> LayerSums:
    limits = integer_range(tap.dtype, tap.quantization)
    step = tap.quantization.scale[0] if tap.quantization is not None and limits is not None else 0.0
    ops = {node.name: op_name(node) for node in subject.program.graph.nodes}
    inside = [ops[name] for name in pieces[tap.node].nodes]
    first = len(tap.shape) >= 4 or any(word in op for op in inside for word in _CHANNELS_FIRST)
    return LayerSums(limits=limits, step=step, channel_axis=1 if first else -1)


class _Effects:
    """What each layer's error does to the outputs: sums over samples of the worst output's SQNR."""

    def __init__(self, names: Sequence[str], expected: Sequence[Sequence[np.ndarray]]) -> None:
        self._names = list(names)
        self._expected = [list(sample) for sample in expected]
        self._alone: dict[str, list[list[np.ndarray]]] = {name: [] for name in names}
        self._without: dict[str, list[list[np.ndarray]]] = {name: [] for name in names}

    def add(self, replay: Replay, sample: Sequence[np.ndarray], own: Mapping[str, np.ndarray]) -> None:
        everything = replay.replayed(sample, own)
        for name in self._names:
            if not own[name].any():  # a view, a pooling of integers: nothing to replay
                self._alone[name].append(self._expected[len(self._alone[name])])
                self._without[name].append(everything)
                continue
            self._alone[name].append(replay.replayed(sample, {name: own[name]}))
            rest = {other: error for other, error in own.items() if other != name}
            self._without[name].append(replay.replayed(sample, rest))

    def found(self) -> dict[str, tuple[float, float]]:
        return {
            name: (
                worst_sqnr_db(self._expected, self._alone[name]),
                worst_sqnr_db(self._expected, self._without[name]),
            )
            for name in self._names
        }


def _layer_errors(
    probe: Probe, pieces: Pieces, sums: Mapping[str, LayerSums], effects: Mapping[str, tuple[float, float]]
) -> tuple[LayerError, ...]:
    return tuple(_layer_error(tap, pieces, sums, effects.get(tap.node)) for tap in probe.taps)


def _layer_error(
    tap: Tap, pieces: Pieces, sums: Mapping[str, LayerSums], effect: tuple[float, float] | None
) -> LayerError:
    s, piece = sums[tap.node], pieces[tap.node]
    inputs = [decibels(sums[name].signal, sums[name].noise) for name in piece.reads if name in sums]
    dead, channels = s.channels()
    norms = math.sqrt(s.signal * s.held)
    return LayerError(
        node=tap.node,
        piece=piece.nodes,
        reads=piece.reads,
        tensor=tap.tensor,
        dtype=tap.dtype,
        sqnr_db=decibels(s.signal, s.noise),
        exact=s.is_equal,
        cosine=s.product / norms if norms > 0 else None,
        max_abs_error=s.largest,
        reference_rms=math.sqrt(s.signal / s.count) if s.count else 0.0,
        non_finite=s.non_finite,
        local_sqnr_db=decibels(s.signal, s.own),
        input_sqnr_db=min((db for db in inputs if db is not None), default=None),
        file_range=s.limits,
        seen_range=(s.low, s.high),
        clipped=s.clipped / s.count if s.limits and s.count else None,
        saturated=s.saturated / s.count if s.limits and s.count else None,
        dead_channels=dead,
        channels=channels,
        alone_sqnr_db=effect[0] if effect else None,
        without_sqnr_db=effect[1] if effect else None,
    )


def _diagnosis(
    subject: Subject,
    artifact: Artifact,
    probe: Probe,
    layers: tuple[LayerError, ...],
    expected: list[list[np.ndarray]],
) -> ArtifactDiagnosis:
    passport = artifact.passport
    outputs = compare(
        expected,
        probe.outputs(len(subject.samples)),
        names=[spec.name for spec in passport.outputs],
        source="evaluation",
        runtime=runtime_name(passport.format),
    )
    broken, reason = first_break(layers, passport.scheme, lowest_sqnr(outputs))
    return ArtifactDiagnosis(
        name=passport.name,
        path=str(artifact.path),
        format=passport.format,
        scheme=passport.scheme,
        backend=passport.backend,
        size_bytes=passport.size_bytes,
        outputs=outputs,
        layers=layers,
        first_break=broken,
        reason=reason,
        notes=_notes(probe),
    )


def _notes(probe: Probe) -> tuple[str, ...]:
    answer = probe.answer
    if answer.is_same:
        return ()
    if answer.largest_change < 1e-5:  # float sums in another order, where one more value is kept
        return ()
    return (
        f"with its layers looked at, the file's outputs differ by {answer.largest_change:.2g} of their range, so that "
        "a layer may differ from what it is without",
    )
