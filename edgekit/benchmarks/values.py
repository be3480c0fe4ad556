"""What is measured, with what, and on what: the records that the harness passes on and stores.

Numbers are raw and in base units (`latency_ns`, `peak_rss_bytes`); statistics are derived on reading
(`edgekit.benchmarks.stats`). What was not measured is None, with the reason in `unmeasured`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from edgekit.schema import Record, digest

__all__ = [
    "Block",
    "Cluster",
    "ColdStart",
    "Conditions",
    "DeviceInfo",
    "DeviceState",
    "DeviceStatus",
    "Energy",
    "Gates",
    "Memory",
    "Operator",
    "Plan",
    "Run",
    "RunStatus",
    "RuntimeFacts",
]

Positive = Annotated[int, Field(ge=1)]


class Cluster(Record):
    """Cores that are alike and share a clock (big.LITTLE); `cores` are CPU numbers."""

    cores: tuple[int, ...]
    max_khz: int | None = None
    capacity: int | None = None
    """The kernel's `cpu_capacity`: 1024 is the fastest core of the device at its fastest clock."""
    name: Literal["little", "mid", "big"] | None = None
    """None where all cores are alike."""


class DeviceInfo(Record):
    """The facts of one device, read from the device itself. Unknown is None."""

    schema_version: Literal[1] = 1
    spec: str
    """What the user types to name it: `local`, `adb:SERIAL`, `board:amd64`, `ssh:host`."""
    kind: str
    """`local`, `adb`, `ssh`."""
    serial: str
    """Stable identity read from the device (machine id, ro.serialno), not the transport's name for it."""
    model: str | None = None
    soc: str | None = None
    cpu_model: str | None = None
    cpu_features: tuple[str, ...] = ()
    """The instruction-set flags that decide a kernel: avx512_vnni, avx_vnni, asimddp, i8mm, …"""
    cores: int | None = None
    clusters: tuple[Cluster, ...] = ()
    ram_bytes: int | None = None
    os: str | None = None
    kernel: str | None = None
    abi: str | None = None
    """`uname -m`: x86_64, aarch64, armv7l."""
    abis: tuple[str, ...] = ()
    """What Android can load, the preferred first: arm64-v8a, armeabi-v7a."""
    libc: str | None = None
    python: str | None = None
    """`3.13.5`, or None where the device has no Python."""
    governor: str | None = None
    android_api: int | None = None
    build_fingerprint: str | None = None
    """`ro.build.fingerprint`: names one build of Android."""
    security_patch: str | None = None
    """Android's security patch level, `2026-05-05`."""
    is_rooted: bool | None = None
    """Whether commands run as root there, or an Android has `su`."""
    emulated: bool = False
    """True where a latency measured here is not a hardware latency."""
    emulation: str | None = None
    """What it is instead, in one sentence."""
    shares_host_cpu: bool = False
    """True for `local` and for boards that run at native speed on this host's processor."""
    boot_id: str | None = None
    """Changes with each boot; not part of the fingerprint."""

    def fingerprint(self) -> str:
        """sha256 over the facts that make two measurements comparable: not what it is called, not its boot id."""
        return digest(self.model_dump(mode="json", exclude={"spec", "boot_id", "schema_version"}))


class DeviceState(Record):
    """What changes from minute to minute on a device; never part of its fingerprint. Not told is None."""

    spec: str
    battery_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    battery_status: Literal["unknown", "charging", "discharging", "not charging", "full"] | None = None
    battery_milli_c: int | None = None
    """Milli-degrees Celsius."""
    power_sources: tuple[str, ...] = ()
    """What it is fed by: `AC`, `USB`, `Wireless`, `Dock`, or the kernel's names of mains supplies."""
    thermal_status: Annotated[int, Field(ge=0, le=6)] | None = None
    """Android's: 0 none, 1 light, 2 moderate, 3 severe, 4 critical, 5 emergency, 6 shutdown."""
    hottest_zone: str | None = None
    hottest_milli_c: int | None = None
    load_average_1m: Annotated[float, Field(ge=0)] | None = None
    free_bytes: Annotated[int, Field(ge=0)] | None = None
    """Free where edgekit's folder is."""
    clock_offset_s: int | None = None
    """The device's wall clock less this host's, the least that fits what was read: 0 when they may agree."""
    uptime_s: Annotated[float, Field(ge=0)] | None = None
    notes: tuple[str, ...] = ()
    """What makes these numbers doubtful: values overridden for a test, a clock that is off."""
    unmeasured: dict[str, str] = Field(default_factory=dict)
    """Field name to the reason it is None."""


