"""One harness of the soak: measures its jobs on one device, as often as it takes, and may be killed at any point.

    python scripts/soak_worker.py CONFIG.json

It does what a user would: opens the device, takes its lease, measures, and when that ends in an error does the same
again. Each job that is done is a line in its events file, written after the store has the run.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import soak_jobs

from edgekit.benchmarks.devices.adb import AdbDevice, AdbTransport
from edgekit.benchmarks.devices.adb_client import find_adb
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.lease import hold_device
from edgekit.benchmarks.devices.posix import PosixDevice
from edgekit.benchmarks.devices.ssh import SshDevice, SshTransport, parse_target
from edgekit.benchmarks.harness import measure
from edgekit.errors import EdgekitError
from edgekit.store import ResultStore


def open_device(config: dict[str, Any]) -> PosixDevice:
    """The device behind its proxy, not entered yet."""
    root = PurePosixPath(config["root"])
    if config["kind"] == "ssh":
        return SshDevice(SshTransport(parse_target(config["address"])), root=root)
    return AdbDevice(AdbTransport(find_adb(), config["address"]), root=root)


class Jobs:
    """The jobs of all devices, each claimed by one of them for good; a new worker goes on with its device's claims."""

    def __init__(self, config: dict[str, Any], done: set[int]) -> None:
        self._folder = Path(config["folder"]) / "claims"
        self._folder.mkdir(exist_ok=True)
        self._name: str = config["name"]
        self._all = range(config["jobs"])
        self._done = done
        claimed = (job for job in self._all if self._owner(job) == self._name)
        self.now: int | None = next((job for job in claimed if job not in done), None)
        if self.now is None:
            self.advance()

    def advance(self) -> None:
        """Go on to the next job that nobody has claimed; `now` is None when there is none."""
        for job in self._all:
            try:
                # a link appears with its content, whenever its maker is killed
                (self._folder / str(job)).symlink_to(self._name)
            except FileExistsError:
                continue
            self.now = job
            return
        self.now = None

    def _owner(self, job: int) -> str | None:
        try:
            return os.readlink(self._folder / str(job))
        except FileNotFoundError:
            return None


def session(config: dict[str, Any], jobs: Jobs, note: Any, fail: Any) -> None:
    """The jobs on one connection and one lease, until all are done or something is raised."""
    folder = Path(config["folder"])
    with ResultStore(folder / "store") as store, open_device(config) as device:
        # All boards are one tree and would tell one identity; here each is a device of its own.
        info = device.probe(Deadline.after(30)).model_copy(update={"serial": config["name"]})
        store.remember_device(info)
        with hold_device(info, Deadline.after(10), store) as held:
            if config["sabotage"] == "forgetful":
                held.pending = lambda _key: None  # type: ignore[method-assign]
            while jobs.now is not None:
                run = measure(
                    device,
                    info,
                    soak_jobs.artifact(folder / "models", config["seed"], jobs.now, config["ledger"]),
                    soak_jobs.inputs(),
                    soak_jobs.PLAN,
                    store=held,
                    work_dir=folder / "work",
                    runtime=soak_jobs.RUNTIME,
                )
                if run.status == "ok":
                    note({"done": jobs.now, "key": run.job_key})
                    jobs.advance()
                else:
                    fail(f"run {run.status}", run.error or "")


def main() -> None:
    """Work until every job of this device is done."""
    logging.basicConfig(format="%(asctime)s %(message)s")
    config = json.loads(Path(sys.argv[1]).read_text())
    events = Path(config["events"])
    done, _ = soak_jobs.read_events([events])
    jobs = Jobs(config, set(done))
    descriptor = os.open(events, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(event: dict[str, Any]) -> None:
        os.write(descriptor, f"{json.dumps(event)}\n".encode())

    def fail(code: str, text: str) -> None:
        note({"error": code, "text": text[:500], "job": jobs.now})

    while jobs.now is not None:
        try:
            session(config, jobs, note, fail)
        except EdgekitError as e:
            logging.exception("job %s", jobs.now)
            fail(e.code, e.message)
            time.sleep(0.2)


if __name__ == "__main__":
    main()
