"""`result.json` as it comes from a device: untrusted until every value has been checked.

A device may be broken, out of date or hostile. Size is bounded before parsing, then strict types, ranges,
finite numbers, no unknown or doubled keys; then what the numbers must be to each other. The first thing that
is wrong is an InvalidResultError that names its field, and nothing of the result is kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from edgekit.benchmarks.values import (
    Block,
    ColdStart,
    Conditions,
    Energy,
    Memory,
    Operator,
    Plan,
    RuntimeFacts,
)
from edgekit.errors import InvalidResultError
from edgekit.runtimes.runner import MAX_SAMPLES, SCHEMA_VERSION
from edgekit.schema import Record, parse_json

__all__ = ["MAX_RESULT_BYTES", "RunnerResult", "parse_result", "read_result"]

MAX_RESULT_BYTES = 8 * 1024 * 1024

_NS_LIMIT = 10**9 * 86_400 * 30
"""A month: nothing here takes longer."""
_BYTES_LIMIT = 2**50

Nanoseconds = Annotated[int, Field(ge=0, le=_NS_LIMIT)]
Sample = Annotated[int, Field(ge=1, le=_NS_LIMIT)]
Samples = Annotated[tuple[Sample, ...], Field(max_length=MAX_SAMPLES)]
Text = Annotated[str, StringConstraints(max_length=16_384)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Strict(Record):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class _Outputs(_Strict):
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=1, le=_BYTES_LIMIT)]


class _ColdStart(_Strict):
    import_ns: Nanoseconds
    load_ns: Nanoseconds
    first_inference_ns: Sample
    process_ns: Sample


class _Memory(_Strict):
    baseline_rss_bytes: Annotated[int, Field(ge=1, le=_BYTES_LIMIT)] | None
    baseline_pss_bytes: Annotated[int, Field(ge=1, le=_BYTES_LIMIT)] | None
    loaded_rss_bytes: Annotated[int, Field(ge=1, le=_BYTES_LIMIT)] | None
    peak_rss_bytes: Annotated[int, Field(ge=1, le=_BYTES_LIMIT)] | None
    pss_bytes: Annotated[int, Field(ge=1, le=_BYTES_LIMIT)] | None


class _Conditions(_Strict):
    monotonic_ns: Annotated[int, Field(ge=0, le=2**62)]
    wall_ns: Annotated[int, Field(ge=-(2**62), le=2**62)]
    load_average_1m: Annotated[float, Field(ge=0, le=1e6)] | None
    temperature_milli_c: Annotated[dict[Text, Annotated[int, Field(ge=-300_000, le=1_000_000)]], Field(max_length=512)]
    cpu_khz: Annotated[dict[Text, Annotated[int, Field(ge=0, le=10**9)]], Field(max_length=4096)]
    cpu_limit_khz: Annotated[dict[Text, Annotated[int, Field(ge=0, le=10**9)]], Field(max_length=4096)]
    governor: Text | None
    battery_percent: Annotated[int, Field(ge=0, le=100)] | None
    is_charging: bool | None


class _Block(_Strict):
    samples: Annotated[int, Field(ge=0, le=MAX_SAMPLES)]
    waited_ns: Nanoseconds
    state: _Conditions


class _Operator(_Strict):
    name: Text
    type: Text
    calls: Annotated[int, Field(ge=1, le=10**9)]
    total_ns: Nanoseconds


class _Energy(_Strict):
    source: Text
    idle_mw: Annotated[float, Field(ge=0, le=1e9)]
    busy_mw: Annotated[float, Field(ge=0, le=1e9)]
    idle_error_mw: Annotated[float, Field(ge=0, le=1e9)]
    busy_error_mw: Annotated[float, Field(ge=0, le=1e9)]
    inferences: Annotated[int, Field(ge=1, le=10**12)]
    seconds: Annotated[float, Field(gt=0, le=1e7)]
    mj_per_inference: Annotated[float, Field(ge=-1e12, le=1e12)]
    error_mj: Annotated[float, Field(ge=0, le=1e12)]


class _Runtime(_Strict):
    name: Text
    version: Text
    threads: Annotated[int, Field(ge=1, le=4096)]
    delegate: Text | None
    delegate_nodes: Annotated[int, Field(ge=0, le=10**7)] | None
    total_nodes: Annotated[int, Field(ge=0, le=10**7)] | None
    interface: Text
    python: Text


class RunnerResult(_Strict):
    """`result.json`, version 2; the fields are described in `edgekit.runtimes.runner`."""

    schema_version: Literal[2]
    job: Text
    status: Literal["ok", "failed", "crashed", "timed_out"]
    error: Text | None
    signal: Annotated[int, Field(ge=1, le=128)] | None
    runtime: _Runtime | None
    cold_starts: Annotated[tuple[_ColdStart, ...], Field(max_length=1000)]
    warmup_ns: Samples
    latency_ns: Samples
    calls_per_sample: Annotated[int, Field(ge=1, le=1000)]
    blocks: Annotated[tuple[_Block, ...], Field(max_length=1000)]
    sampled_every: Annotated[int, Field(ge=1, le=10**9)]
    stopped_by: Literal["minimum reached", "max_seconds"] | None
    memory: _Memory | None
    operators: Annotated[tuple[_Operator, ...], Field(max_length=2000)] | None
    energy: _Energy | None
    before: _Conditions
    after: _Conditions
    evaluated: Annotated[int, Field(ge=1, le=10**9)] | None
    outputs: _Outputs | None
    unmeasured: Annotated[dict[Text, Text], Field(max_length=64)]
    flags: Annotated[tuple[Text, ...], Field(max_length=64)]
    phase_ns: dict[Literal["cold", "warm", "memory", "profile", "energy", "accuracy"], Nanoseconds]
    starts: Annotated[int, Field(ge=1, le=10**6)]

    def runtime_facts(self) -> RuntimeFacts | None:
        """What executed, in the record's own type."""
        return RuntimeFacts(**self.runtime.model_dump()) if self.runtime else None

    def values(self) -> dict[str, object]:
        """The fields a `Run` takes over, in its own types."""
        return {
            "runtime": self.runtime_facts(),
            "cold_starts": tuple(ColdStart(**c.model_dump()) for c in self.cold_starts),
            "warmup_ns": self.warmup_ns,
            "latency_ns": self.latency_ns,
            "calls_per_sample": self.calls_per_sample,
            "blocks": tuple(Block(**b.model_dump()) for b in self.blocks),
            "sampled_every": self.sampled_every,
            "stopped_by": self.stopped_by,
            "memory": Memory(**self.memory.model_dump()) if self.memory else None,
            "operators": None if self.operators is None else tuple(Operator(**o.model_dump()) for o in self.operators),
            "energy": Energy(**self.energy.model_dump()) if self.energy else None,
            "before": Conditions(**self.before.model_dump()),
            "after": Conditions(**self.after.model_dump()),
            "evaluated": self.evaluated,
            "outputs_sha256": self.outputs.sha256 if self.outputs else None,
            "unmeasured": dict(self.unmeasured),
            "phase_ns": {str(k): v for k, v in self.phase_ns.items()},
        }


