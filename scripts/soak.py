"""Real jobs on virtual boards and over ssh while everything on the way fails; at the end nothing may be missing.

    make soak                                         # 1,000 jobs, 500 faults, 50 kills of the harness
    python scripts/soak.py --jobs 100 --faults 60 --kills 5 --no-report

Three amd64 boards, each with a real adbd, and a real sshd, all behind proxies. The jobs go through the harness, the
lease and one shared store; their answers are known. As many are done without faults, for the time it takes: half of
them before, half after. Exit status 0: nothing lost, doubled, corrupt, run twice or left behind. Writes
docs/benchmarks/reliability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import psutil
import soak_bed
import soak_jobs
from soak_bed import FAULTS, Bed, Target

from edgekit.store import ResultStore

REPORT = Path(__file__).parent.parent / "docs" / "benchmarks" / "reliability.md"
WORKER = Path(__file__).with_name("soak_worker.py")
STALL_SECONDS = 300.0
"""Without one more job done for so long, the soak gives up: that is a failure."""


@dataclass(kw_only=True)
class Outcome:
    """One pass over all jobs."""

    verdict: soak_jobs.Verdict
    wall_seconds: float
    faults: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class Workers:
    """One harness process for each device, started again when it was killed."""

    def __init__(self, bed: Bed, folder: Path, jobs: int, seed: int, sabotage: str) -> None:
        self._bed = bed
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._configs: dict[str, Path] = {}
        self.events = [folder / f"{target.name}.events" for target in bed.targets]
        self.crashes = 0
        for target, events in zip(bed.targets, self.events, strict=True):
            config = {
                "name": target.name,
                "kind": target.kind,
                "address": target.address,
                "root": target.root,
                "ledger": target.ledger,
                "folder": str(folder),
                "events": str(events),
                "seed": seed,
                "jobs": jobs,
                "sabotage": sabotage,
            }
            self._configs[target.name] = folder / f"{target.name}.json"
            self._configs[target.name].write_text(json.dumps(config))
            self._start(target)

    def _start(self, target: Target) -> None:
        with (self._folder / f"{target.name}.log").open("ab") as log:
            self._processes[target.name] = subprocess.Popen(
                [sys.executable, str(WORKER), str(self._configs[target.name])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **target.environment},
            )

    def attend(self) -> list[Target]:
        """The devices that still have work; a worker that ended with an error is counted and started again."""
        busy = []
        for target in self._bed.targets:
            status = self._processes[target.name].poll()
            if status == 0:
                continue
            if status is not None:
                self.crashes += 1
                self._start(target)
            busy.append(target)
        return busy

    def kill(self, target: Target) -> bool:
        """SIGKILL of the harness of `target`, and a new one."""
        process = self._processes[target.name]
        if process.poll() is not None:
            return False
        process.send_signal(signal.SIGKILL)
        process.wait()
        self._start(target)
        return True

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


class Trouble:
    """Faults and kills, spread over the jobs by `rng`, each in a thread of its own."""

    def __init__(self, bed: Bed, workers: Workers, jobs: int, faults: int, kills: int, rng: random.Random) -> None:
        self._bed = bed
        self._workers = workers
        self._rng = rng
        self.done: Counter[str] = Counter()
        self.kills = 0
        last = max(1, jobs - len(bed.targets))
        planned = [*(("fault", rng.uniform(0, last)) for _ in range(faults))]
        planned += [("kill", rng.uniform(0, last)) for _ in range(kills)]
        self._planned = sorted(planned, key=lambda item: item[1])
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def advance(self, done: int, busy: list[Target]) -> None:
        """Start what is due after `done` jobs."""
        while self._planned and self._planned[0][1] <= done and busy:
            kind, _ = self._planned[0]
            self._planned.pop(0)
            time.sleep(self._rng.uniform(0, 0.3))
            if kind == "kill":
                self.kills += self._workers.kill(self._rng.choice(busy))
                continue
            seed = self._rng.random()
            thread = threading.Thread(target=self._strike, args=(random.Random(seed), busy), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _strike(self, rng: random.Random, busy: list[Target]) -> None:
        """One fault: another kind or device where the chosen one had nothing to be done to."""
        for _ in range(10):
            target = rng.choice(busy)
            name = rng.choice([n for n, (_, kind) in FAULTS.items() if kind in ("any", target.kind)])
            if FAULTS[name][0](self._bed, target, rng):
                with self._lock:
                    self.done[name] += 1
                return

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(60)


def one_pass(bed: Bed, folder: Path, *, jobs: int, faults: int, kills: int, seed: int, sabotage: str = "") -> Outcome:
    """All jobs once, with so many faults; judged at the end."""
    folder.mkdir()
    began = time.monotonic()
    workers = Workers(bed, folder, jobs, seed, sabotage)
    trouble = Trouble(bed, workers, jobs, faults, kills, random.Random(seed))
    latest, latest_at = -1, began
    try:
        while busy := workers.attend():
            done, _ = soak_jobs.read_events(workers.events)
            if len(done) != latest:
                latest, latest_at = len(done), time.monotonic()
                if sys.stdout.isatty():
                    print(f"\r{folder.name}: {latest} of {jobs} jobs, {sum(trouble.done.values())} faults", end="")
            elif time.monotonic() - latest_at > STALL_SECONDS:
                print(f"\nnothing was done for {STALL_SECONDS:.0f} s")
                break
            trouble.advance(latest, busy)
            time.sleep(0.1)
        wall = time.monotonic() - began
        trouble.finish()
    finally:
        workers.end()
    print(f"\r{folder.name}: {latest} of {jobs} jobs, {sum(trouble.done.values())} faults, {wall:.0f} s", flush=True)
    left = _left_on_devices(bed)
    done, errors = soak_jobs.read_events(workers.events)
    ledger = [line for target in bed.targets for line in target.ledger_lines()]
    with ResultStore(folder / "store") as store:
        verdict = soak_jobs.judge(store, seed, jobs, done, ledger)
    verdict = verdict.with_left(processes=left, mounts=0, crashes=workers.crashes)
    return Outcome(verdict=verdict, wall_seconds=wall, faults=trouble.done, kills=trouble.kills, errors=errors)


def _left_on_devices(bed: Bed) -> int:
    """Processes of jobs on the devices, and adb clients here, that are still there after a while."""
    deadline = time.monotonic() + 15
    while True:
        left = [p for target in bed.targets for p in target.processes()] + bed.clients()
        if not left or time.monotonic() > deadline:
            for process in left:
                with contextlib.suppress(psutil.Error):  # it has ended since
                    print("left:", process.pid, " ".join(process.cmdline())[:200])
            return len(left)
        time.sleep(0.2)


def soak(options: argparse.Namespace) -> int:
    """Both passes and the report; the exit status."""
    before = soak_bed.mounts()
    with tempfile.TemporaryDirectory(prefix="edgekit-soak-") as name:
        folder = Path(name)
        with soak_bed.own_temporary_folder(folder / "tmp"):
            with Bed(folder, boards=options.boards) as bed:
                # runtimes are provisioned before anything is timed
                one_pass(bed, folder / "first", jobs=len(bed.targets), faults=0, kills=0, seed=options.seed + 2)
                halves = (options.plain_jobs // 2, options.plain_jobs - options.plain_jobs // 2)
                plain = [_without_faults(bed, folder / "before", halves[0], options.seed + 3)]
                faulted = one_pass(
                    bed,
                    folder / "faulted",
                    jobs=options.jobs,
                    faults=options.faults,
                    kills=options.kills,
                    seed=options.seed,
                    sabotage=options.sabotage,
                )
                # before and after, so that a host that grows slower or quicker does not decide the ratio
                plain.append(_without_faults(bed, folder / "after", halves[1], options.seed + 4))
                if options.keep:
                    _keep(folder, Path(options.keep))
            boards_left = len(list((folder / "tmp").glob("edgekit-board-*")))
        mounts = len(soak_bed.mounts() - before) + boards_left
    faulted.verdict = faulted.verdict.with_left(
        processes=faulted.verdict.processes, mounts=mounts, crashes=faulted.verdict.crashes
    )
    plain = [outcome for outcome in plain if outcome.verdict.jobs]
    text = report(options, plain, faulted)
    print(text)
    if options.report:
        REPORT.write_text(text)
    problems: Counter[str] = Counter()
    for outcome in (faulted, *plain):
        problems.update(outcome.verdict.problems)
    if problems:
        print("not as promised:", ", ".join(f"{name} {count}" for name, count in problems.items()))
    return 1 if problems else 0


def _without_faults(bed: Bed, folder: Path, jobs: int, seed: int) -> Outcome:
    return one_pass(bed, folder, jobs=jobs, faults=0, kills=0, seed=seed)


def _keep(folder: Path, kept: Path) -> None:
    import shutil

    shutil.copytree(
        folder, kept, dirs_exist_ok=True, ignore=shutil.ignore_patterns("models", "outputs", "tmp", "site", "claims")
    )


def report(options: argparse.Namespace, plain: list[Outcome], faulted: Outcome) -> str:
    """The page."""
    from edgekit.pipeline.facts import host_facts

    host, verdict = host_facts(), faulted.verdict
    lines = [
        "# Reliability, measured",
        "",
        "Written by scripts/soak.py. Small jobs with known answers go through the harness, the lease and one shared",
        f"store, on {options.boards} virtual boards (`board:amd64`, a real adbd each) and a real sshd, all behind",
        "proxies, while links, servers, devices and the harness itself fail at random.",
        "",
        f"`python scripts/soak.py --jobs {options.jobs} --faults {options.faults} --kills {options.kills} "
        f"--plain-jobs {options.plain_jobs} --seed {options.seed}` on "
        f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}: {host.cpu_model}, {host.cores} cores, {host.os}, "
        f"Python {host.python}.",
        "",
        "| promise | of | broken |",
        "|---|---|---|",
        f"| a result of every job | {verdict.jobs} jobs | {verdict.lost} |",
        f"| one good result of each job | {verdict.jobs} jobs | {verdict.duplicated} |",
        f"| the model's own outputs | {verdict.jobs} jobs | {verdict.corrupt} |",
        f"| no attempt run twice on a device | {verdict.jobs} jobs | {verdict.run_twice} |",
        f"| no attempt begun and forgotten | {verdict.jobs} jobs | {verdict.unrecorded} |",
        f"| no lease left behind | {options.boards + 1} devices | {verdict.leases} |",
        f"| no process left on a device or here | {options.boards + 1} devices | {verdict.processes} |",
        f"| no mount or board left on this host | {options.boards} boards | {verdict.mounts} |",
        f"| no harness that ends with a traceback | {faulted.kills} kills | {verdict.crashes} |",
        "",
    ]
    if plain:
        count = sum(outcome.verdict.jobs for outcome in plain)
        undisturbed = sum(outcome.wall_seconds for outcome in plain) / count
        disturbed = faulted.wall_seconds / verdict.jobs
        lines += [
            f"Wall time {faulted.wall_seconds:.0f} s, {disturbed:.2f} s a job. Without faults {undisturbed:.2f} s a "
            f"job, over {count} jobs of the same kind, half of them before and half after: "
            f"{disturbed / undisturbed:.2f} times (goal: at most 2).",
            "",
        ]
    lines += ["| fault | times |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in sorted(faulted.faults.items())]
    lines += [f"| harness killed | {faulted.kills} |", f"| all | {sum(faulted.faults.values()) + faulted.kills} |", ""]
    lines += ["What the harness told of them, by code (the same job was then measured again):", ""]
    lines += ["| code | times |", "|---|---|"]
    lines += [f"| `{code}` | {count} |" for code, count in sorted(faulted.errors.items())]
    lines.append(f"\nRuns kept apart because their lease had gone: {verdict.late}.")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Parse the command line and soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--boards", type=int, default=3)
    parser.add_argument("--no-report", dest="report", action="store_false", help="do not write docs/benchmarks")
    parser.add_argument("--plain-jobs", type=int, help="of the passes without faults (default: as many as with)")
    parser.add_argument("--keep", help="copy stores, events and logs into this folder")
    parser.add_argument("--sabotage", choices=["", "forgetful"], default="", help="break the harness: must be caught")
    options = parser.parse_args()
    options.plain_jobs = options.jobs if options.plain_jobs is None else options.plain_jobs
    if min(options.jobs, options.faults + 1, options.kills + 1, options.boards + 1) < 1:
        parser.error("jobs must be at least 1, the other numbers at least 0")
    # also where a shell started it in the background: everything that was started is ended on the way out
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    return soak(options)


def _interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
