"""Comparing two runs: a verdict by interval, and a refusal where they were not measured alike."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.benchmarks.stability import invalid_reasons, judge_stability
from edgekit.benchmarks.stats import stated_ratio, summarize
from edgekit.benchmarks.values import Conditions, DeviceInfo, Run, RunStatus
from edgekit.report.model import Verdict

__all__ = ["Comparison", "compare_runs", "differences"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`b` against `a`: `ratio` is b's median latency over a's, with the interval both medians' intervals give.

    `ratio` is None where it may not be stated: a run is unsteady, or minima and medians tell different ones.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None


def compare_runs(
    a: Run, b: Run, info_a: DeviceInfo, info_b: DeviceInfo, max_regress: float = 0.03
) -> tuple[Verdict, Comparison]:
    """Whether `b` is at most `max_regress` (a share) slower than `a`.

    INCOMPARABLE, with each reason, where device, threads, cores, delegate, runtime, clocks or power state differ, or
    a run is not valid; FAIL where a run gave no latency; NOISY where the intervals, or the minima against the
    medians, cannot decide. An unsteady run decides nothing.
    """
    result = _compare(a, b, info_a, info_b, max_regress)
    return result.verdict, result


def differences(a: Run, b: Run, info_a: DeviceInfo, info_b: DeviceInfo) -> tuple[str, ...]:
    """Every condition in which the two runs were not measured alike, both values named."""
    found = []
    if info_a.fingerprint() != info_b.fingerprint():
        facts_a, facts_b = (i.model_dump(exclude={"boot_id", "schema_version"}) for i in (info_a, info_b))
        found += [f"device {k}: {facts_a[k]} and {facts_b[k]}" for k in facts_a if facts_a[k] != facts_b[k]]
    pairs: list[tuple[str, object, object]] = [
        ("threads asked for", a.plan.threads, b.plan.threads),
        ("delegate asked for", a.plan.delegate, b.plan.delegate),
        ("cores", a.plan.cores, b.plan.cores),
    ]
    if a.runtime and b.runtime and a.runtime.name == b.runtime.name:
        pairs += [
            ("runtime version", a.runtime.version, b.runtime.version),
            ("threads", a.runtime.threads, b.runtime.threads),
            ("delegate", a.runtime.delegate, b.runtime.delegate),
            ("calls that are timed", a.runtime.interface, b.runtime.interface),
        ]
    elif a.runtime and b.runtime:
        pairs.append(("runtime", a.runtime.name, b.runtime.name))
    for moment in ("before", "after"):
        state_a, state_b = getattr(a, moment), getattr(b, moment)
        if state_a and state_b:
            pairs += _states(moment, state_a, state_b)
    return tuple(found + [f"{what}: {x} and {y}" for what, x, y in pairs if x != y])


def _states(moment: str, a: Conditions, b: Conditions) -> list[tuple[str, object, object]]:
    """What is said in words or as yes or no (governor, charging, battery saver) and every clock's maximum.

    Temperatures, loads and momentary clocks are never the same twice.
    """
    found: list[tuple[str, object, object]] = []
    for name in type(a).model_fields:
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, str | bool) or isinstance(y, str | bool) or "max_khz" in name:
            found.append((f"{name.replace('_', ' ')} {moment}", x, y))
    return found


def _compare(a: Run, b: Run, info_a: DeviceInfo, info_b: DeviceInfo, max_regress: float) -> Comparison:
    unlike = differences(a, b, info_a, info_b)
    if unlike:
        return Comparison(verdict=Verdict.INCOMPARABLE, reasons=unlike)
    for which, run in (("first", a), ("second", b)):
        if run.status is not RunStatus.OK or not run.latency_ns:
            return Comparison(
                verdict=Verdict.FAIL, reasons=(f"the {which} run is {run.status.value}: {run.error or 'no samples'}",)
            )
    spoilt = [
        f"the {which} run is not valid: {r}"
        for which, run in (("first", a), ("second", b))
        for r in invalid_reasons(run)
    ]
    if spoilt:
        return Comparison(verdict=Verdict.INCOMPARABLE, reasons=tuple(spoilt))
    sa, sb = summarize(a.latency_ns), summarize(b.latency_ns)
    ratio, low, high = sb.p50_ns / sa.p50_ns, sb.p50_low_ns / sa.p50_high_ns, sb.p50_high_ns / sa.p50_low_ns
    by_minimum = sb.min_ns / sa.min_ns
    limit = 1 + max_regress
    reasons = [f"median x {ratio:.4f} (95 % intervals give {low:.4f} to {high:.4f}), allowed x {limit:.4f}"]
    verdict = Verdict.PASS if high <= limit else Verdict.FAIL if low > limit else Verdict.NOISY
    stated = stated_ratio(by_minimum, ratio)
    if stated is None:
        is_split = (by_minimum <= limit) != (ratio <= limit)
        verdict = Verdict.NOISY if is_split else verdict
        why = "the runs differ in load, not only in the model" if is_split else "how much is not sure"
        reasons.append(f"the minima say x {by_minimum:.4f}: {why}")
    for which, run in (("first", a), ("second", b)):
        unsteady = [str(d) for d in judge_stability(run).doubts if d.decides]
        if unsteady:
            verdict, stated = Verdict.NOISY, None
            reasons.append(f"the {which} run is unsteady: {'; '.join(unsteady)}")
    return Comparison(verdict=verdict, reasons=tuple(reasons), ratio=stated, ratio_low=low, ratio_high=high)
