"""Comparing by turns: the stated error holds under looks, drift and heavy tails; every ending has its verdict."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekit.benchmarks.interleaved import LOOKS, compare_rounds, interval_of, judge_look
from edgekit.benchmarks.side_by_side import Round
from edgekit.benchmarks.values import Conditions, DeviceInfo, Plan, Run, RunStatus, RuntimeFacts
from edgekit.report.model import Verdict

INFO = DeviceInfo(spec="local", kind="local", serial="s", cores=2)
TRIALS = 3000
# A rate of 2.5 % in 3000 trials has a standard error of 0.285 %; three of them above it.
MOST = 0.025 + 3 * math.sqrt(0.025 * 0.975 / TRIALS)


def verdict_of(logs: np.ndarray, max_regress: float) -> Verdict:
    """What the looks say of log ratios of rounds; the minima are the medians here."""
    for look, count in enumerate(LOOKS):
        judged = judge_look([(float(x), float(x)) for x in logs[:count]], look, max_regress)
        if judged.verdict is not None:
            return judged.verdict
    return Verdict.NOISY


def noise(rng: np.random.Generator, law: str) -> np.ndarray:
    size = LOOKS[-1]
    if law == "normal":
        return rng.normal(0, 0.02, size)
    if law == "bursts":  # every eighth block meets something that slows it by up to half
        slowed = rng.random((2, size)) < 1 / 8
        a, b = np.where(slowed, rng.uniform(0, 0.4, (2, size)), 0.0) + rng.normal(0, 0.01, (2, size))
        return np.asarray(b - a)
    # heating: 1 % slower each block; A B, B A, … in an order that is drawn for each pair of rounds
    first = rng.integers(0, 2, size // 2)
    sign = np.stack([1 - 2 * first, 2 * first - 1], axis=1).ravel()
    return np.asarray(0.01 * sign + rng.normal(0, 0.01, size))


@pytest.mark.parametrize("law", ["normal", "bursts", "heating"])
def test_equal_artifacts_fail_no_more_often_than_stated(law: str) -> None:
    """A against A with nothing allowed, at every look: at most 2.5 % FAIL and 2.5 % PASS, whatever the noise."""
    rng = np.random.default_rng(10)
    told = [verdict_of(noise(rng, law), 0.0) for _ in range(TRIALS)]
    assert told.count(Verdict.FAIL) / TRIALS <= MOST
    assert told.count(Verdict.PASS) / TRIALS <= MOST


def test_a_single_look_of_a_plain_interval_would_not_hold() -> None:
    """The test above can fail: plain 95 % intervals looked at nine times call A slower than A in over 5 %."""
    from edgekit.benchmarks.stats import t_quantile

    rng = np.random.default_rng(11)
    wrong = 0
    for _ in range(TRIALS):
        logs = noise(rng, "normal")
        for count in LOOKS:
            part = logs[:count]
            half = t_quantile(0.975, count - 1) * float(part.std(ddof=1)) / math.sqrt(count)
            if part.mean() - half > 0:
                wrong += 1
                break
    assert wrong / TRIALS > 0.05


def test_what_is_slower_fails_and_what_is_not_passes() -> None:
    """2 % noise a round, 3 % allowed: 10 % slower always fails, 5 % quicker always passes, within the looks."""
    rng = np.random.default_rng(12)
    slow = [verdict_of(noise(rng, "normal") + math.log(1.10), 0.03) for _ in range(300)]
    quick = [verdict_of(noise(rng, "normal") + math.log(0.95), 0.03) for _ in range(300)]
    assert set(slow) == {Verdict.FAIL}
    assert set(quick) == {Verdict.PASS}


def test_the_interval_is_of_the_geometric_mean() -> None:
    """Twice as slow and half as slow are even; without spread the interval is a point."""
    two = math.log(2)
    even = interval_of([(two, two), (-two, -two)], 0)
    assert even.ratio == pytest.approx(1)
    assert even.low < 1 < even.high
    flat = interval_of([(two, 0.0)] * 4, 0)
    assert (flat.ratio, flat.low, flat.high, flat.by_min) == pytest.approx((2, 2, 2, 1))


def run_of(p50: float, seed: int, **changes: object) -> Run:
    samples = np.random.default_rng(seed).normal(p50, p50 * 0.01, 200)
    values: dict[str, object] = {
        "job_key": "k", "attempt": 1, "status": RunStatus.OK, "artifact_sha256": "a", "device_fingerprint": "f",
        "plan": Plan(), "runner_sha256": "r", "inputs_sha256": "i", "latency_ns": tuple(int(s) for s in samples),
        "runtime": RuntimeFacts(name="litert", version="2.3.0", threads=1),
        "before": Conditions(monotonic_ns=1, governor="performance"),
        "after": Conditions(monotonic_ns=2, governor="performance"),
    }  # fmt: skip
    return Run(**(values | changes))


def turns(ratio: float = 1.0, *, a: dict[str, object] | None = None, b: dict[str, object] | None = None) -> Iterator:
    for n in itertools.count():
        first, second = run_of(1e6, 2 * n, **(a or {})), run_of(1e6 * ratio, 2 * n + 1, **(b or {}))
        yield Round(first=first, second=second, turned=bool(n % 2))


def test_it_stops_at_the_first_look_that_decides() -> None:
    """30 % slower, hardly any noise: four rounds, and each was told."""
    told: list[int] = []
    done = compare_rounds(
        turns(1.3), INFO, max_regress=0.03, budget_seconds=60, on_round=lambda n, _interval: told.append(n)
    )
    assert (done.verdict, len(done.rounds), told) == (Verdict.FAIL, LOOKS[0], [1, 2, 3, 4])
    assert done.interval is not None
    assert done.interval.low < 1.3 < done.interval.high


def test_a_budget_too_small_is_noisy_and_says_so() -> None:
    """No verdict without the rounds of the first look."""

    def slow() -> Iterator[Round]:
        import time

        for turn in turns():
            time.sleep(0.2)
            yield turn

    done = compare_rounds(slow(), INFO, max_regress=0.03, budget_seconds=0.3)
    assert (done.verdict, len(done.rounds)) == (Verdict.NOISY, 1)
    assert "raise --budget" in done.reasons[0]


def test_what_no_look_decides_is_noisy_after_the_last() -> None:
    """Exactly at the limit: the looks run out."""

    def at_the_limit() -> Iterator[Round]:
        rng = np.random.default_rng(13)
        for n in itertools.count():
            ratio = 1.03 * math.exp(rng.normal(0, 0.02))
            yield Round(first=run_of(1e6, 2 * n), second=run_of(1e6 * ratio, 2 * n + 1), turned=False)

    done = compare_rounds(at_the_limit(), INFO, max_regress=0.03, budget_seconds=600)
    assert (done.verdict, len(done.rounds)) == (Verdict.NOISY, LOOKS[-1])


def test_load_on_one_of_them_is_not_a_regression() -> None:
    """B's medians are 30 % up and its minima are not: never FAIL."""
    busy = tuple([10**6] * 30 + [13 * 10**5] * 170)
    done = compare_rounds(turns(b={"latency_ns": busy}), INFO, max_regress=0.03, budget_seconds=60)
    assert done.verdict is Verdict.NOISY
    assert "by minima" in done.reasons[0]
    assert any("unsteady" in reason for reason in done.reasons)


