"""Activation ranges: what an observer remembers, the range each rule finds, and which rules a model takes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekit.artifact import RangeRule
from edgekit.converters.ranges import (
    LEAST_GAIN_DB,
    FoldedObserver,
    Range,
    RangeObserver,
    choose_ranges,
    fold_count,
    judging_samples,
)

FLOATS = arrays.arrays(
    np.float32,
    st.integers(0, 40),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True),
)
RULES = (RangeRule.MINMAX, RangeRule.PERCENTILE, RangeRule.MSE)


def observed(*values: np.ndarray) -> RangeObserver:
    observer = RangeObserver()
    for array in values:
        observer.update(array)
    return observer


def everything(observer: RangeObserver) -> tuple[object, ...]:
    """All an observer's answers depend on."""
    ranges = [observer.range_of(rule, bits=bits) for rule in RULES for bits in (8, 16)]
    return (observer.lowest, observer.highest, observer.count, observer.zeros, *ranges)


def heavy_tailed(count: int = 50_000, seed: int = 0) -> np.ndarray:
    """Mostly small values, a few 40 times larger: where clipping pays."""
    values = np.random.default_rng(seed).standard_normal(count)
    values[:5] *= 40
    return values.astype(np.float32)


def quantized(values: np.ndarray, low: float, high: float, bits: int = 8) -> np.ndarray:
    """Values after asymmetric quantization over the range, as runtimes do it."""
    step = (high - low) / (2**bits - 1)
    zero = np.rint(-low / step)
    return (np.clip(np.rint(values / step) + zero, 0, 2**bits - 1) - zero) * step


