"""Statistics against distributions whose answers are known by hand."""

import math

import numpy as np
import pytest

from edgekit.benchmarks.stats import cold_load_ns, median_interval_ranks, summarize, t_quantile
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


def test_quantiles_of_students_t_are_scipys() -> None:
    """For every number of rounds that is looked at, and the tails that are asked for."""
    from scipy.stats import t

    for df in (1, 2, 3, 5, 7, 11, 15, 23, 31, 47, 63):
        for p in (0.5, 0.9, 0.975, 0.9972, 0.99999):
            # 80 halvings from at most 2^17: the last bit is what remains
            assert t_quantile(p, df) == pytest.approx(float(t.ppf(p, df)), rel=1e-9, abs=1e-12)
    with pytest.raises(ValueError, match="no quantile"):
        t_quantile(0.4, 3)


def test_cold_load_is_the_median_of_the_sums() -> None:
    """Import + load + first inference, per process, then the median; None where nothing was measured."""
    colds = tuple(ColdStart(import_ns=i, load_ns=10, first_inference_ns=1, process_ns=999) for i in (5, 100, 7))
    assert cold_load_ns(run_of([1], cold_starts=colds)) == 18
    assert cold_load_ns(run_of([1])) is None
