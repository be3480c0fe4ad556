"""What a job costs besides its inferences, and four boards against one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from support import doubles

from device_bench.part import Part, Target
from device_bench.pushing import ROOT
from edgekit.artifact import Artifact
from edgekit.benchmarks.devices.adb_client import AdbClient
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board import BoardDevice
from edgekit.benchmarks.harness import measure
from edgekit.benchmarks.journal import MemoryStore
from edgekit.benchmarks.values import DeviceInfo, Plan, Run
from edgekit.runtimes.catalog import LITERT

NUMPY = tuple(w for w in LITERT.wheels if w.name == "numpy")
SLEEPER = replace(doubles.DOUBLE, wheels=NUMPY, check="import numpy")
"""A runtime whose inference sleeps: a job of fixed length that leaves the processor free."""
LOADS = "/tmp/loads"  # noqa: S108  on the board
BARE = Plan(cold_starts=0, min_samples=50, min_seconds=0.5, warmup_max_seconds=0.5, memory=False, accuracy=False)
WHOLE = BARE.model_copy(update={"cold_starts": 3, "memory": True, "accuracy": True})


@dataclass(frozen=True, slots=True)
class Place:
    """A board that is running, and what jobs on it share."""

    device: BoardDevice
    info: DeviceInfo
    store: MemoryStore
    work: Path

    @classmethod
    def on(cls, device: BoardDevice, folder: Path) -> Self:
        return cls(device, device.probe(Deadline.after(30)), MemoryStore(folder / "outputs"), folder / "work")

    def measured(self, artifact: Artifact, plan: Plan) -> Run:
        """A new run, which ended well."""
        run = measure(
            self.device,
            self.info,
            artifact,
            doubles.inputs(),
            plan,
            store=self.store,
            work_dir=self.work,
            fresh=True,
            runtime=SLEEPER,
        )
        if run.status != "ok":
            raise RuntimeError(f"{self.device.spec}: {run.status}: {run.error}")
        return run


@contextmanager
def counted_commands() -> Iterator[list[list[str]]]:
    """The argv of every adb client that is started meanwhile."""
    calls: list[list[str]] = []
    real = AdbClient.run

    def run(self: AdbClient, arguments: list[str], *rest: Any, **more: Any) -> Any:
        calls.append(list(arguments))
        return real(self, arguments, *rest, **more)

    AdbClient.run = run  # type: ignore[assignment]
    try:
        yield calls
    finally:
        AdbClient.run = real  # type: ignore[method-assign]


def overhead(rounds: int, folder: Path) -> Part:
    """Wall time of `measure` on a board that has everything already, less what the runner's phases took."""
    artifact = doubles.artifact(folder / "model", log=LOADS, sleep_ms=2)
    table = [["job", "wall, s", "phases, s", "overhead, s (min)", "adb commands"]]
    raw: dict[str, Any] = {}
    targets = []
    with BoardDevice("amd64", root=ROOT) as device:
        place = Place.on(device, folder)
        for name, plan in (("one warm phase", BARE), ("every phase", WHOLE)):
            found = [_job(place, artifact, plan) for _ in range(rounds + 1)][1:]  # the first one pushes
            raw[name] = found
            over = [f["overhead_s"] for f in found]
            commands = [len(f["commands"]) for f in found]
            wall, phases = (statistics.median(f[k] for f in found) for k in ("wall_s", "phases_s"))
            middle = statistics.median(over)
            table.append(
                [
                    name,
                    f"{wall:.2f}",
                    f"{phases:.2f}",
                    f"{middle:.3f} ({min(over):.3f})",
                    f"{min(commands)} to {max(commands)}",
                ]
            )
            targets += [
                Target(asked=f"{name}: overhead of at most 0.5 s", found=f"{middle:.3f} s", met=middle <= 0.5),
                Target(
                    asked=f"{name}: at most 3 adb commands a job",
                    found=f"{statistics.median(commands):g} (median)",
                    met=statistics.median(commands) <= 3,
                ),
            ]
    return Part(
        title="Overhead of a job",
        method=f"`measure` of a model that sleeps 2 ms, on board:amd64 whose files lie there already, {rounds} jobs "
        "each after one that pushed. Overhead is the wall time here less the phases' own on the board (fresh "
        "processes, import, load, warm-up, inferences); medians. Commands are the adb clients that were started.",
        table=table,
        targets=targets,
        raw=raw,
    )


def _job(place: Place, artifact: Artifact, plan: Plan) -> dict[str, Any]:
    with counted_commands() as commands:
        began = time.perf_counter()
        run = place.measured(artifact, plan)
        wall = time.perf_counter() - began
    phases = sum(run.phase_ns.values()) / 1e9
    shown = [" ".join(c[:4])[:120] for c in commands]
    return {"wall_s": wall, "phases_s": phases, "overhead_s": wall - phases, "commands": shown, "host_ns": run.host_ns}


def fleet(jobs: int, folder: Path) -> Part:
    """Jobs of fixed wall length and little work on one board, then on four at once."""
    plan = Plan(
        cold_starts=0,
        warmup_min_runs=1,
        warmup_max_seconds=0.1,
        min_samples=10,
        min_seconds=5.0,
        max_seconds=5.0,
        memory=False,
        accuracy=False,
    )
    artifact = doubles.artifact(folder / "sleeper", log=LOADS, sleep_ms=100)
    with ExitStack() as stack:
        boards = [stack.enter_context(BoardDevice("amd64", root=ROOT)) for _ in range(4)]
        places = [Place.on(board, folder / f"board-{number}") for number, board in enumerate(boards)]
        for place in places:
            place.measured(artifact, plan)  # pushes
        one = _wall(places[:1], artifact, plan, jobs)
        four = _wall(places, artifact, plan, jobs)
    gain = (4 * jobs / four) / (jobs / one)
    return Part(
        title="Four boards at once",
        method=f"Jobs that sleep for 5 s on the board (one phase, a 100 ms sleep as the inference), {jobs} for each "
        "board, one thread of the host a board. All boards share this host's processor, so the jobs do next to no "
        "work: what is shown is that the harness does not hold one board up for another, not that the processor is "
        "there four times.",
        table=[
            ["boards", "jobs", "wall, s", "jobs a minute"],
            ["1", f"{jobs}", f"{one:.1f}", f"{60 * jobs / one:.1f}"],
            ["4", f"{4 * jobs}", f"{four:.1f}", f"{240 * jobs / four:.1f}"],
        ],
        targets=[Target(asked="at least 3.6 times the throughput of one", found=f"{gain:.2f} times", met=gain >= 3.6)],
        raw={"jobs_each": jobs, "one_s": one, "four_s": four},
    )


def _wall(places: list[Place], artifact: Artifact, plan: Plan, jobs: int) -> float:
    """Seconds until each place has done its jobs, all at once."""

    def work(place: Place) -> None:
        for _ in range(jobs):
            place.measured(artifact, plan)

    began = time.perf_counter()
    with ThreadPoolExecutor(len(places)) as threads:
        for done in [threads.submit(work, place) for place in places]:
            done.result()
    return time.perf_counter() - began
