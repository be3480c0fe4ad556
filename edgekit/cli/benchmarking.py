"""`edgekit benchmark`: artifacts on one device, without a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.app import app, fail
from edgekit.cli.devices import AcceptHostKey, accept
from edgekit.cli.shown import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edgekit.api import BenchmarkResult
    from edgekit.benchmarks.values import Run


@app.command(epilog="Example: edgekit benchmark artifacts/*.tflite --device adb:R5CT1234567 --threads 2")
def benchmark(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifact folders or model files.")],
    device: Annotated[
        str, typer.Option("--device", "-d", help="local, adb[:SERIAL], ssh:HOST, board:amd64.")
    ] = "local",
    accept_host_key: AcceptHostKey = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    delegate: Annotated[str, typer.Option(help="default, xnnpack or none.")] = "default",
    allow_fallback: Annotated[
        bool, typer.Option("--allow-fallback", help="Go on, flagged, where the delegate asked for does not execute.")
    ] = False,
    cores: Annotated[
        str | None, typer.Option(help="Pin to big, little, all, or CPU numbers (0-3 or 0,2).", show_default=False)
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also time each operator, in a pass of its own.")] = False,
    energy: Annotated[
        bool, typer.Option("--energy", help="Also measure energy (20 s), where the device can tell.")
    ] = False,
    max_temperature: Annotated[
        float | None, typer.Option(metavar="°C", help="Wait before each repeat until every zone is at most this hot.")
    ] = None,
    min_battery: Annotated[
        int | None, typer.Option(metavar="PERCENT", help="Wait until the battery has this much.")
    ] = None,
    on_battery: Annotated[bool, typer.Option("--on-battery", help="Wait until it is not being charged.")] = False,
    max_load: Annotated[float | None, typer.Option(help="Wait until the load average is at most this.")] = None,
    wait_seconds: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long a job waits for all of these.")
    ] = 60.0,
    min_samples: Annotated[int, typer.Option(min=1, help="At least this many inferences.")] = 200,
    min_seconds: Annotated[float, typer.Option(min=0, help="And at least this long.")] = 2.0,
    cold_starts: Annotated[int, typer.Option(min=0, help="Fresh processes for the cold load.")] = 5,
    workload: Annotated[
        str | None, typer.Option(help="module:function; its evaluation data are the inputs, and accuracy is measured.")
    ] = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Where results are kept.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs, raw samples included, as JSON.")] = False,
) -> int:
    """Measure latency, cold load, memory (and accuracy, with --workload) of artifacts on a device."""
    from rich.console import Console

    from edgekit.api import benchmark_all
    from edgekit.benchmarks.affinity import parse_cores
    from edgekit.benchmarks.values import Plan
    from edgekit.schema import validated

    accept([device], accept_host_key)
    plan = validated(
        Plan,
        "the plan",
        threads=threads,
        delegate=delegate,
        min_samples=min_samples,
        min_seconds=min_seconds,
        max_seconds=max(30.0, 10 * min_seconds),
        cold_starts=cold_starts,
        accuracy=workload is not None,
        allow_fallback=allow_fallback,
        cores=parse_cores(cores) if cores is not None else None,
        profile=profile,
        energy=energy,
        max_temperature_c=max_temperature,
        min_battery_percent=min_battery,
        allow_charging=not on_battery,
        max_load=max_load,
        gate_wait_seconds=wait_seconds,
    )
    console = Console(stderr=True)
    with console.status("measuring") as status:
        results = benchmark_all(
            artifacts,
            device,
            plan=plan,
            workload=workload,
            workspace=workspace,
            fresh=fresh,
            on_progress=lambda text: status.update(shown(text)),
        )
    if as_json:
        print(json.dumps([result.run.model_dump(mode="json") for result in results]))
    else:
        _show(Console(), results)
        for result in results:
            for part in _details(result):
                Console().print(part)
        for line in _doubts(results):
            Console().print(line, markup=False, highlight=False)
    bad = [result for result in results if result.run.status != "ok"]
    statuses = [fail(result.as_error(), as_json=False) for result in bad]
    return statuses[0] if statuses else 0


_HEADINGS = ("artifact", "device", "p50", "p90", "cold load", "peak memory", "samples", "runtime", "harness", "note")
_TABLE_WIDTH = 130
"""On a narrower terminal the ten columns would be a few letters wide each."""


def _show(console: Console, results: tuple[BenchmarkResult, ...]) -> None:
    """A table; on a narrow terminal, the values below each artifact instead of beside it."""
    from rich.padding import Padding
    from rich.table import Table

    rows = [[shown(cell) for cell in _cells(result)] for result in results]
    if console.width < _TABLE_WIDTH:
        for name, device, *values in rows:
            console.print(f"[bold]{name}[/] on {device}", highlight=False)
            told = [f"{heading} {value}" for heading, value in zip(_HEADINGS[2:], values, strict=True) if value]
            console.print(Padding(" · ".join(told), (0, 0, 0, 2)), highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    for heading in _HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _cells(result: BenchmarkResult) -> tuple[str, ...]:
    """One value for each of `_HEADINGS`."""
    from edgekit.report import quantities

    latency, run = result.latency, result.run
    memory = run.memory.peak_rss_bytes if run.memory else None
    return (
        result.artifact.passport.name,
        result.device.spec + (" (emulated)" if result.device.emulated else ""),
        quantities.time(latency.p50_ns) if latency else "-",
        quantities.time(latency.p90_ns) if latency else "-",
        quantities.time(result.cold_load_ns) if result.cold_load_ns is not None else "-",
        quantities.size(memory) if memory is not None else "-",
        str(len(run.latency_ns)),
        _runtime(run),
        quantities.time(result.harness_ns) if result.harness_ns is not None else "stored",
        _note(run),
    )


def _runtime(run: Run) -> str:
    """Which runtime, and how much of the model its delegate executed."""
    facts = run.runtime
    if facts is None:
        return "-"
    said = f"{facts.name} {facts.version}"
    if facts.delegate is None:
        return said
    share = f" {facts.delegate_nodes} of {facts.total_nodes} nodes" if facts.delegate_nodes is not None else ""
    return f"{said}, {facts.delegate}{share}"


def _details(result: BenchmarkResult) -> list[Table | str]:
    """What was asked for beyond the table: operators and energy, or why they are not there."""
    from edgekit.cli.shown import shown
    from edgekit.report.runs import energy_text

    run, name = result.run, shown(result.artifact.passport.name)
    parts: list[Table | str] = []
    if run.operators:
        parts.append(_operators(run, name))
    elif run.plan.profile and run.status == "ok":
        parts.append(f"{name}: no operator profile: {shown(run.unmeasured.get('operators', 'not measured'))}")
    if run.energy:
        parts.append(f"{name}: {shown(energy_text(run.energy))}")
    elif run.plan.energy and run.status == "ok":
        parts.append(f"{name}: no energy: {shown(run.unmeasured.get('energy', 'not measured'))}")
    return parts


def _operators(run: Run, title: str) -> Table:
    from rich.table import Table

    from edgekit.cli.shown import shown
    from edgekit.report.runs import OPERATOR_HEADINGS, operator_rows

    table = Table(*map(str.lower, OPERATOR_HEADINGS), box=None, pad_edge=False, title=title)
    for row in operator_rows(run):
        table.add_row(*map(shown, row))
    return table


def _note(run: Run) -> str:
    """The error, or whether the numbers are steady and how much was flagged; `_doubts` says what."""
    from edgekit.benchmarks.stability import judge_stability

    if run.error:
        return run.error
    flags = f"{len(run.flags)} flag{'' if len(run.flags) == 1 else 's'}" if run.flags else ""
    noisy = "NOISY" if run.latency_ns and judge_stability(run).verdict == "NOISY" else ""
    return "; ".join(filter(None, (noisy, flags)))


def _doubts(results: tuple[BenchmarkResult, ...]) -> list[str]:
    """What was flagged while measuring, and what makes latencies doubtful with what to do about it; one line each."""
    from edgekit.benchmarks.stability import judge_stability
    from edgekit.report.visible import one_line

    lines = []
    for result in results:
        run = result.run
        doubts = judge_stability(run).doubts if run.latency_ns else ()
        lines += [one_line(f"~ {result.artifact.passport.name}: {said}") for said in (*run.flags, *doubts)]
    return lines
