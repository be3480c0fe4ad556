"""What a diagnosis says, as records: the table and the page show them and compute nothing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekit.artifact import Fidelity, Format, NodeRule, Scheme
from edgekit.report.model import Difference, Proportion
from edgekit.schema import Record

__all__ = [
    "ArtifactDiagnosis",
    "Attempt",
    "Bound",
    "Diagnosis",
    "Layer",
    "LayerError",
    "Repair",
    "SearchResult",
    "Sensitivity",
]


class Layer(Record):
    """A node of the program whose value at least one of the files shows."""

    node: str
    op: str
    module: str | None
    source: str | None


class LayerError(Record):
    """One layer of one file against PyTorch, over all inputs together. dB values are None where `exact` or unknown."""

    node: str
    piece: tuple[str, ...]
    """Nodes the file computes in one with it, this one last: `conv2d`, `batch_norm`, `relu`."""
    reads: tuple[str, ...]
    """Layers it takes its input from."""
    tensor: str
    dtype: str
    """Of the tensor in the file."""
    sqnr_db: float | None
    exact: bool
    cosine: float | None
    max_abs_error: float
    reference_rms: float
    non_finite: int
    local_sqnr_db: float | None
    """Of the error this layer adds: its value in the file against what PyTorch computes from the file's own inputs to
    it. None where it adds none, to the bit."""
    input_sqnr_db: float | None
    """The lowest `sqnr_db` of the layers it reads; None where they are exact or it reads none."""
    file_range: tuple[float, float] | None = None
    """What the integers of the file reach."""
    seen_range: tuple[float, float]
    """What the layer has in PyTorch on these inputs."""
    clipped: float | None = None
    """Share of PyTorch's values beyond `file_range` by more than half a step."""
    saturated: float | None = None
    """Share of the file's values at an end of its integers; the end that is zero, as after ReLU, does not count."""
    dead_channels: int = 0
    """Channels that are one value all over in the file and not in PyTorch."""
    channels: int = 0
    alone_sqnr_db: float | None = None
    """Of the model's worst output, were this layer's error the only one."""
    without_sqnr_db: float | None = None
    """Of the model's worst output, were this layer's error the only one not there."""
    device_sqnr_db: float | None = None
    """The device's value against this host's."""
    device_exact: bool | None = None
    """Whether the two are equal to the bit; None where no device was asked, or could not give this tensor."""


class ArtifactDiagnosis(Record):
    """One file, layer by layer."""

    name: str
    path: str
    format: Format
    scheme: Scheme | None
    backend: str | None
    size_bytes: int
    outputs: Fidelity
    """The file as it is, on the inputs of the diagnosis."""
    layers: tuple[LayerError, ...]
    first_break: str | None
    """Node of the first layer that breaks; see `breaking`."""
    reason: str
    """Why that one, or why none."""
    notes: tuple[str, ...] = ()
    device_differs: str | None = None
    """The first layer where the device gives other values than this host."""


class Attempt(Record):
    """One set of rules tried by converting with it."""

    what: str
    """`range by mse`, `16-bit activations`, `keep float`."""
    rules: tuple[NodeRule, ...]
    search_sqnr_db: float | None = None
    """Worst output on calibration inputs, which the choice is made by."""
    size_bytes: int | None = None
    error: str | None = None
    """Why the converter refused."""


class Repair(Record):
    """What was tried for the layers that break, what was chosen, and what it gives on data not used to choose."""

    artifact: str
    layers: tuple[str, ...]
    before_sqnr_db: float | None
    """On calibration inputs, as the attempts are."""
    target_sqnr_db: float | None
    """What there would be to win: the model with these layers' own errors taken out, simulated."""
    attempts: tuple[Attempt, ...]
    rules: tuple[NodeRule, ...]
    """Empty where nothing repaired."""
    verdict: str
    held_out_before: Fidelity | None = None
    held_out_after: Fidelity | None = None
    applied: str | None = None
    """Folder of the artifact made with the rules."""


class Sensitivity(Record):
    """What quantizing one layer costs, and keeping it in float gains, at the model's outputs."""

    node: str
    op: str
    module: str | None
    alone_sqnr_db: float | None
    without_sqnr_db: float | None
    gain_db: float | None
    """`without_sqnr_db` less what the file has now."""
    macs: int
    weight_values: int


class Bound(Record):
    """A metric of a file against the float model on one data set."""

    data: str
    metric: Literal["accuracy", "agreement"]
    """Of labels; or, where there are none, of the float model's answers."""
    reference: Proportion | None
    """The float model in PyTorch; None for agreement, where it is all of them."""
    value: Proportion
    drop: Difference
    """As a share; 0.01 is one point."""


class SearchResult(Record):
    """The fewest layers in float that hold an accuracy bound, and whether they do on data the search never saw."""

    artifact: str
    max_drop_points: float
    rules: tuple[NodeRule, ...]
    float_layers: tuple[str, ...]
    layers: int
    trials: tuple[tuple[int, float | None], ...]
    """(layers in float, drop in points on the search data; None where the conversion was refused), as tried."""
    float_macs_share: float
    on_search: Bound | None
    on_evaluation: Bound | None
    verdict: Literal["PASS", "FAIL", "NOISY"]
    """PASS when the whole 95 % interval on the evaluation data is within the bound, FAIL when none of it is."""
    reason: str
    size_bytes: int | None = None
    stopped: str | None = None
    """Why the search ended early."""
    applied: str | None = None


class Diagnosis(Record):
    """Everything `edgekit why` found."""

    schema_version: Literal[1] = 1
    workload: str
    samples: int
    source: str
    device: str | None = None
    layers: tuple[Layer, ...]
    artifacts: tuple[ArtifactDiagnosis, ...]
    repairs: tuple[Repair, ...] = ()
    sensitivity: dict[str, tuple[Sensitivity, ...]] = Field(default_factory=dict)
    searches: tuple[SearchResult, ...] = ()