@settings(deadline=None, max_examples=60)
@given(st.lists(FLOATS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(samples: list[np.ndarray], random: object) -> None:
    """Calibration on the same samples in another order gives the very same ranges."""
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert everything(observed(*samples)) == everything(observed(*shuffled))


@settings(deadline=None, max_examples=60)
@given(st.lists(FLOATS, min_size=1, max_size=5))
def test_samples_one_by_one_are_as_good_as_all_at_once(samples: list[np.ndarray]) -> None:
    """Bins that merge when the range grows give the same histogram as if the range had been known."""
    assert everything(observed(*samples)) == everything(observed(np.concatenate(samples)))


@settings(deadline=None, max_examples=60)
@given(FLOATS)
def test_extremes_are_exact_and_every_range_holds_zero(values: np.ndarray) -> None:
    """Min/max is exact to the bit, widened to zero only; no rule gives a range beyond it or without zero."""
    observer = observed(values)
    low, high = min(0.0, float(values.min(initial=0))), max(0.0, float(values.max(initial=0)))
    assert observer.range_of(RangeRule.MINMAX, bits=8) == (low, high)
    assert (observer.count, observer.zeros) == (values.size, int(np.sum(values == 0)))
    for rule in RULES:
        found = observer.range_of(rule, bits=8)
        assert low <= found[0] <= 0 <= found[1] <= high
        reach = observer.range_of(rule, bits=8, symmetric=True)
        assert reach[0] == -reach[1]


@settings(deadline=None, max_examples=60)
@given(FLOATS, st.sampled_from([4, 8, 16]), st.booleans())
def test_the_least_error_is_never_worse_than_min_max(values: np.ndarray, bits: int, symmetric: bool) -> None:
    """MSE wins or draws on its own measure."""
    observer = observed(values)
    best, exact = (
        observer.error_of(observer.range_of(rule, bits=bits, symmetric=symmetric), bits=bits)
        for rule in (RangeRule.MSE, RangeRule.MINMAX)
    )
    # sums of up to 40 squares in another order: a few units in the last place of 2^-52
    assert best <= exact * (1 + 1e-9)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentiles_are_numpys(percentile: float) -> None:
    """Half of what is left out lies beyond each end, to the width of one bin."""
    values = heavy_tailed()
    observer = observed(*np.array_split(values, 7))
    tail = (100 - percentile) / 2
    wanted = np.percentile(values, [tail, 100 - tail], method="inverted_cdf")
    # the range is cut at bin borders; at most 4096 bins, a power of two wide, cover it: no bin is wider than this
    width = 2 * float(values.max() - values.min()) / 4094
    assert observer.range_of(RangeRule.PERCENTILE, bits=8, percentile=percentile) == pytest.approx(wanted, abs=width)


def test_a_relu_keeps_zero_as_its_end() -> None:
    """Where nothing is negative, no rule spends integers on negative numbers."""
    observer = observed(np.maximum(heavy_tailed(), 0))
    assert all(observer.range_of(rule, bits=8)[0] == 0.0 for rule in RULES)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_foretold_error_is_the_real_one(symmetric: bool) -> None:
    """`error_of` agrees with quantizing the values themselves, so that what is least is least in truth."""
    values = heavy_tailed()
    observer = observed(values)
    for rule in RULES:
        low, high = observer.range_of(rule, bits=8, symmetric=symmetric)
        real = float(np.mean((quantized(values, low, high) - values) ** 2))
        # the model takes rounding as uniform in a step, where the density of a normal distribution is not flat over
        # the widest steps here (0.9 sigma): 12 % at most
        assert observer.error_of((low, high), bits=8) == pytest.approx(real, rel=0.12)


def test_clipping_wins_where_the_tail_is_heavy() -> None:
    """On such values the least-error range loses an eighth of what min/max does, on the values themselves."""
    values = heavy_tailed()
    observer = observed(values)
    errors = {
        rule: float(np.mean((quantized(values, *observer.range_of(rule, bits=8)) - values) ** 2)) for rule in RULES
    }
    # min/max: a step of 0.7 at least, 0.04 mean square; the least-error range has to trade five outliers for it
    assert errors[RangeRule.MSE] < errors[RangeRule.MINMAX]
    assert errors[RangeRule.MSE] <= errors[RangeRule.PERCENTILE] * 1.05


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    """One NaN would spoil every later range: it raises, and what was seen before stays as it was."""
    observer = observed(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="NaN or infinite"):
        observer.update(np.array([1.0, bad], np.float32))
    assert everything(observer) == everything(observed(np.ones(3, np.float32)))


def test_a_tensor_of_zeros_has_an_empty_range() -> None:
    """Nothing but zeros, or nothing at all: every rule says (0, 0) and the error is none."""
    for observer in (observed(np.zeros(9, np.float32)), RangeObserver()):
        assert all(observer.range_of(rule, bits=8) == (0.0, 0.0) for rule in RULES)
        assert observer.error_of((0.0, 0.0), bits=8) == 0.0


def test_auto_is_no_rule_of_one_tensor() -> None:
    """AUTO needs the model: asking one observer for it is a mistake that is told."""
    with pytest.raises(ValueError, match="choose_ranges"):
        observed(np.ones(3)).range_of(RangeRule.AUTO, bits=8)


def test_other_number_types_are_taken() -> None:
    """Integers, booleans, float16 and float64 count as their values; the same values give the same ranges."""
    values = np.arange(-5, 6)
    wanted = everything(observed(values.astype(np.float32)))
    for dtype in (np.int8, np.int64, np.float16, np.float64):
        assert everything(observed(values.astype(dtype))) == wanted
    assert observed(np.array([True, False])).range_of(RangeRule.MINMAX, bits=8) == (0.0, 1.0)


def test_the_memory_of_an_observer_is_bounded() -> None:
    """It is kept for every tensor of a model: 4096 bins at most, whatever was seen and in whatever order."""
    values, observer = heavy_tailed(100_000), RangeObserver()
    for scale in (1.0, 1e-3, 1e3, 1e-6, 1.0):
        observer.update(values * np.float32(scale))
        assert observer._counts.size <= 4096


@settings(deadline=None, max_examples=60)
@given(st.lists(FLOATS, min_size=1, max_size=9), st.integers(1, 4))
def test_folds_together_are_as_good_as_one_observer(samples: list[np.ndarray], folds: int) -> None:
    """Merged folds answer as one observer of all samples; without one fold, as one of the samples of the others."""
    folded = FoldedObserver(folds)
    for index, values in enumerate(samples):
        folded.update(values, index)
    assert everything(folded.seen()) == everything(observed(*samples))
    if folds > 1:
        others = observed(*(values for index, values in enumerate(samples) if index % folds != 1))
        wanted = others if others.lowest < others.highest else observed(*samples)
        assert everything(folded.seen(without=1)) == everything(wanted)


def folded(*values: np.ndarray, folds: int = 1) -> FoldedObserver:
    made = FoldedObserver(folds)
    for index, array in enumerate(values):
        made.update(array, index)
    return made


def observers() -> dict[str, FoldedObserver]:
    """Six tensors with tails of different weight; with 4 bits the least-error range clips the heavier ones."""
    found = {}
    for index in range(6):
        values = np.random.default_rng(index).standard_normal(4000)
        values[:3] *= 9 + 8 * index
        found[f"t{index}"] = folded(values.astype(np.float32))
    return found


def distance(ranges: Mapping[str, Range], liked: Mapping[str, Range]) -> float:
    """How far the ends of these ranges are from those a model likes, all together."""
    return sum(abs(ranges[name][end] - liked[name][end]) for name in liked for end in (0, 1))


def wishes(wanted: Mapping[str, RangeRule]) -> tuple[dict[str, FoldedObserver], dict[str, Range]]:
    """The tensors, and the ranges of a model that is best with a rule of its own for each of them."""
    found = observers()
    return found, {name: found[name].seen().range_of(rule, bits=4) for name, rule in wanted.items()}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(RULES), min_size=6, max_size=6), st.integers(1, 8))
