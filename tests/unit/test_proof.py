"""Whether a step paid: the judgement, what is judged together, and where it shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgekit.artifact import Effect, Format, LineageStep, Scheme, StepProof, StepVerdict
from edgekit.benchmarks.stats import stated_ratio
from edgekit.compress.proof import FASTER, groups_of, judge
from edgekit.recipe import Recipe, Step
from edgekit.report.html import render_page
from edgekit.report.markdown import render_markdown
from edgekit.report.sections import judged_text, steps
from edgekit.report.text import render_table
from edgekit.schema import parse_record
from tests.support.report_fixture import example_report

DENSE = Effect(
    parameters=1000, macs=9000, size_bytes=4000, accuracy=0.90, samples=10_000, nonzero_parameters=1000,
    file_bytes=5000, packed_bytes=3000, memory_bytes=100_000, latency_min_ns=1000, latency_p50_ns=1100,
)  # fmt: skip


def changed(**values: Any) -> Effect:
    return DENSE.model_copy(update=values)


def kinds(*names: str) -> list[Step]:
    return [Step.model_validate({name: {"ratio": 0.5} if name == "sense" else {}}) for name in names]


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        ((), ()),
        (("prune",), ((0,),)),
        (("prune", "distill"), ((0, 1),)),
        (("prune", "distill", "finetune", "prune", "finetune"), ((0, 1, 2), (3, 4))),
        (("prune", "share", "finetune"), ((0, 1, 2),)),
        (("finetune", "distill", "prune"), ((0, 1), (2,))),
        (("prune", "distill", "qat"), ((0, 1), (2,))),
        (("qat",), ((0,),)),
    ],
)
def test_a_compression_is_judged_with_the_training_behind_it(
    names: tuple[str, ...], groups: tuple[tuple[int, ...], ...]
) -> None:
    assert groups_of(kinds(*names)) == groups


@given(st.lists(st.sampled_from(["prune", "share", "distill", "finetune"]), max_size=8))
def test_groups_are_a_partition_in_order(names: list[str]) -> None:
    """Every step is in exactly one group, and training never opens one behind a compression."""
    groups = groups_of(kinds(*names))
    assert [index for group in groups for index in group] == list(range(len(names)))
    for group in groups[1:]:
        assert names[group[0]] in ("prune", "share")


@pytest.mark.parametrize(
    ("after", "speedups", "verdict", "said"),
    [
        (changed(parameters=500, macs=4000, file_bytes=2600), (2.0, 2.1), StepVerdict.PAID, "2.10x faster on d"),
        (changed(parameters=500, macs=4000, accuracy=0.88), (2.0, 2.1), StepVerdict.NOT_PAID, "2.00 points"),
        (changed(nonzero_parameters=100, packed_bytes=700), (1.0, 1.0), StepVerdict.SIZE_ONLY, "multiply by zeros"),
        (changed(nonzero_parameters=900), (1.0, 1.0), StepVerdict.NOT_PAID, "neither smaller"),
        (changed(parameters=500, macs=4000, file_bytes=2600), (2.1, 1.3), StepVerdict.SIZE_ONLY, "2.10x by the minima"),
        (changed(parameters=990, macs=4000), (1.0, 1.0), StepVerdict.NOT_PAID, "2.25x fewer MACs"),
        (changed(accuracy=0.92), (1.0, 1.0), StepVerdict.PAID, r"accuracy \+2.00"),
        (changed(accuracy=0.901), (1.0, 1.0), StepVerdict.NOT_PAID, "chance"),
        (changed(accuracy=None), (1.0, 1.0), StepVerdict.NOT_PAID, "not measured"),
        (changed(memory_bytes=50_000), (1.0, 1.0), StepVerdict.NOT_PAID, "neither smaller"),
    ],
    ids=[
        "faster", "accuracy lost", "zeros", "few zeros", "too noisy", "fewer MACs only", "trained", "trained in vain",
        "unknown", "memory alone is noise",
    ],
)  # fmt: skip
def test_the_verdict_and_its_reason(
    after: Effect, speedups: tuple[float, float], verdict: StepVerdict, said: str
) -> None:
    found, reason = judge(DENSE, after, speedups=speedups, max_drop_points=1.0, device="d")
    assert found is verdict
    assert re.search(said, reason), reason


@given(st.floats(0.2, 20), st.floats(0.2, 20))
def test_no_speed_up_is_stated_where_minima_and_medians_differ(by_min: float, by_p50: float) -> None:
    """By more than a tenth of the median's; and a step is never PAID for speed that is not stated."""
    stated = stated_ratio(by_min, by_p50)
    assert (stated is None) == (abs(by_min / by_p50 - 1) > 0.10)
    verdict, _ = judge(DENSE, changed(parameters=500), speedups=(by_min, by_p50), max_drop_points=1.0)
    assert (verdict is StepVerdict.PAID) == (stated is not None and stated >= FASTER)


