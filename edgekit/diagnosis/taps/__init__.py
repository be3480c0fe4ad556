"""Tapped files: a model file with tensors from its inside added to its outputs, one module a format.

The runtime itself then gives those tensors, on this host or on any device, with the very kernels the model runs with.
A module has two functions: `open_all(path)` taps every float activation of a float file, `open_chosen(path, names)`
those of a quantized one that go by the names of the float one.
"""

from edgekit.diagnosis.taps.values import TapOutput, TappedFile

__all__ = ["TapOutput", "TappedFile"]
