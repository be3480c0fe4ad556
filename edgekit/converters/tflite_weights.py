"""4-bit weights by the algorithm that serves this model best."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.converters.fidelity import probe_inputs, worst_sqnr_db
from edgekit.converters.tflite_quantizer import Recipe, quantized
from edgekit.converters.tflite_ranges import answers
from edgekit.converters.tflite_static import MAX_SCORED

if TYPE_CHECKING:
    from edgekit.converters.base import ConversionRequest

__all__ = ["best_four_bits"]

_ALGORITHMS = {"min_max_uniform_quantize": "minmax", "MSE": "mse", "OCTAV": "octav"}
"""ai-edge-quantizer's name of each way to find the scale of a channel; the optimal clipping of Sakr et al. 2022
(OCTAV) gives up the largest weights for finer steps."""


def best_four_bits(content: bytes, recipe: Recipe, request: ConversionRequest) -> tuple[bytes, tuple[str, ...]]:
    """The file with the scales that leave the most SQNR on calibration (or made) inputs, and a note of each."""
    samples = list(request.calibration[:MAX_SCORED]) or list(probe_inputs(request.program))
    expected = answers(content, samples, request.threads)
    made = {told: quantized(content, replace(recipe, weights=algorithm)) for algorithm, told in _ALGORITHMS.items()}
    scores = {told: worst_sqnr_db(expected, answers(file, samples, request.threads)) for told, file in made.items()}
    best = max(scores, key=lambda told: scores[told])
    listed = ", ".join(f"{told} {score:.1f}" for told, score in scores.items())
    note = f"scales of 4-bit weights by {best}, one a channel; dB SQNR tried: {listed}"
    return made[best], (note, "depthwise and transposed convolutions have 8-bit weights")
