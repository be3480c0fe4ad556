"""Which backend writes which scheme: the one table, which `check`, `convert`, `edgekit converters` and the docs read.

Every supported pair is converted, run in its runtime and judged by tests/contract/test_converter.py, so that a pair
stands here as supported only while that is so.
"""

from __future__ import annotations

from edgekit.artifact import Scheme
from edgekit.converters.base import Capability

__all__ = ["TABLE", "capabilities_of"]


def _yes(note: str) -> tuple[bool, str, str | None]:
    return True, note, None


def _no(why: str, nearest: str) -> tuple[bool, str, str | None]:
    return False, why, nearest


TABLE: dict[str, dict[Scheme, tuple[bool, str, str | None]]] = {
    "tflite": {
        Scheme.FP32: _yes("float weights and activations"),
        Scheme.FP16: _yes("float16 weights, widened when the file is loaded; float32 arithmetic, inputs and outputs"),
        Scheme.DYNAMIC_W8: _yes("int8 weights, activations quantized on the fly, float inputs and outputs"),
        Scheme.WEIGHT_W8: _yes("int8 weights, dequantized before float arithmetic: smaller, not faster"),
        Scheme.WEIGHT_W4: _yes("4-bit weights in linear and 2-D convolution layers, 8-bit in others; float arithmetic"),
        Scheme.STATIC_W8A8: _yes("full integer; one weight scale per channel; int8 or float32 inputs and outputs"),
        Scheme.STATIC_W8A16: _yes("int8 weights, one scale per channel; int16 activations"),
    },
    "executorch": {
        Scheme.FP32: _yes("float, XNNPACK delegate"),
        Scheme.FP16: _yes("float16 weights and arithmetic in XNNPACK; float32 inputs and outputs"),
        Scheme.DYNAMIC_W8: _yes("int8 weights, one scale per channel; linear and 2-D convolutions; float in and out"),
        Scheme.WEIGHT_W8: _no("executorch's XNNPACK takes int8 weights with int8 activations only", "dynamic_w8"),
        Scheme.WEIGHT_W4: _no("executorch's XNNPACK takes 4-bit weights with int8 activations only", "dynamic_w8"),
        Scheme.STATIC_W8A8: _yes("PT2E; int8 weights, one scale per channel; int8 activations; float in and out"),
        Scheme.STATIC_W8A16: _no("XNNPACK has no int16 activations", "static_w8a16 in tflite"),
    },
    "onnx": {
        Scheme.FP32: _yes("float, opset 20"),
        Scheme.FP16: _yes("float16 weights, widened when the file is loaded: half the size, arithmetic in float32"),
        Scheme.DYNAMIC_W8: _yes("int8 weights; matrix products, convolutions of one group and LSTMs in integers"),
        Scheme.WEIGHT_W8: _yes("int8 weights, one scale per channel, float arithmetic: smaller, not faster"),
        Scheme.WEIGHT_W4: _yes("int4 weights, one scale for each 32, float arithmetic: smaller, not faster; opset 21"),
        Scheme.STATIC_W8A8: _yes("QDQ; int8 weights, one scale per channel; uint8 activations; float in and out"),
        Scheme.STATIC_W8A16: _yes("QDQ; int8 weights, int16 activations; onnxruntime's CPU computes them in float32"),
    },
    "onnx-tf": {
        Scheme.FP32: _yes("float; TFLite and SavedModel, by TensorFlow 2.15 in its own environment"),
        Scheme.FP16: _no("TensorFlow 2.15 only stores halves and computes in float", "fp32"),
        Scheme.DYNAMIC_W8: _yes("int8 weights in TFLite, activations quantized on the fly; the SavedModel is float"),
        Scheme.WEIGHT_W8: _no("TensorFlow 2.15 writes dynamic_w8 where kernels have it", "dynamic_w8"),
        Scheme.WEIGHT_W4: _no("TensorFlow 2.15 has no int4 weights", "dynamic_w8"),
        Scheme.STATIC_W8A8: _yes("full integer TFLite, ranges by minimum and maximum; the SavedModel is float"),
        Scheme.STATIC_W8A16: _yes("int8 weights, int16 activations in TFLite; the SavedModel is float"),
    },
    "tflite-micro": {
        Scheme.FP32: _yes("float; for microcontrollers with a floating-point unit"),
        Scheme.FP16: _no("TensorFlow Lite Micro has no half-precision kernels", "fp32"),
        Scheme.DYNAMIC_W8: _no(
            "TensorFlow Lite Micro has no kernels with int8 weights and float activations", "static_w8a8"
        ),
        Scheme.WEIGHT_W8: _no(
            "its DEQUANTIZE reads one weight scale for a whole tensor, not one per channel", "static_w8a8"
        ),
        Scheme.WEIGHT_W4: _no(
            "TensorFlow Lite Micro has no kernels with int4 weights and float activations", "static_w8a8"
        ),
        Scheme.STATIC_W8A8: _yes("full integer, as C++ source too; arena measured in TensorFlow Lite Micro"),
        Scheme.STATIC_W8A16: _yes("int8 weights, int16 activations, where each op has such a kernel"),
    },
}
"""Backend to scheme to (is it supported, how or why not, the nearest that is)."""


def capabilities_of(backend: str) -> tuple[Capability, ...]:
    """Every scheme of a built-in backend, in order."""
    return tuple(
        Capability(scheme=scheme, supported=supported, note=note, nearest=nearest)
        for scheme in Scheme
        for supported, note, nearest in [TABLE[backend][scheme]]
    )