class DeviceStatus(Record):
    """One line of `edgekit devices`: what is attached, and why it cannot be used if so."""

    spec: str
    state: str
    """`ready`, `too hot`, `battery low`, `no space`, `busy`, `no python`, …, or adb's own word: `unauthorized`, …"""
    usable: bool
    code: str | None = None
    """The code of the error that measuring on it would end with."""
    reason: str | None = None
    hint: str | None = None
    info: DeviceInfo | None = None
    conditions: DeviceState | None = None
    warnings: tuple[str, ...] = ()
    """What does not stop a measurement and should be known."""
    name: str | None = None
    """In the inventory."""
    tags: tuple[str, ...] = ()
    notes: str | None = None
    model: str | None = None
    """adb's word for the model, which it knows without asking; None where it does not."""
    server: str | None = None
    """The adb server it is attached to, `HOST:PORT`; None is adb's default."""
    also: tuple[str, ...] = ()
    """Other names under which this same device is attached."""


class Plan(Record):
    """How to measure. The defaults are the measuring protocol's."""

    threads: Positive = 1
    delegate: Literal["default", "xnnpack", "none"] = "default"
    """`default` is what the runtime does by itself; `none` refuses delegates where the runtime lets one."""
    cores: tuple[int, ...] | Literal["big", "little", "all"] | None = None
    """CPU numbers to pin to, or a cluster of the device; None leaves the scheduler free."""
    allow_fallback: bool = False
    """Whether a run may go on without the delegate that was asked for; it is flagged then."""
    cold_starts: Annotated[int, Field(ge=0)] = 5
    warmup_min_runs: Annotated[int, Field(ge=0)] = 10
    warmup_max_seconds: Annotated[float, Field(ge=0)] = 5.0
    min_samples: Positive = 200
    min_seconds: Annotated[float, Field(ge=0)] = 2.0
    max_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Sampling stops here even if `min_samples` was not reached; the run then says so."""
    memory: bool = True
    profile: bool = False
    """A pass of its own with the runtime's profiler on: time by operator."""
    energy: bool = False
    """A pass of its own in which the power is read, where the device tells it."""
    accuracy: bool = True
    max_temperature_c: Annotated[float, Field(gt=0, le=150)] | None = None
    """No repeat begins while a thermal zone is hotter."""
    min_battery_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    allow_charging: bool = True
    """False waits until the battery is not being charged."""
    max_load: Annotated[float, Field(gt=0)] | None = None
    """Of the last minute, the job's own included."""
    gate_wait_seconds: Annotated[float, Field(ge=0)] = 60.0
    """How long a job may wait for these conditions in all; after that it measures all the same and says so."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 900.0
    """For the whole job on the device."""


class Gates(Record):
    """What an artifact must reach on a device; None asks for nothing."""

    max_accuracy_drop_pp: Annotated[float, Field(ge=0)] | None = None
    """Percentage points under the PyTorch teacher on the host."""
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of evaluation inputs with the teacher's top-1."""
    min_sqnr_db: float | None = None
    max_p50_ms: Annotated[float, Field(gt=0)] | None = None
    max_p90_ms: Annotated[float, Field(gt=0)] | None = None
    max_size_bytes: Positive | None = None
    max_peak_rss_mb: Annotated[float, Field(gt=0)] | None = None
    min_speedup: Annotated[float, Field(gt=0)] | None = None
    """Baseline p50 on the same device over this p50."""


class ColdStart(Record):
    """One fresh process: from its start to the end of its first inference."""

    import_ns: int
    """Importing the runtime."""
    load_ns: int
    """Loading the model: file to ready-to-run."""
    first_inference_ns: int
    process_ns: int
    """Wall time of the whole process as its parent saw it, interpreter start included."""


class Memory(Record):
    """Resident memory of a process that did nothing else; bytes."""

    baseline_rss_bytes: int | None = None
    """After the runtime was imported, before the model was opened."""
    baseline_pss_bytes: int | None = None
    loaded_rss_bytes: int | None = None
    """After the model was loaded."""
    peak_rss_bytes: int | None = None
    """VmHWM after inferences."""
    pss_bytes: int | None = None
    """Proportional set size after inferences."""


