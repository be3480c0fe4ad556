"""Statistics against distributions whose answers are known by hand."""

import math

import numpy as np
import pytest

from edgekit.benchmarks.stats import cold_load_ns, doubts, median_interval_ranks, summarize
from edgekit.benchmarks.values import ColdStart, Plan, Run, RunStatus


def run_of(samples: "np.ndarray | list[int]", **changes: object) -> Run:
    values: dict[str, object] = {
        "job_key": "k",
        "attempt": 1,
        "status": RunStatus.OK,
        "artifact_sha256": "a",
        "device_fingerprint": "f",
        "plan": Plan(),
        "runner_sha256": "r",
        "inputs_sha256": "i",
        "latency_ns": tuple(int(s) for s in samples),
    }
    return Run(**(values | changes))


def test_percentiles_of_one_to_a_hundred_and_one() -> None:
    """1..101: the k-th percentile is k + 1, mean and median 51."""
    s = summarize(list(range(101, 0, -1)))
    assert (s.min_ns, s.p10_ns, s.p50_ns, s.p90_ns, s.p99_ns, s.mean_ns, s.samples) == (1, 11, 51, 91, 100, 51, 101)
    assert s.stdev_ns == round(math.sqrt(101 * 102 / 12))  # of the integers 1..n with n - 1: sqrt(n (n + 1) / 12)


@pytest.mark.parametrize(
    ("n", "first", "last"), [(6, 1, 6), (10, 2, 9), (15, 4, 12), (20, 6, 15), (25, 8, 18), (50, 18, 33)]
)
def test_the_interval_of_the_median_has_the_published_ranks(n: int, first: int, last: int) -> None:
    """Ranks (from 1) of the 95 % interval as tabulated for the sign test (Conover, Practical Nonparametric Statistics,
    3rd edition, section 3.2)."""
    low, high = median_interval_ranks(n)
    assert (low + 1, high + 1) == (first, last)


def test_the_interval_covers_at_least_95_percent_and_no_rank_less_would() -> None:
    """By the binomial itself, for every n to 60; and the normal limit joins on at 1000 within one rank."""
    for n in range(6, 61):
        low, high = median_interval_ranks(n)
        assert high == n - 1 - low
        outside = 2 * sum(math.comb(n, k) for k in range(low + 1)) / 2**n
        narrower = 2 * sum(math.comb(n, k) for k in range(low + 2)) / 2**n
        assert outside <= 0.05 < narrower
    assert abs(median_interval_ranks(1000)[0] - median_interval_ranks(1001)[0]) <= 1


def test_the_interval_holds_the_true_median_19_times_of_20() -> None:
    """A thousand seeded samples of a skewed law (log-normal, median 1000): at least 93.6 % cover.

    The true rate is at least 95 %; 2000 trials put its standard error at 0.5 %, 93.6 % is three below.
    """
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        s = summarize(np.round(1e6 * rng.lognormal(size=41)).astype(np.int64))
        hits += s.p50_low_ns <= 1e6 <= s.p50_high_ns
    assert hits / 2000 >= 0.936


def test_few_samples_give_the_whole_range() -> None:
    """Below six samples nothing narrower reaches 95 %; one sample is its own interval."""
    s = summarize([3, 1, 2])
    assert (s.p50_low_ns, s.p50_high_ns) == (1, 3)
    assert summarize([7]).stdev_ns == 0


def test_a_calm_run_has_no_doubts() -> None:
    """Normal noise of 2 % raises nothing: flags that always show are read by no one."""
    assert doubts(run_of(np.random.default_rng(1).normal(1e6, 2e4, 500))) == ()


@pytest.mark.parametrize("law", ["normal", "uniform", "exponential tail"])
def test_one_mode_is_not_called_two(law: str) -> None:
    """Noise of one mode, whatever its shape, is not bimodal."""
    rng = np.random.default_rng(2)
    noise = {
        "normal": rng.normal(0, 5e4, 2000),
        "uniform": rng.uniform(-1e5, 1e5, 2000),
        "exponential tail": rng.exponential(5e4, 2000),
    }[law]
    assert not any("two modes" in d for d in doubts(run_of(1e6 + noise)))


def test_each_kind_of_trouble_is_named() -> None:
    """Noise, drift, two modes, few samples, a cut-off run: each has its sentence."""
    rng = np.random.default_rng(3)
    assert "noisy" in doubts(run_of(rng.normal(1e6, 2e5, 500)))[0]
    drifting = np.linspace(1e6, 1.2e6, 600)
    assert any("drifting" in d for d in doubts(run_of(drifting)))
    modes = np.where(rng.random(600) < 0.5, 1e6, 1.3e6) + rng.normal(0, 5e3, 600)
    assert any(d.startswith("two modes: 1000 µs and 1300 µs") for d in doubts(run_of(modes.round(-4))))
    assert doubts(run_of([10**6] * 12)) == ("only 12 samples",)
    assert "stopped at 30 s" in doubts(run_of([10**6] * 60, stopped_by="max_seconds"))[0]


def test_cold_load_is_the_median_of_the_sums() -> None:
    """Import + load + first inference, per process, then the median; None where nothing was measured."""
    colds = tuple(ColdStart(import_ns=i, load_ns=10, first_inference_ns=1, process_ns=999) for i in (5, 100, 7))
    assert cold_load_ns(run_of([1], cold_starts=colds)) == 18
    assert cold_load_ns(run_of([1])) is None