def read_result(path: Path, *, device: str, job: str, plan: Plan, inputs: int) -> RunnerResult:
    """The checked result in the file `path`; see `parse_result`."""
    if path.stat().st_size > MAX_RESULT_BYTES:
        raise InvalidResultError(f"more than {MAX_RESULT_BYTES} bytes", device=device, field="(file)")
    return parse_result(path.read_bytes(), device=device, job=job, plan=plan, inputs=inputs)


def parse_result(text: bytes, *, device: str, job: str, plan: Plan, inputs: int) -> RunnerResult:
    """`text` as a result of `job` measured by `plan` on `inputs` evaluation inputs; raises InvalidResultError."""
    try:
        value = parse_json(text, max_bytes=MAX_RESULT_BYTES)
    except ValueError as e:
        raise InvalidResultError(f"not the JSON it should be: {e}", device=device, field="(file)") from e
    if isinstance(value, dict) and value.get("schema_version") != SCHEMA_VERSION:
        raise InvalidResultError(f"not {SCHEMA_VERSION}", device=device, field="schema_version")
    try:
        result = RunnerResult.model_validate_json(json.dumps(value))
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "(top level)"
        raise InvalidResultError(str(first["msg"])[:300], device=device, field=where[:120]) from e
    for field, wrong, message in _contradictions(result, job, plan, inputs):
        if wrong:
            raise InvalidResultError(message, device=device, field=field)
    return result


