"""TensorFlow Lite Micro: a `.tflite` file that its kernels run, as C++ source, with the memory it takes measured."""

from edgekit.converters.tflite_micro.converter import TFLiteMicroConverter

__all__ = ["TFLiteMicroConverter"]