def test_minima_and_medians_that_agree_on_the_side_decide() -> None:
    """3 times as slow by minima, 2.4 times by medians: slower for sure, by how much is not, and that is said."""
    busy = tuple([10**6] * 30 + [13 * 10**5] * 170)
    slower = tuple(3 * 10**6 + n for n in range(200))
    done = compare_rounds(
        turns(a={"latency_ns": busy}, b={"latency_ns": slower}), INFO, max_regress=0.03, budget_seconds=60
    )
    assert done.verdict is Verdict.FAIL
    assert "how much is not sure" in done.reasons[0]


@pytest.mark.parametrize(
    ("a", "b", "verdict", "named"),
    [
        ({}, {"status": RunStatus.CRASHED, "error": "SIGSEGV", "latency_ns": ()}, Verdict.FAIL, "B does not run"),
        ({"status": RunStatus.FAILED, "error": "no op"}, {}, Verdict.INCOMPARABLE, "A does not run: failed: no op"),
        (
            {},
            {"runtime": RuntimeFacts(name="litert", version="2.4", threads=1)},
            Verdict.INCOMPARABLE,
            "runtime version: 2.3.0 and 2.4",
        ),
        (
            {},
            {"after": Conditions(monotonic_ns=2, governor="powersave")},
            Verdict.NOISY,
            "governor changed from performance to powersave",
        ),
        (
            {},
            {
                "before": Conditions(monotonic_ns=1, governor="powersave"),
                "after": Conditions(monotonic_ns=2, governor="powersave"),
            },
            Verdict.INCOMPARABLE,
            "governor before: performance and powersave",
        ),
    ],
)
def test_what_was_not_measured_alike_is_refused(
    a: dict[str, object], b: dict[str, object], verdict: Verdict, named: str
) -> None:
    """The difference is named; a round that is not valid does not count and is named too."""
    done = compare_rounds(turns(a=a, b=b), INFO, max_regress=0.03, budget_seconds=60)
    assert done.verdict is verdict
    assert any(named in reason for reason in done.reasons), done.reasons


