"""Which extra brings which toolkit, so that an absent one is one sentence wherever its import fails."""

from __future__ import annotations

from edgekit.errors import MissingDependencyError

__all__ = ["EXTRA_OF", "missing_dependency"]

EXTRA_OF = {
    "torch": "train",
    "pytorch_lightning": "train",
    "torch_pruning": "train",
    "safetensors": "train",
    "mlxtend": "train",
    "sklearn": "train",
    "litert_torch": "tflite",
    "ai_edge_litert": "tflite",
    "ai_edge_quantizer": "tflite",
    "tflite_micro": "micro",
    "executorch": "executorch",
    "torchao": "executorch",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
}
"""Top-level module of a toolkit to the extra of edgekit that installs it."""


def missing_dependency(error: ModuleNotFoundError, *, what: str) -> MissingDependencyError | None:
    """The sentence for a toolkit that is not installed, or None when the module is none of ours."""
    package = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(package)
    return None if extra is None else MissingDependencyError(what, extra=extra, package=package)
