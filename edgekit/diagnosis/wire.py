"""The files a diagnosis and its probing child exchange; the child is `edgekit.diagnosis.worker`.

request.json       ProbeRequest                      parent -> child
program.pt2        the exported program
samples.npz        evaluation inputs; calibration.npz where the file has to be made again (ExecuTorch)
tapped.<suffix>    the tapped file                   child -> parent
values.<n>.npz     of sample n: t<i> what tap i holds, in PyTorch's axes and real numbers
outputs.npz        o<n>_<i>: output i of the file as it is, on sample n
answer.json        ProbeAnswer
"""

from __future__ import annotations

from edgekit.artifact import Format, QuantizationParams, Scheme
from edgekit.converters.base import QuantizationOptions
from edgekit.converters.wire import WireError
from edgekit.schema import Record

__all__ = ["ProbeAnswer", "ProbeRequest", "Tap"]


class ProbeRequest(Record):
    """What one child looks into."""

    path: str
    format: Format
    only_run: bool = False
    """Run the file as it is and look no further."""
    scheme: Scheme | None = None
    float_path: str | None = None
    """The float file of the same format: tensors are aligned there, where values are those of PyTorch."""
    sha256: str = ""
    """Of `program.pt2`."""
    backend: str = ""
    quantization: QuantizationOptions = QuantizationOptions()
    is_trained: bool = False
    batch: int | None = None
    """Where the tapped file is to go to a device: only tensors whose first axis is the batch can come back."""
    has_calibration: bool = False


class Tap(Record):
    """One layer that can be looked at: a node of the program, and where the file keeps its value."""

    node: str
    tensor: str
    position: int
    """Among the outputs of the tapped file."""
    permutation: tuple[int, ...]
    """As of `AlignedTensor`."""
    shape: tuple[int, ...]
    """In PyTorch's axes."""
    dtype: str
    quantization: QuantizationParams | None = None


class ProbeAnswer(Record):
    """What was found, or why nothing was."""

    taps: tuple[Tap, ...] = ()
    tapped_file: str = ""
    own_outputs: int = 0
    is_same: bool = True
    """Whether the tapped file's own outputs are those of the untapped one, to the bit."""
    largest_change: float = 0.0
    """The largest difference between the two, as a share of the output's largest value."""
    error: WireError | None = None
