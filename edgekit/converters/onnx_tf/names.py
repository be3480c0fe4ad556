"""What the modules of this backend and the program in its environment call things."""

from __future__ import annotations

__all__ = ["BACKEND", "OPSET", "input_name", "output_name"]

BACKEND = "onnx-tf"
OPSET = 13
"""The newest onnx-tf 1.10 knows nearly whole."""


def input_name(index: int) -> str:
    """No dots: TensorFlow would take them for something else."""
    return f"input_{index}"


def output_name(index: int) -> str:
    return f"output_{index}"
