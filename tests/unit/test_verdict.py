"""Gates decide by interval; comparisons refuse what was not measured alike."""

import numpy as np
import pytest

from edgekit.benchmarks.accuracy import wilson
from edgekit.benchmarks.comparison import compare_runs
from edgekit.benchmarks.pareto import pareto_front
from edgekit.benchmarks.stats import summarize
from edgekit.benchmarks.values import Conditions, DeviceInfo, Gates, Plan, Run, RunStatus, RuntimeFacts
from edgekit.benchmarks.verdict import judge, overall
from edgekit.report.model import Difference, LatencySummary, Row, Verdict


def latency(p50: int, low: int | None = None, high: int | None = None) -> LatencySummary:
    return LatencySummary(
        samples=200, min_ns=p50 - 50, p10_ns=p50, p50_ns=p50, p90_ns=p50 + 100, p99_ns=p50 + 200, mean_ns=p50,
        stdev_ns=1, p50_low_ns=low or p50, p50_high_ns=high or p50,
    )  # fmt: skip


def row(**changes: object) -> Row:
    values: dict[str, object] = {
        "id": "r", "artifact": "a", "device": "local", "format": "tflite", "scheme": "fp32", "size_bytes": 1000,
        "status": "ok", "latency": latency(10**6, 980_000, 1_020_000), "peak_rss_bytes": 50_000_000,
        "accuracy": wilson(90, 100), "agreement": wilson(950, 1000), "sqnr_db": 30.0,
        "accuracy_drop": Difference(value=0.005, low=-0.002, high=0.012),
    }  # fmt: skip
    return Row(**(values | changes))


@pytest.mark.parametrize(
    ("gates", "verdict"),
    [
        (Gates(max_accuracy_drop_pp=1.3), Verdict.PASS),
        (Gates(max_accuracy_drop_pp=1.0), Verdict.NOISY),
        (Gates(min_agreement=0.92), Verdict.PASS),
        (Gates(min_agreement=0.95), Verdict.NOISY),
        (Gates(min_agreement=0.97), Verdict.FAIL),
        (Gates(min_sqnr_db=30), Verdict.PASS),
        (Gates(min_sqnr_db=30.1), Verdict.FAIL),
        (Gates(max_p50_ms=1.02), Verdict.PASS),
        (Gates(max_p50_ms=1.01), Verdict.NOISY),
        (Gates(max_p50_ms=0.97), Verdict.FAIL),
        (Gates(max_p90_ms=1.0), Verdict.FAIL),
        (Gates(max_size_bytes=1000), Verdict.PASS),
        (Gates(max_size_bytes=999), Verdict.FAIL),
        (Gates(max_peak_rss_mb=50), Verdict.PASS),
        (Gates(max_peak_rss_mb=49.9), Verdict.FAIL),
        (Gates(min_speedup=1.9), Verdict.PASS),  # 2 ms over 0.98 to 1.02 ms: 1.96 to 2.04
        (Gates(min_speedup=2.0), Verdict.NOISY),
        (Gates(min_speedup=2.1), Verdict.FAIL),
        (Gates(), Verdict.NOT_GATED),
    ],
)
def test_the_interval_decides(gates: Gates, verdict: Verdict) -> None:
    """All on the right side passes, none fails, the limit inside is NOISY; exact numbers never are."""
    assert judge(row(), gates, baseline=latency(2 * 10**6))[0] is verdict


ALL = Gates(
    max_accuracy_drop_pp=99, min_agreement=0, min_sqnr_db=-99, max_p50_ms=99, max_p90_ms=99, max_size_bytes=9999,
    max_peak_rss_mb=99, min_speedup=0.01,
)  # fmt: skip


def test_a_failed_run_fails_every_gate() -> None:
    """Numbers of a run that crashed decide nothing, however good they look."""
    verdict, gates = judge(row(status="crashed", error="SIGSEGV\nmore"), ALL, baseline=latency(1))
    assert verdict is Verdict.FAIL
    assert {g.verdict for g in gates} == {Verdict.FAIL}
    assert len(gates) == 8
    assert "SIGSEGV" in gates[0].detail


def test_what_was_not_measured_fails_its_gate() -> None:
    """Absence is never a pass; size is always known."""
    bare = row(latency=None, accuracy_drop=None, agreement=None, sqnr_db=None, peak_rss_bytes=None)
    _, gates = judge(bare, ALL, baseline=None)
    assert [g.detail for g in gates if g.verdict is Verdict.FAIL] == ["not measured"] * 7


def test_outputs_that_are_not_finite_fail_the_accuracy_gates() -> None:
    """One NaN and accuracy is no longer a number to pass on."""
    _, gates = judge(row(non_finite=1), Gates(max_accuracy_drop_pp=99, min_agreement=0), baseline=None)
    assert {g.verdict for g in gates} == {Verdict.FAIL}


def test_an_exact_match_passes_any_sqnr() -> None:
    """Equal to the bit has no SQNR in dB and is better than any."""
    assert judge(row(sqnr_db=None, sqnr_exact=True), Gates(min_sqnr_db=200), baseline=None)[0] is Verdict.PASS


def test_latency_gates_on_emulated_devices_say_so() -> None:
    """An emulated latency is not a hardware latency, also where it passes."""
    _, (gate,) = judge(row(emulated=True), Gates(max_p50_ms=9), baseline=None)
    assert "emulated" in gate.detail
    assert gate.gate == "p50_ms <= 9 ms"


