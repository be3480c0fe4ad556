"""How each number was made: the footnote that lets a reader trust or doubt it."""

from __future__ import annotations

from edgekit.benchmarks.values import Plan
from edgekit.report import quantities as q
from edgekit.report.headline import RULE
from edgekit.report.model import Report

__all__ = ["methods"]


def methods(report: Report) -> tuple[tuple[str, str], ...]:
    """(term, explanation) pairs, with the plan's own numbers where every row was measured by one plan."""
    return (
        ("Latency", _latency(report)),
        (
            "Percentiles",
            "From every raw sample of the run, interpolated linearly between the two nearest; no outlier is removed. "
            "The interval of the median is by order statistics and holds for samples that do not depend on each other.",
        ),
        ("Cold load", _cold(report)),
        (
            "Peak RSS",
            "Highest resident memory (VmHWM) of a separate process that only runs this model. “Model” is that "
            "peak less what the process held after the runtime was imported and before the model was opened.",
        ),
        (
            "Accuracy, agreement",
            "The whole evaluation set goes through the device in a pass that is never timed; outputs are compared on "
            "the host. Intervals are Wilson 95 %. Agreement counts inputs whose top-1 equals the PyTorch teacher's.",
        ),
        (
            "SQNR",
            "10·log₁₀(Σ ref² / Σ (ref − out)²) of the device's outputs against the same model in PyTorch fp32, "
            "over the evaluation set. “exact” means equal to the bit.",
        ),
        ("KL", "Mean KL(teacher ‖ artifact) of the softmax of the outputs, in nats."),
        ("Speed-up", "p50 of the teacher's own file on the same device, divided by this p50."),
        (
            "Pareto front",
            "Rows of one device for which no other row is at least as accurate, as fast and as small, "
            "and better in one.",
        ),
        ("Headline", RULE),
        (
            "Pictures",
            "Drawn from histograms and medians of stretches, not from every sample; "
            "the raw samples are in report.json.",
        ),
        (
            "Emulated",
            "A latency measured under emulation shows that the model runs there, not how fast the hardware is.",
        ),
    )


def _plan(report: Report) -> Plan | None:
    """The plan, where all rows share one."""
    plans = {r.run.plan.model_dump_json(): r.run.plan for r in report.rows if r.run}
    return next(iter(plans.values())) if len(plans) == 1 else None


def _latency(report: Report) -> str:
    text = (
        "Wall time of one inference, numpy inputs in and numpy outputs out, in a process that does nothing else, "
        "after warm-up."
    )
    plan = _plan(report)
    if plan is None:
        return text
    threads = "1 thread" if plan.threads == 1 else f"{plan.threads} threads"
    pinned = f", pinned to CPU {', '.join(map(str, plan.cores))}" if plan.cores else ", not pinned"
    return (
        f"{text} Plan: {threads}{pinned}, delegate {plan.delegate}; at least {plan.warmup_min_runs} warm-up runs; then "
        f"at least {plan.min_samples} samples and {q.significant(plan.min_seconds)} s, at most "
        f"{q.significant(plan.max_seconds)} s."
    )


def _cold(report: Report) -> str:
    text = "Import of the runtime, load of the model and first inference, each time in a fresh process; median"
    plan = _plan(report)
    of = f" of {plan.cold_starts} starts" if plan else ""
    return f"{text}{of}. The file cache of the system is warm."