def test_auto_is_never_much_worse_than_the_best_rule_for_all(rules: list[RangeRule], trials: int) -> None:
    """Whatever the model likes, AUTO scores at least as high as min/max, and within what a rule must gain as high as
    each other one; it says so truly, and asks no more than three times, the trials and the last round."""
    found, liked = wishes({f"t{index}": rule for index, rule in enumerate(rules)})
    asked: list[float] = []

    def score(ranges: Mapping[str, Range], fold: int | None) -> float:
        assert fold is None
        asked.append(-distance(ranges, liked))
        return asked[-1]

    choice = choose_ranges(found, score, rule=RangeRule.AUTO, bits=4, trials=trials)
    assert len(asked) <= 3 + trials + 2 * 2 * 5
    reached = score(choice.ranges, None)
    assert reached == choice.compared["chosen"]
    for rule in RULES:
        alone = score({name: observer.seen().range_of(rule, bits=4) for name, observer in found.items()}, None)
        assert reached >= alone - (0 if rule is RangeRule.MINMAX else LEAST_GAIN_DB)
    assert sum(choice.per_tensor.values()) == len(found)


def test_auto_mixes_rules_where_no_rule_suits_every_tensor() -> None:
    """Where some tensors want min/max and others the least error, AUTO gives each kind its own and beats every rule
    alone."""
    found, liked = wishes({f"t{index}": RangeRule.MINMAX if index == 5 else RangeRule.MSE for index in range(6)})
    choice = choose_ranges(found, lambda ranges, _: -distance(ranges, liked), rule=RangeRule.AUTO, bits=4)
    assert len(choice.per_tensor) > 1
    assert choice.compared["per tensor"] > max(choice.compared[rule.value] for rule in RULES)


def test_fixed_tensors_keep_their_rule() -> None:
    """A user's rule for one tensor is followed whatever is chosen for the rest, and never scored away."""
    found = observers()
    for rule in (RangeRule.AUTO, RangeRule.MINMAX):
        fixed = {"t3": RangeRule.PERCENTILE}
        choice = choose_ranges(found, lambda ranges, _: ranges["t3"][1], rule=rule, bits=4, fixed=fixed)
        assert choice.rules["t3"] is RangeRule.PERCENTILE
        assert choice.ranges["t3"] == found["t3"].seen().range_of(RangeRule.PERCENTILE, bits=4)


