"""The report as data: everything the page shows, and `report.json` as written.

The pipeline fills it from the store; the HTML, the terminal table and the JSON are views of this one value.
Nothing is computed in a view that is not here, so the page and the JSON cannot disagree.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from edgekit.artifact import LineageStep, Passport
from edgekit.benchmarks.values import DeviceInfo, Run
from edgekit.schema import Record

__all__ = [
    "Baseline",
    "DataFacts",
    "Difference",
    "Doubt",
    "GateResult",
    "HostFacts",
    "LatencySummary",
    "Proportion",
    "Report",
    "Row",
    "SkippedDevice",
    "Stability",
    "StageFacts",
    "Verdict",
    "Warned",
    "WorstInput",
]


class Verdict(StrEnum):
    PASS = "PASS"  # noqa: S105  a verdict
    FAIL = "FAIL"
    NOISY = "NOISY"
    INCOMPARABLE = "INCOMPARABLE"
    NOT_GATED = "NOT_GATED"
    """No gate was asked for."""


class Proportion(Record):
    """`hits` of `total`, with the Wilson 95 % interval (Wilson 1927)."""

    hits: int
    total: int
    value: float
    low: float
    high: float


class Difference(Record):
    """Teacher's less the artifact's top-1 accuracy on the same inputs, with its paired 95 % interval."""

    value: float
    low: float
    high: float


class LatencySummary(Record):
    """Derived from the raw samples of one run; nanoseconds."""

    samples: int
    min_ns: int
    p10_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    mean_ns: int
    stdev_ns: int
    p50_low_ns: int
    """95 % interval of the median (order statistics)."""
    p50_high_ns: int


class Doubt(Record):
    """One thing that makes a latency doubtful, and what to do about it."""

    kind: Literal["cut", "few", "short", "spread", "outliers", "drift", "modes", "load"]
    told: str
    remedy: str
    decides: bool = True
    """Whether it alone makes the run NOISY."""

    def __str__(self) -> str:
        return f"{self.told} (try: {self.remedy})"


class Stability(Record):
    """Whether the latency of one run is steady: PASS, or NOISY with the reasons."""

    verdict: Literal[Verdict.PASS, Verdict.NOISY]
    doubts: tuple[Doubt, ...] = ()


class GateResult(Record):
    """One gate of the recipe, applied to one row."""

    gate: str
    """As written: `accuracy_drop <= 1.0 pp`."""
    verdict: Verdict
    detail: str
    """The numbers that decided it."""


class WorstInput(Record):
    """An evaluation input on which the artifact departs most from the teacher."""

    index: int
    label: str | None
    teacher: str | None
    artifact: str | None
    kl: float | None
    image_png_base64: str | None = None
    """Shown beside it when the input is an image."""


class Row(Record):
    """One artifact on one device."""

    id: str
    artifact: str
    """Shown name; `Report.artifacts` holds its passport by this name."""
    device: str
    """Spec; `Report.devices` holds its facts by this spec."""
    is_baseline: bool = False
    """True for the fp32 teacher's own row."""
    format: str
    scheme: str | None
    size_bytes: int
    status: str
    error: str | None = None
    latency: LatencySummary | None = None
    cold_load_ns: int | None = None
    """Median over fresh processes of import + load + first inference."""
    cold_process_ns: int | None = None
    peak_rss_bytes: int | None = None
    model_rss_bytes: int | None = None
    """Peak less the baseline after the runtime was imported."""
    accuracy: Proportion | None = None
    top5: Proportion | None = None
    """None below ten classes."""
    accuracy_drop: Difference | None = None
    """Against the PyTorch teacher, pairwise; what the accuracy gate looks at."""
    agreement: Proportion | None = None
    """Top-1 equal to the PyTorch teacher's."""
    sqnr_db: float | None = None
    """Device outputs against the same model's PyTorch fp32 outputs, whole evaluation set."""
    sqnr_exact: bool = False
    kl_to_teacher: float | None = None
    """Mean KL(teacher ‖ artifact), nats."""
    non_finite: int | None = None
    matches_host: bool | None = None
    """Outputs equal to the bit to the host's run of the same artifact; None where not compared."""
    host_max_abs_difference: float | None = None
    host_verdict: Verdict | None = None
    """Whether that is as it should be: equal where processor and runtime are the same, else within a bound."""
    host_reason: str | None = None
    """The rule that decided it, with the numbers."""
    speedup: float | None = None
    """Baseline p50 on the same device over this p50; None where it may not be stated."""
    speedup_unstated: str | None = None
    """Why it may not be."""
    verdict: Verdict = Verdict.NOT_GATED
    gates: tuple[GateResult, ...] = ()
    pareto: bool = False
    """No other row of this device is at least as accurate, as fast and as small, and better in one."""
    emulated: bool = False
    flags: tuple[str, ...] = ()
    """What makes the numbers doubtful."""
    stability: Stability | None = None
    """None where nothing was timed."""
    invalid: tuple[str, ...] = ()
    """Why the run must not be averaged with others or called a speed-up; empty where it is valid."""
    worst: tuple[WorstInput, ...] = ()
    run: Run | None = None
    """The raw record: every sample."""


class Baseline(Record):
    """The PyTorch teacher on the host: the reference for accuracy and agreement."""

    name: str
    accuracy: Proportion | None
    parameters: int
    macs: int | None
    size_bytes: int
    """Of the fp32 weights."""


class DataFacts(Record):
    """Which data this ran on."""

    name: str
    source: str
    """Where it came from on this machine: package and version, or the path given with `--data`."""
    train: int
    calibration: int
    evaluation: int
    classes: tuple[str, ...] = ()


class HostFacts(Record):
    """The machine that ran edgekit."""

    hostname: str
    os: str
    cpu_model: str | None
    cores: int | None
    ram_bytes: int | None
    python: str
    edgekit: str
    tool_versions: dict[str, str]
    load_average_1m: float | None


class StageFacts(Record):
    """One stage of the run."""

    name: str
    key: str
    status: str
    """`done`, `cached`, `failed`, `skipped`."""
    seconds: float | None = None
    error: str | None = None


class SkippedDevice(Record):
    spec: str
    reason: str
    hint: str | None = None


class Warned(Record):
    """A warning: where it arose and what it says."""

    where: str
    text: str


class Report(Record):
    """One run, whole."""

    schema_version: Literal[1] = 1
    run_id: str
    title: str
    created: str
    """ISO 8601, UTC."""
    edgekit_version: str
    recipe: dict[str, Any]
    """As resolved, defaults included."""
    task: str
    data: DataFacts
    host: HostFacts
    devices: tuple[DeviceInfo, ...]
    skipped_devices: tuple[SkippedDevice, ...] = ()
    baseline: Baseline | None
    lineage: tuple[LineageStep, ...]
    """Teacher to student, in order."""
    artifacts: tuple[Passport, ...]
    rows: tuple[Row, ...]
    stages: tuple[StageFacts, ...] = ()
    warnings: tuple[Warned, ...] = ()
    verdict: Verdict
    verdict_reasons: tuple[str, ...] = ()
    command: str
    """What reproduces it."""
    seconds: Annotated[float, Field(ge=0)] | None = None
