"""What edgekit itself costs: start-up against a bare interpreter, and a benchmark's wall time less its inferences.

    make demo && make bench

Times the artifacts of the latest run again on every device that can be had, and prints a Markdown table: the wall
time of `edgekit benchmark` for one artifact (the device already open), what of it went into inferences (warm-up
included), what into the fresh processes of the protocol, and the rest, which is the harness's own. Start-up is
interleaved with a bare interpreter's, and the ratio is of medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgekit.api import BenchmarkResult, benchmark_all
from edgekit.benchmarks.devices.listing import list_devices
from edgekit.benchmarks.stats import inferring_ns
from edgekit.benchmarks.values import Plan
from edgekit.pipeline.facts import host_facts
from edgekit.pipeline.workspace import Workspace

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import edgekit": [sys.executable, "-c", "import edgekit"],
    "edgekit --help": [sys.executable, "-m", "edgekit", "--help"],
}


def start_up(rounds: int) -> None:
    """Print the median wall time of each command, interleaved, and its ratio to the bare interpreter's."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, argv in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - began)
    bare = statistics.median(seconds["python -c pass"])
    print("| command | median s | min s | of a bare interpreter |\n|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| `{name}` | {median:.3f} | {min(values):.3f} | {median / bare:.1f}x |")


def harness_cost(artifacts: list[Path]) -> None:
    """Print what one benchmark costs beyond its inferences, per artifact and device."""
    print("\n| artifact | device | wall s | inferences s | protocol s | harness s |\n|---|---|---|---|---|---|")
    for status in list_devices(probe=False):
        if not status.usable:
            print(f"\n{status.spec} left out: {status.reason}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as workspace:
            results = benchmark_all(artifacts, status.spec, plan=Plan(accuracy=False), workspace=Path(workspace))
        for result in results:
            print(row(result))


def row(result: BenchmarkResult) -> str:
    """One line of the table."""
    run = result.run
    inside = inferring_ns(run) / 1e9
    wall = run.host_ns["total"] / 1e9
    phases = sum(run.phase_ns.values()) / 1e9
    cells = (wall, inside, phases - inside, wall - phases)
    return f"| {result.artifact.passport.name} | {result.device.spec} | " + " | ".join(f"{c:.2f}" for c in cells) + " |"


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="latest", help="the run whose artifacts are measured")
    parser.add_argument("--workspace", type=Path, default=Path("runs"))
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    facts = host_facts()
    print(f"{facts.cpu_model}, {facts.cores} cores, {facts.os}, Python {facts.python}, load {facts.load_average_1m}\n")
    start_up(arguments.rounds)
    folder = Workspace(arguments.workspace).find_run(arguments.run)
    harness_cost(sorted((folder / "artifacts").iterdir()))


if __name__ == "__main__":
    main()
