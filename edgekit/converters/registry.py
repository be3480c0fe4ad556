"""The converter backends edgekit brings, and those third parties add under `edgekit.converters`."""

from __future__ import annotations

from typing import cast

from edgekit.converters.base import Capability, Converter
from edgekit.plugins import Registry

__all__ = ["CONVERTERS", "capabilities", "load_converter"]

CONVERTERS = Registry(
    "converter",
    "edgekit.converters",
    {
        "tflite": "edgekit.converters.tflite:TFLiteConverter",
        "executorch": "edgekit.converters.executorch:ExecuTorchConverter",
        "onnx": "edgekit.converters.onnx:OnnxConverter",
        "onnx-tf": "edgekit.converters.onnx_tf:OnnxTfConverter",
        "tflite-micro": "edgekit.converters.tflite_micro:TFLiteMicroConverter",
    },
)


def load_converter(name: str) -> Converter:
    """A new converter of the backend registered as `name`; raises UserError with the nearest known name."""
    return cast("Converter", CONVERTERS.load(name)())


def capabilities(name: str) -> tuple[Capability, ...]:
    """Every scheme of a backend, supported or not; needs no toolchain."""
    return load_converter(name).capabilities()
