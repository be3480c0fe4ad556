"""`edgekit compare`: two artifacts by turns on a device, or two stored runs row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.app import app
from edgekit.cli.devices import AcceptHostKey, accept
from edgekit.errors import UserError

if TYPE_CHECKING:
    from edgekit.benchmarks.interleaved import Interleaved, Interval
    from edgekit.benchmarks.values import Run

_BUDGET_SECONDS = 120.0
_STATUS = {"PASS": 0, "FAIL": 1, "NOISY": 2, "INCOMPARABLE": 3}


@app.command(epilog="Example: edgekit compare old.tflite new.tflite --device adb:R5CT1234567 --max-regress 3%")
def compare(
    before: Annotated[str, typer.Argument(help="An artifact (folder or model file); or a run: id, `latest`, path.")],
    after: Annotated[str, typer.Argument(help="What to judge against it, of the same kind.")],
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="Where to measure two artifacts: local, adb:SERIAL, …")
    ] = None,
    max_regress: Annotated[str, typer.Option(help="How much slower (p50) is still allowed.")] = "3%",
    budget: Annotated[
        float | None, typer.Option(min=1, help="Artifacts: give up (NOISY) after so many seconds.", show_default="120")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Artifacts: threads of the runtime.")] = None,
    delegate: Annotated[str | None, typer.Option(help="Artifacts: default, xnnpack or none.")] = None,
    accept_host_key: AcceptHostKey = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> int:
    """Compare two artifacts by turns on one device, or two stored runs. Exit: 0 PASS, 1 FAIL, 2 NOISY, 3 INCOMPARABLE.

    Artifacts are measured interleaved until the interval of the ratio decides or the budget ends.
    """
    from edgekit.api.comparing import is_artifact

    allowed = _fraction(max_regress)
    artifacts = [is_artifact(Path(name)) for name in (before, after)]
    asked = {"--device": device, "--budget": budget, "--threads": threads, "--delegate": delegate}
    given = [name for name, value in asked.items() if value is not None]
    if all(artifacts):
        accept([device or "local"], accept_host_key)
        plan = {"threads": threads or 1, "delegate": delegate or "default"}
        seconds = budget or _BUDGET_SECONDS
        return _artifacts(Path(before), Path(after), device or "local", allowed, seconds, plan, workspace, as_json)
    if any(artifacts) or given:
        other = [name for name, good in zip((before, after), artifacts, strict=True) if not good]
        what = "the other is one" if any(artifacts) else f"{given[0]} measures artifacts"
        hint = "give two artifacts (folders with a passport.json, or .tflite, .onnx, .pte files), or two runs"
        raise UserError(f"{other[0]}: no artifact is there, and {what}", hint=hint)
    return _stored(before, after, allowed, workspace, as_json)


def _artifacts(
    before: Path,
    after: Path,
    device: str,
    allowed: float,
    budget: float,
    plan: dict[str, Any],
    workspace: Path,
    as_json: bool,
) -> int:
    from rich.console import Console

    from edgekit.api.comparing import BLOCK, compare_artifacts
    from edgekit.benchmarks.values import Plan
    from edgekit.cli.shown import shown
    from edgekit.schema import validated

    console = Console(stderr=True)
    so_far = ""
    with console.status("opening the device") as status:

        def block(text: str) -> None:
            status.update(shown(f"{text}{so_far}"))

        def told(number: int, interval: Interval | None) -> None:
            nonlocal so_far
            shown = f"x {interval.ratio:.4f} ({interval.low:.4f} to {interval.high:.4f})" if interval else "one round"
            so_far = f" · so far {shown}"
            if not console.is_terminal and not as_json:
                console.print(f"round {number}: {shown}", highlight=False)

        result = compare_artifacts(
            before,
            after,
            device,
            max_regress=allowed,
            budget_seconds=budget,
            plan=validated(Plan, "the plan", **{**BLOCK.model_dump(), **plan}),
            workspace=workspace,
            on_block=block,
            on_round=told,
        )
    if as_json:
        print(json.dumps(_as_record(result, before, after, device, allowed)))
    else:
        _show(result, before, after)
    return _STATUS[result.verdict.value]


def _show(result: Interleaved, before: Path, after: Path) -> None:
    from statistics import median

    from rich.console import Console

    from edgekit.cli.shown import shown
    from edgekit.report import quantities as q

    console = Console(highlight=False)
    for which, path, runs in (
        ("A", before, [r.first for r in result.rounds]),
        ("B", after, [r.second for r in result.rounds]),
    ):
        samples = [ns for run in runs for ns in run.latency_ns]
        if samples:
            p50, best = q.time(round(median(samples))), q.time(min(samples))
            console.print(f"{which} {shown(str(path))}: p50 {p50}, min {best}, {len(runs)} blocks")
    console.print(f"{result.verdict.value}: {shown(result.reasons[0])}")
    for reason in result.reasons[1:]:
        console.print(f"  - {shown(reason)}")
    console.print(f"{len(result.rounds)} rounds in {q.duration(result.seconds)}; every run is stored", style="dim")


def _as_record(result: Interleaved, before: Path, after: Path, device: str, allowed: float) -> dict[str, Any]:
    interval = result.interval
    return {
        "verdict": result.verdict.value,
        "reasons": list(result.reasons),
        "before": str(before),
        "after": str(after),
        "device": device,
        "emulated": result.emulated,
        "max_regress": allowed,
        "ratio": interval.ratio if interval else None,
        "ratio_low": interval.low if interval else None,
        "ratio_high": interval.high if interval else None,
        "ratio_by_min": interval.by_min if interval else None,
        "rounds": [{"turned": r.turned, "before": _block(r.first), "after": _block(r.second)} for r in result.rounds],
        "discarded": list(result.discarded),
        "seconds": result.seconds,
    }


def _block(run: Run) -> dict[str, Any]:
    from edgekit.benchmarks.stats import summarize

    latency = summarize(run.latency_ns) if run.latency_ns else None
    return {
        "job_key": run.job_key,
        "attempt": run.attempt,
        "status": run.status.value,
        "latency": latency.model_dump() if latency else None,
    }


def _stored(before: str, after: str, allowed: float, workspace: Path, as_json: bool) -> int:
    from rich.console import Console
    from rich.table import Table

    from edgekit.cli.shown import shown
    from edgekit.pipeline.comparison import compare_reports
    from edgekit.pipeline.workspace import Workspace
    from edgekit.report.write import read_report

    place = Workspace(workspace)
    reports = [read_report(place.find_run(name) / "report.json") for name in (before, after)]
    comparison = compare_reports(*reports, max_regress=allowed)
    if as_json:
        print(comparison.model_dump_json())
    else:
        table = Table("artifact", "device", "p50 before", "p50 after", "change", "accuracy", "verdict", "why")
        for row in comparison.rows:
            table.add_row(*(shown(cell) for cell in row.cells()))
        Console().print(table)
        Console().print(f"{comparison.verdict}: {shown(comparison.reason)}")
    return _STATUS[comparison.verdict.value]


def _fraction(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError as e:
        raise UserError(f"--max-regress {text}: write 3% or 0.03") from e
    if not 0 <= value <= 1:
        raise UserError(f"--max-regress {text}: must lie between 0 and 100%")
    return value