class Conditions(Record):
    """The state of the device at one moment (before or after a phase)."""

    monotonic_ns: int
    load_average_1m: float | None = None
    temperature_milli_c: dict[str, int] = Field(default_factory=dict)
    """Thermal zone type to milli-degrees Celsius."""
    cpu_khz: dict[str, int] = Field(default_factory=dict)
    """CPU name (`cpu0`) to its clock."""
    cpu_limit_khz: dict[str, int] = Field(default_factory=dict)
    """CPU name to the highest clock the kernel lets it have at that moment; heat lowers it."""
    governor: str | None = None
    wall_ns: int | None = None
    """The device's wall clock; only to see it jump, never to measure with."""
    battery_percent: int | None = None
    is_charging: bool | None = None


class Block(Record):
    """A stretch of samples, and what the device was like before it."""

    samples: int
    waited_ns: int
    """For the plan's conditions."""
    state: Conditions


class Operator(Record):
    """What the runtime's profiler tells of one operator (or one node), over all profiled inferences."""

    name: str
    type: str
    calls: int
    total_ns: int


class Energy(Record):
    """What the device drew while it inferred beyond what it draws idle; milliwatts and millijoules."""

    source: str
    """What was read: a power supply's name, or the board's power controller."""
    idle_mw: float
    busy_mw: float
    idle_error_mw: float
    """Standard error of the mean."""
    busy_error_mw: float
    inferences: int
    seconds: float
    mj_per_inference: float
    error_mj: float
    """Standard error of `mj_per_inference`."""


class RuntimeFacts(Record):
    """What executed the model, as the runtime itself tells."""

    name: str
    """`litert`, `onnxruntime`, `executorch`."""
    version: str
    threads: int
    delegate: str | None = None
    """The delegate in use (`XNNPACK`), None where none is."""
    delegate_nodes: int | None = None
    total_nodes: int | None = None
    interface: str | None = None
    """The runtime's calls that were timed: `run_with_iobinding`."""
    python: str | None = None


class RunStatus(StrEnum):
    OK = "ok"
    FAILED = "failed"
    """The runtime refused the model or raised."""
    CRASHED = "crashed"
    """The process died by a signal."""
    TIMED_OUT = "timed_out"
    LOST = "lost"
    """The device rebooted or went away and the job with it."""


class Run(Record):
    """One attempt at one job: everything the device said, raw."""

    schema_version: Literal[1] = 1
    job_key: str
    """sha256 over (artifact, inputs, plan, runner, device fingerprint)."""
    attempt: Positive
    status: RunStatus
    error: str | None = None
    """The reason where status is not ok: the last lines of the runner's stderr, or the signal."""
    artifact_sha256: str
    device_fingerprint: str
    plan: Plan
    runner_sha256: str
    inputs_sha256: str
    runtime: RuntimeFacts | None = None
    cold_starts: tuple[ColdStart, ...] = ()
    warmup_ns: tuple[int, ...] = ()
    latency_ns: tuple[int, ...] = ()
    """One per sample: time per inference, numpy inputs in, numpy outputs out, batch as the artifact has it."""
    calls_per_sample: Positive = 1
    """Inferences that one sample timed together (more than 1 below 100 µs)."""
    blocks: tuple[Block, ...] = ()
    """Consecutive stretches of `latency_ns`."""
    sampled_every: Positive = 1
    """Every k-th sample is in `latency_ns` (k > 1 where the model is too quick to keep them all)."""
    stopped_by: str | None = None
    """`minimum reached` or `max_seconds`."""
    memory: Memory | None = None
    operators: tuple[Operator, ...] | None = None
    energy: Energy | None = None
    before: Conditions | None = None
    after: Conditions | None = None
    evaluated: int | None = None
    """Inputs of the evaluation set that went through."""
    outputs_sha256: str | None = None
    """Of the outputs file, kept beside the store (`outputs/<sha256>.npz`)."""
    unmeasured: dict[str, str] = Field(default_factory=dict)
    """Field name to the reason it is None or empty."""
    flags: tuple[str, ...] = ()
    """What makes the numbers doubtful, found while measuring."""
    phase_ns: dict[str, int] = Field(default_factory=dict)
    """Wall time of each phase on the device (`cold`, `warm`, `memory`, `profile`, `energy`, `accuracy`)."""
    host_ns: dict[str, int] = Field(default_factory=dict)
    """Wall time of each part on the host (`push`, `run`, `pull`, `total`)."""