def test_the_worst_verdict_is_the_whole() -> None:
    """FAIL over NOISY over PASS; rows without a gate say nothing."""
    assert overall([Verdict.PASS, Verdict.NOISY, Verdict.FAIL]) is Verdict.FAIL
    assert overall([Verdict.PASS, Verdict.NOISY, Verdict.NOT_GATED]) is Verdict.NOISY
    assert overall([Verdict.NOT_GATED]) is Verdict.NOT_GATED


def test_the_front_holds_what_nothing_beats() -> None:
    """Dominated rows are off it, equals both on it; other devices and failed rows do not count."""
    best = row(id="best")
    twin = row(id="twin")
    small = row(id="small", size_bytes=10, latency=latency(5 * 10**6))
    worse = row(id="worse", size_bytes=2000)
    elsewhere = row(id="elsewhere", device="board", size_bytes=2000)
    crashed = row(id="crashed", size_bytes=1, status="crashed")
    assert pareto_front([best, twin, small, worse, elsewhere, crashed]) == {"best", "twin", "small", "elsewhere"}


INFO = DeviceInfo(spec="local", kind="local", serial="s", cores=2, governor="performance")


def run_of(p50: float, *, noise: float = 0.001, seed: int = 0, **changes: object) -> Run:
    samples = np.random.default_rng(seed).normal(p50, p50 * noise, 300)
    values: dict[str, object] = {
        "job_key": "k", "attempt": 1, "status": RunStatus.OK, "artifact_sha256": "a", "device_fingerprint": "f",
        "plan": Plan(), "runner_sha256": "r", "inputs_sha256": "i", "latency_ns": tuple(int(s) for s in samples),
        "runtime": RuntimeFacts(name="litert", version="2.3.0", threads=1, delegate="XNNPACK"),
        "before": Conditions(monotonic_ns=1, governor="performance"),
    }  # fmt: skip
    return Run(**(values | changes))


def test_a_slowdown_beyond_the_allowed_fails_and_within_passes() -> None:
    """10 % slower fails at 3 %, 1 % slower passes, a gain passes."""
    base = run_of(1e6)
    assert compare_runs(base, run_of(1.10e6, seed=1), INFO, INFO)[0] is Verdict.FAIL
    assert compare_runs(base, run_of(1.01e6, seed=2), INFO, INFO)[0] is Verdict.PASS
    assert compare_runs(base, run_of(0.5e6, seed=3), INFO, INFO)[0] is Verdict.PASS


def test_noise_that_hides_the_answer_is_said() -> None:
    """3 % slower with 20 % noise on both: the interval holds the limit."""
    verdict, detail = compare_runs(run_of(1e6, noise=0.2), run_of(1.03e6, noise=0.2, seed=1), INFO, INFO)
    assert verdict is Verdict.NOISY
    assert detail.ratio_low is not None
    assert detail.ratio_high is not None
    assert detail.ratio_low < 1.03 < detail.ratio_high


def test_load_on_one_run_is_not_a_regression() -> None:
    """Medians 30 % apart and minima equal: the machine was busy, the model did not change."""
    busy = np.concatenate([np.full(30, 10**6), np.full(270, 13 * 10**5)])
    verdict, detail = compare_runs(run_of(1e6), run_of(1, latency_ns=tuple(int(s) for s in busy)), INFO, INFO)
    assert verdict is Verdict.NOISY
    assert any("minima" in reason for reason in detail.reasons)
    assert detail.ratio is None, "a ratio that may be load is not stated"


@pytest.mark.parametrize(
    ("changes", "info", "named"),
    [
        ({"plan": Plan(threads=2)}, INFO, "threads asked for: 1 and 2"),
        ({"plan": Plan(delegate="none")}, INFO, "delegate asked for: default and none"),
        ({"plan": Plan(cores=(1,))}, INFO, "cores: None and (1,)"),
        ({"runtime": RuntimeFacts(name="litert", version="2.4", threads=1, delegate="XNNPACK")}, INFO, "2.3.0 and 2.4"),
        ({"runtime": RuntimeFacts(name="litert", version="2.3.0", threads=1)}, INFO, "delegate: XNNPACK and None"),
        ({"runtime": RuntimeFacts(name="onnxruntime", version="1", threads=1)}, INFO, "litert and onnxruntime"),
        ({"before": Conditions(monotonic_ns=1, governor="powersave")}, INFO, "performance and powersave"),
        ({}, INFO.model_copy(update={"cores": 4}), "device cores: 2 and 4"),
    ],
)
def test_unlike_conditions_refuse_to_be_compared(changes: dict[str, object], info: DeviceInfo, named: str) -> None:
    """Each difference is named with both values; no ratio is given."""
    verdict, detail = compare_runs(run_of(1e6), run_of(1e6, **changes), INFO, info)
    assert verdict is Verdict.INCOMPARABLE
    assert detail.ratio is None
    assert any(named in reason for reason in detail.reasons), detail.reasons


def test_a_reboot_between_two_runs_does_not_refuse() -> None:
    """The boot id is no condition of measuring."""
    rebooted = INFO.model_copy(update={"boot_id": "b"})
    assert compare_runs(run_of(1e6), run_of(1e6), INFO, rebooted)[0] is Verdict.PASS


def test_the_summary_of_a_compared_run_is_the_reports() -> None:
    """Comparison and table must not disagree about a median."""
    run = run_of(1e6)
    _, detail = compare_runs(run, run, INFO, INFO)
    assert detail.ratio == 1
    assert summarize(run.latency_ns).p50_ns > 0