def _contradictions(r: RunnerResult, job: str, plan: Plan, inputs: int) -> list[tuple[str, bool, str]]:
    """(field, whether it is wrong, message) for what the values must be to each other and to the plan."""
    ok = r.status == "ok"
    return [
        ("job", r.job != job, "is of another job"),
        ("error", ok != (r.error is None), "there must be one exactly when the status is not ok"),
        ("signal", (r.signal is not None) != (r.status == "crashed"), "belongs to a crash, and only there"),
        ("cold_starts", ok and len(r.cold_starts) != plan.cold_starts, f"{len(r.cold_starts)} of {plan.cold_starts}"),
        ("cold_starts", len(r.cold_starts) > plan.cold_starts, "more than were asked for"),
        ("cold_starts", any(_inside(c) > c.process_ns for c in r.cold_starts), "parts are longer than the process"),
        ("latency_ns", ok and not r.latency_ns, "empty in a run that is ok"),
        ("latency_ns", _too_few(r, plan), f"{len(r.latency_ns)} samples said to be the minimum of {plan.min_samples}"),
        ("latency_ns", _sum(r) > r.phase_ns.get("warm", 0), "the samples take longer than their phase"),
        ("blocks", sum(b.samples for b in r.blocks) != len(r.latency_ns), "do not add up to the samples"),
        ("operators", r.operators is not None and not plan.profile, "not asked for"),
        ("energy", r.energy is not None and not plan.energy, "not asked for"),
        ("stopped_by", bool(r.latency_ns) != (r.stopped_by is not None), "belongs to samples"),
        ("runtime", bool(r.latency_ns) != (r.runtime is not None), "belongs to samples"),
        ("memory", ok and plan.memory and r.memory is None, "asked for and not there"),
        ("memory", _memory_shrinks(r), "the peak is less than what was resident after loading"),
        ("evaluated", r.evaluated not in (None, inputs), f"{r.evaluated} of {inputs} inputs"),
        ("evaluated", ok and plan.accuracy and r.evaluated is None, "asked for and not there"),
        ("outputs", (r.outputs is None) != (r.evaluated is None), "belongs to evaluated inputs"),
        ("after", r.starts == 1 and r.after.monotonic_ns < r.before.monotonic_ns, "is before `before`"),
    ]


def _inside(cold: _ColdStart) -> int:
    return cold.import_ns + cold.load_ns + cold.first_inference_ns


def _too_few(r: RunnerResult, plan: Plan) -> bool:
    # A model far quicker than its warm-up has its samples thinned by half, hence the halved bound there.
    least = plan.min_samples if r.sampled_every == 1 else min(plan.min_samples, MAX_SAMPLES // 2)
    return r.stopped_by == "minimum reached" and len(r.latency_ns) < least


def _sum(r: RunnerResult) -> int:
    # a latency is a sample's time divided by its calls and rounded
    return sum(max(0, s - 1) for s in r.latency_ns) * r.calls_per_sample + sum(r.warmup_ns)


def _memory_shrinks(r: RunnerResult) -> bool:
    m = r.memory
    return bool(m and m.peak_rss_bytes and m.loaded_rss_bytes and m.peak_rss_bytes < m.loaded_rss_bytes)
