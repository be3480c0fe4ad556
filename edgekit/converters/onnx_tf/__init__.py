"""onnx-tf: PyTorch to ONNX to a TensorFlow SavedModel to TFLite, in a virtual environment of its own."""

from edgekit.converters.onnx_tf.converter import OnnxTfConverter

__all__ = ["OnnxTfConverter"]
