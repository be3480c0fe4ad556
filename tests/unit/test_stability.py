"""Whether a run may be believed: each trouble is found, named with a remedy, and calm noise is not one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.benchmarks.stability import invalid_reasons, judge_stability
from edgekit.benchmarks.values import Block, Conditions, Plan, Run, RunStatus
from edgekit.benchmarks.verdict import judge, unstated_speedup
from edgekit.report.model import Row, Verdict


def run_of(samples: "np.ndarray | list[int]", **changes: object) -> Run:
    values: dict[str, object] = {
        "job_key": "k", "attempt": 1, "status": RunStatus.OK, "artifact_sha256": "a", "device_fingerprint": "f",
        "plan": Plan(), "runner_sha256": "r", "inputs_sha256": "i", "latency_ns": tuple(int(s) for s in samples),
    }  # fmt: skip
    return Run(**(values | changes))


def kinds(run: Run) -> set[str]:
    return {d.kind for d in judge_stability(run).doubts}


def test_a_calm_run_is_steady() -> None:
    """Normal noise of 2 % raises nothing: flags that always show are read by no one."""
    told = judge_stability(run_of(np.random.default_rng(1).normal(1e6, 2e4, 500)))
    assert (told.verdict, told.doubts) == (Verdict.PASS, ())


def test_calm_runs_are_rarely_called_drifting() -> None:
    """400 seeded runs of 3 % noise: none drifts, since the change must be 5 % and the test's level is 1 %."""
    rng = np.random.default_rng(4)
    assert not any("drift" in kinds(run_of(rng.normal(1e6, 3e4, 400))) for _ in range(400))


@pytest.mark.parametrize("law", ["normal", "uniform", "exponential tail"])
def test_one_mode_is_not_called_two(law: str) -> None:
    """Noise of one mode, whatever its shape, is not bimodal."""
    rng = np.random.default_rng(2)
    noise = {
        "normal": rng.normal(0, 5e4, 2000),
        "uniform": rng.uniform(-1e5, 1e5, 2000),
        "exponential tail": rng.exponential(5e4, 2000),
    }[law]
    assert "modes" not in kinds(run_of(1e6 + noise))


def troubled(kind: str) -> Run:
    rng = np.random.default_rng(3)
    calm = rng.normal(1e6, 5e3, 600)
    samples: dict[str, np.ndarray] = {
        "spread": rng.normal(1e6, 2e5, 600).clip(1e5),
        "drift": np.linspace(1e6, 1.2e6, 600) + rng.normal(0, 2e4, 600),
        "modes": np.where(rng.random(600) < 0.5, 1e6, 1.3e6) + rng.normal(0, 5e3, 600),
        "load": np.where(rng.random(600) < 0.2, 1e6, 1.15e6) + rng.normal(0, 5e3, 600),
        "few": calm[:12],
        "short": calm / 100,
    }
    return run_of(samples[kind])


@pytest.mark.parametrize("kind", ["spread", "drift", "modes", "load", "few", "short"])
def test_each_trouble_makes_a_run_noisy_and_says_what_to_do(kind: str) -> None:
    """The reason is among the doubts, decides, and has a remedy."""
    told = judge_stability(troubled(kind))
    assert told.verdict is Verdict.NOISY
    (doubt,) = [d for d in told.doubts if d.kind == kind]
    assert doubt.decides
    assert "(try: " in str(doubt)


@pytest.mark.parametrize("direction", [1, -1])
def test_a_drift_under_outliers_is_found_with_its_sign(direction: int) -> None:
    """Ranks and medians: 3 % of samples ten times as slow neither hide nor make a trend."""
    rng = np.random.default_rng(5)
    slow = np.where(rng.random(900) < 0.03, 10.0, 1.0)
    flat = rng.normal(1e6, 1e4, 900) * slow
    assert "drift" not in kinds(run_of(flat))
    trend = 1 + direction * np.linspace(0, 0.1, 900)
    (doubt,) = [d for d in judge_stability(run_of(flat * trend)).doubts if d.kind == "drift"]
    assert ("+" in doubt.told) == (direction > 0)


def test_a_few_outliers_are_told_and_do_not_make_a_run_noisy() -> None:
    """Three samples of 600 a hundred times as slow: mean and p99 are spoilt, the median is not."""
    samples = np.random.default_rng(6).normal(1e6, 1e4, 600)
    samples[[10, 200, 400]] = 1e8
    told = judge_stability(run_of(samples))
    assert [d.kind for d in told.doubts] == ["outliers"]
    assert told.verdict is Verdict.PASS


