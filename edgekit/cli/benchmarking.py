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
        Console().print(_table(results))
        for result in results:
            for part in _details(result):
                Console().print(part)
        for line in _doubts(results):
            Console().print(line, markup=False, highlight=False)
    bad = [result for result in results if result.run.status != "ok"]
    statuses = [fail(result.as_error(), as_json=False) for result in bad]
    return statuses[0] if statuses else 0


def _table(results: tuple[BenchmarkResult, ...]) -> Table:
    from rich.table import Table

    from edgekit.report import quantities

    table = Table(box=None, pad_edge=False)
    headings = ("artifact", "device", "p50", "p90", "cold load", "peak memory", "samples", "runtime", "harness", "note")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for result in results:
        latency, run = result.latency, result.run
        memory = run.memory.peak_rss_bytes if run.memory else None
        cells = (
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
        table.add_row(*map(shown, cells))
    return table


_SHOWN_OPERATORS = 10


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

    run, name = result.run, shown(result.artifact.passport.name)
    parts: list[Table | str] = []
    if run.operators:
        parts.append(_operators(result))
    elif run.plan.profile and run.status == "ok":
        parts.append(f"{name}: no operator profile: {shown(run.unmeasured.get('operators', 'not measured'))}")
    if run.energy:
        parts.append(
            f"{name}: {run.energy.mj_per_inference:.3g} ± {run.energy.error_mj:.2g} mJ per inference above idle "
            f"({shown(run.energy.source)}: {run.energy.busy_mw:.0f} mW busy, {run.energy.idle_mw:.0f} mW idle)"
        )
    elif run.plan.energy and run.status == "ok":
        parts.append(f"{name}: no energy: {shown(run.unmeasured.get('energy', 'not measured'))}")
    return parts


def _operators(result: BenchmarkResult) -> Table:
    from rich.table import Table

    from edgekit.cli.shown import shown
    from edgekit.report import quantities

    operators = result.run.operators or ()
    total = sum(o.total_ns for o in operators) or 1
    runs = max(o.calls for o in operators)
    table = Table(
        "operator",
        "type",
        "per inference",
        "share",
        box=None,
        pad_edge=False,
        title=shown(result.artifact.passport.name),
    )
    for o in operators[:_SHOWN_OPERATORS]:
        per_run = quantities.time(round(o.total_ns / runs))
        table.add_row(shown(o.name[:80]), shown(o.type[:40]), per_run, f"{o.total_ns / total:.1%}")
    if len(operators) > _SHOWN_OPERATORS:
        rest = sum(o.total_ns for o in operators[_SHOWN_OPERATORS:])
        table.add_row(
            f"{len(operators) - _SHOWN_OPERATORS} more", "", quantities.time(round(rest / runs)), f"{rest / total:.1%}"
        )
    return table


def _note(run: Run) -> str:
    """The error, or whether the numbers are steady, and what was flagged while measuring."""
    from edgekit.benchmarks.stability import judge_stability

    if run.error or not run.latency_ns:
        return "; ".join(run.flags) or (run.error or "")
    verdict = judge_stability(run).verdict
    return "; ".join([*(["NOISY"] if verdict == "NOISY" else []), *run.flags])


def _doubts(results: tuple[BenchmarkResult, ...]) -> list[str]:
    """What makes latencies doubtful and what to do about it, one line each."""
    from edgekit.benchmarks.stability import judge_stability

    return [
        f"~ {result.artifact.passport.name}: {doubt}"
        for result in results
        if result.run.latency_ns
        for doubt in judge_stability(result.run).doubts
    ]