def proof(**changes: Any) -> StepProof:
    values: dict[str, Any] = {
        "verdict": StepVerdict.SIZE_ONLY, "reason": "packed <4x> smaller", "judged_with": ("prune", "distill"),
        "format": Format.TFLITE, "scheme": Scheme.FP32, "device": "local", "speedup": 1.0, "speedup_min": 1.0,
        "speedup_p50": 1.0,
    }  # fmt: skip
    return StepProof(**{**values, **changes})


def test_every_view_says_whether_a_step_paid() -> None:
    """Terminal, Markdown and page; texts of a device or user are escaped there as everywhere."""
    step = LineageStep(step="prune", summary="s", before=DENSE, after=changed(packed_bytes=700), proof=proof())
    report = example_report().model_copy(update={"lineage": (step,)})
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_table(report))
    assert "prune: SIZE-ONLY: packed <4x> smaller (tflite fp32; prune + distill judged as one)" in " ".join(
        console.export_text().split()
    )
    assert "SIZE-ONLY" in render_markdown(report)
    page = render_page(report, "")
    assert "SIZE-ONLY" in page
    assert "packed &lt;4x&gt; smaller" in page
    assert "<4x>" not in page


def test_a_lineage_shows_what_was_measured_and_no_ratio_that_is_noise() -> None:
    quiet = LineageStep(step="p", summary="", before=DENSE, after=changed(latency_min_ns=500, latency_p50_ns=550))
    noisy = LineageStep(step="p", summary="", before=DENSE, after=changed(latency_min_ns=500, latency_p50_ns=1000))
    effects = [{c.name: c.effect for c in found.changes} for found in steps((quiet, noisy))]
    assert effects[0]["Latency, median"] == "2.00× less"
    assert effects[1]["Latency, median"] == effects[1]["Latency, minimum"] == "not told: minimum and median differ"
    assert "Packed" in effects[0]
    assert judged_text(proof(dropped=True)).endswith("dropped from the student)")


def test_a_lineage_of_before_is_still_read() -> None:
    """Passports and reports written without the new fields."""
    old = '{"step":"prune","summary":"s","before":{"parameters":3,"accuracy":0.5},"after":{"parameters":2}}'
    step = parse_record(LineageStep, old)
    assert step.proof is None
    assert step.before is not None
    assert step.before.latency_min_ns is None


def test_keeping_only_what_paid_needs_a_proof() -> None:
    student = [{"prune": {}, "keep_if_paid": True}]
    with pytest.raises(ValueError, match=r"proof: \{\}"):
        Recipe.model_validate({"name": "a", "workload": "w", "student": student})
    assert (
        Recipe.model_validate({"name": "a", "workload": "w", "student": student, "proof": {}}).student[0].keep_if_paid
    )
    assert Step.model_validate({"prune": {}, "keep_if_paid": True}).kind == "prune"


def test_steps_that_did_not_pay_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student is the one before them, and the report still tells of them; other groups stay."""
    from edgekit.pipeline import learning
    from edgekit.pipeline.run import RunOptions, open_run

    recipe = Recipe.model_validate(
        {
            "name": "digits", "workload": "workload.py:workload", "params": {"limit": 200}, "proof": {},
            "teacher": {"train": {"epochs": 1, "threads": 1}},
            "student": [
                {"finetune": {"epochs": 1, "threads": 1}},
                {"prune": {"round_to": 1}, "keep_if_paid": True},
                {"distill": {"epochs": 1, "threads": 1}},
            ],
        }
    )  # fmt: skip
    base = Path(__file__).parents[1] / "support" / "digits"
    context = open_run(recipe, RunOptions(workspace=tmp_path, base=base))

    def judged(_context: Any, _teacher: Any, chain: Any) -> tuple[LineageStep, ...]:
        lost = len(chain) == 3
        verdict = StepVerdict.NOT_PAID if lost else StepVerdict.PAID
        told = proof(verdict=verdict)
        return tuple(made.student.lineage[-1].model_copy(update={"proof": told}) for made in chain[1:])

    monkeypatch.setattr(learning, "prove", judged)
    learned = learning.learn(context)
    assert [step.step for step in learned.lineage] == ["finetune", "prune", "distill"]
    assert [step.proof.dropped for step in learned.lineage if step.proof] == [False, True, True]
    assert [step.step for step in learned.student.lineage] == ["finetune"]
    assert learned.student.edits == ()
    assert learned.student_stage.name == "1-finetune"
    assert any("dropped, it did not pay" in warned.text for warned in context.warnings)