def test_a_cut_run_is_told() -> None:
    """Stopped by the clock: said, with the number of samples."""
    assert "stopped at 30 s with 200" in judge_stability(run_of([10**6] * 200, stopped_by="max_seconds")).doubts[0].told


def test_nothing_timed_is_noisy() -> None:
    """No samples, no steadiness."""
    assert judge_stability(run_of([])).verdict is Verdict.NOISY


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(min_value=0, max_value=2**62), max_size=120))
def test_any_samples_get_a_verdict(samples: list[int]) -> None:
    """Samples come from a device: zeros and giants give a verdict or make the run invalid, never an exception."""
    run = run_of(samples)
    if not invalid_reasons(run):
        assert judge_stability(run).verdict in (Verdict.PASS, Verdict.NOISY)
    elif samples:
        assert min(samples) < 1


COLD = Conditions(monotonic_ns=10, governor="performance", cpu_khz={"cpu0": 2_000_000})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"status": RunStatus.LOST, "error": "restarted\nmore"}, "the run is lost: restarted"),
        ({"latency_ns": ()}, "no samples"),
        ({"latency_ns": (0, 5)}, "0 ns"),
        ({"latency_ns": (9,) * 10, "stopped_by": "max_seconds"}, "10 of 200 samples in 30 s"),
        ({"flags": ("the limit ran out, measured all the same at 71 °C",)}, "71 °C"),
        ({"before": COLD, "after": COLD.model_copy(update={"monotonic_ns": 1})}, "restarted while it measured"),
        ({"before": COLD, "after": COLD.model_copy(update={"governor": "powersave"})}, "performance to powersave"),
        ({"before": COLD, "after": COLD.model_copy(update={"cpu_khz": {"cpu0": 10**6}})}, "from 2000 to 1000 MHz"),
    ],
)
def test_what_spoils_a_run_is_named(changes: dict[str, object], named: str) -> None:
    """Heat, a restart, other clocks, too few samples: each makes a run invalid, by its own sentence."""
    calm = run_of([10**6] * 200, before=COLD, after=COLD)
    assert invalid_reasons(calm) == ()
    (reason,) = invalid_reasons(Run(**(calm.model_dump() | changes)))
    assert named in reason


def test_a_change_between_blocks_of_samples_is_seen() -> None:
    """Slowed in the middle and quick again at the end: before and after alone would not tell."""

    slow = COLD.model_copy(update={"cpu_khz": {"cpu0": 10**6}})
    assert invalid_reasons(run_of([10**6] * 200, before=COLD, after=COLD)) == ()
    blocks = tuple(Block(samples=50, waited_ns=0, state=state) for state in (COLD, slow, COLD))
    (reason,) = invalid_reasons(run_of([10**6] * 200, before=COLD, after=COLD, blocks=blocks))
    assert "from 2000 to 1000 MHz" in reason


def test_a_harmless_flag_spoils_nothing() -> None:
    """A runner that was started again measured each phase whole."""
    assert invalid_reasons(run_of([10**6] * 200, flags=("the runner was started 2 times",))) == ()


def row_of(run: Run) -> Row:
    from edgekit.benchmarks.stats import summarize

    return Row(
        id="r", artifact="a", device="d", format="tflite", scheme="fp32", size_bytes=1, status="ok", run=run,
        latency=summarize(run.latency_ns), stability=judge_stability(run), invalid=invalid_reasons(run),
    )  # fmt: skip


def test_a_noisy_or_invalid_row_is_never_called_a_speed_up() -> None:
    """Nor one whose minima and medians tell different ratios; the gate on speed-up is NOISY there."""
    calm = row_of(run_of(np.random.default_rng(1).normal(1e6, 2e4, 500)))
    quick = row_of(run_of(np.random.default_rng(2).normal(5e5, 1e4, 500)))
    assert unstated_speedup(quick, calm) is None
    assert "NOISY: drifting" in (unstated_speedup(row_of(troubled("drift")), calm) or "")
    assert "teacher's row is NOISY" in (unstated_speedup(calm, row_of(troubled("modes"))) or "")
    hot = row_of(run_of([10**6] * 200, flags=("thermal throttling",)))
    assert "not valid" in (unstated_speedup(hot, calm) or "")
    lucky = run_of([5 * 10**5, *[10**6] * 300])
    told = unstated_speedup(row_of(lucky), calm)
    assert told is not None
    assert "by minima" in told
    from edgekit.benchmarks.values import Gates

    verdict, (gate,) = judge(quick, Gates(min_speedup=1.5), baseline=calm.latency, unstated=told)
    assert verdict is Verdict.NOISY
    assert "by minima" in gate.detail