def test_a_lost_round_is_left_out_and_the_rest_decides() -> None:
    """The device restarts in round 2: five rounds are measured, four count."""

    def once_lost() -> Iterator[Round]:
        for n, turn in enumerate(turns(1.3)):
            lost = turn.first.model_copy(update={"status": RunStatus.LOST, "error": "restarted", "latency_ns": ()})
            yield Round(first=lost, second=turn.second, turned=False) if n == 1 else turn

    done = compare_rounds(once_lost(), INFO, max_regress=0.03, budget_seconds=60)
    assert (done.verdict, len(done.rounds), len(done.discarded)) == (Verdict.FAIL, 5, 1)
    assert "round 2 does not count: A: the run is lost" in done.discarded[0]


def test_a_change_between_rounds_is_refused() -> None:
    """Both changed alike from round 3 on: rounds before and after are not of one device any more."""

    def changing() -> Iterator[Round]:
        slow = {m: Conditions(monotonic_ns=i, governor="powersave") for i, m in enumerate(("before", "after"))}
        yield from itertools.islice(turns(), 2)
        yield from turns(a=dict(slow), b=dict(slow))

    done = compare_rounds(changing(), INFO, max_regress=0.0, budget_seconds=60)
    assert done.verdict is Verdict.INCOMPARABLE
    assert "changed while comparing: governor" in done.reasons[0]


def test_an_emulated_device_is_named_as_one() -> None:
    """A ratio from a board on this host's processor is no hardware's."""
    board = INFO.model_copy(update={"emulated": True, "emulation": "a container"})
    done = compare_rounds(turns(1.3), board, max_regress=0.03, budget_seconds=60)
    assert done.emulated
    assert "emulated, not a hardware latency: a container" in done.reasons


def test_a_block_begun_by_an_interrupted_call_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its phases took longer than this call did: it was not measured beside the other, and is stored but not used."""
    from edgekit.benchmarks import harness, side_by_side

    old = run_of(9e6, 1, phase_ns={"warm": 10**15})
    given = iter([old, run_of(1e6, 2), run_of(1e6, 3)])
    monkeypatch.setattr(harness, "measure", lambda *_args, **_more: next(given))
    model: Any = SimpleNamespace(passport=SimpleNamespace(name="m"))
    pair = ((model, model), (model, model))
    session: Any = SimpleNamespace(device=None, info=INFO, store=None)
    rounds = side_by_side.take_turns(session, pair, Plan(), work_dir=tmp_path, seed=0)
    turn = next(rounds)
    assert {min(turn.first.latency_ns) < 2e6, min(turn.second.latency_ns) < 2e6} == {True}