def test_a_rule_that_was_asked_for_is_not_scored() -> None:
    """Only AUTO costs runs of the model."""

    def never(_: Mapping[str, Range], __: int | None) -> float:
        raise AssertionError("scored")

    choice = choose_ranges(observers(), never, rule=RangeRule.MSE, bits=4)
    assert choice.per_tensor == {"mse": 6}
    assert choice.compared == {}


FEW, MANY = LEAST_GAIN_DB / 2, LEAST_GAIN_DB * 2


@pytest.mark.parametrize(
    ("on_folds", "on_all", "taken"),
    [
        ((FEW,) * 4, MANY, RangeRule.MINMAX),  # too little where it was not made
        ((MANY,) * 4, FEW, RangeRule.MINMAX),  # with the ranges of all samples it does not hold
        ((MANY * 4, MANY * 4, MANY * 4, -MANY * 8), MANY, RangeRule.MINMAX),  # one fold pays for the others
        ((MANY,) * 4, MANY, RangeRule.MSE),
    ],
)
def test_clipping_must_win_everywhere(on_folds: tuple[float, ...], on_all: float, taken: RangeRule) -> None:
    """A rule that clips must gain enough on samples its ranges were not made from, and with the ranges it ends with."""
    found = folded(*(heavy_tailed(seed=seed) * (1 + seed) for seed in range(4)), folds=4)
    clipped = {fold: found.seen(without=fold).range_of(RangeRule.MSE, bits=8) for fold in (None, 0, 1, 2, 3)}

    def score(ranges: Mapping[str, Range], fold: int | None) -> float:
        if ranges["x"] != clipped[fold]:
            return 30.0
        return 30.0 + (on_all if fold is None else on_folds[fold])

    choice = choose_ranges({"x": found}, score, rule=RangeRule.AUTO, bits=8)
    assert choice.rules == {"x": taken}
    assert choice.ranges == {"x": found.seen().range_of(taken, bits=8)}
    assert choice.compared["mse"] == pytest.approx(30.0 + sum(on_folds) / 4)


def test_a_wider_range_is_taken_where_it_measures_better() -> None:
    """The last round: the whole range two percent wider, where the model answers best then; a held one stays."""
    found = {"x": folded(heavy_tailed(seed=1)), "y": folded(heavy_tailed(seed=2))}
    low, high = found["x"].seen().range_of(RangeRule.MINMAX, bits=8)

    def score(ranges: Mapping[str, Range], _: int | None) -> float:
        return 30.0 - 100 * abs(ranges["x"][1] / high - 1.02)

    choice = choose_ranges(found, score, rule=RangeRule.AUTO, bits=8, fixed={"y": RangeRule.MINMAX})
    assert choice.ranges["x"] == (low * 1.02, high * 1.02)
    assert choice.ranges["y"] == found["y"].seen().range_of(RangeRule.MINMAX, bits=8)
    assert choice.compared["chosen"] == choice.compared["2% wider"] > 29.9


def test_folds_that_saw_nothing_are_not_used() -> None:
    """A tensor that is zero in all folds but one has no range there: it is tried with that of all of them."""
    whole = folded(heavy_tailed(), np.zeros(8, np.float32), folds=2)
    tried: list[Range] = []

    def score(ranges: Mapping[str, Range], _: int | None) -> float:
        tried.append(ranges["x"])
        return 30.0

    choose_ranges({"x": whole}, score, rule=RangeRule.AUTO, bits=8)
    assert all(low < high for low, high in tried)


def test_samples_are_dealt_into_folds() -> None:
    """Each sample judges the ranges of the other folds; too few are one fold; at most so many judge."""
    assert fold_count(7) == 1
    assert judging_samples(7, 32) == ((0, 1, 2, 3, 4, 5, 6),)
    assert judging_samples(10, 32) == ((0, 4, 8), (1, 5, 9), (2, 6), (3, 7))
    assert judging_samples(200, 8) == ((0, 4), (1, 5), (2, 6), (3, 7))
