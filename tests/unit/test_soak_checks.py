"""The checks of the soak can fail: each kind of damage to a true record is found, and counted once."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import soak_jobs

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.lease import hold_device
from edgekit.benchmarks.values import DeviceInfo, Run, RunStatus
from edgekit.errors import LeaseLost
from edgekit.leases import Fence, Leases, Owner
from edgekit.schema import sha256_of
from edgekit.store import ResultStore

SEED, JOBS = 3, 4
INFO = DeviceInfo(spec="local", kind="local", serial="soak-checks")


def outputs_of(store: ResultStore, values: np.ndarray, folder: Path) -> str:
    """The name under which `values` lie in the store, as the harness puts them there."""
    made = folder / "made.npz"
    np.savez(made, output_0=values)
    sha256 = sha256_of(made)
    shutil.move(made, store.outputs_path(sha256))
    return sha256


def run_of(key: str, attempt: int, outputs: str | None, status: RunStatus = RunStatus.OK) -> Run:
    return Run(
        job_key=key,
        attempt=attempt,
        status=status,
        artifact_sha256="b" * 64,
        device_fingerprint="c" * 64,
        plan=soak_jobs.PLAN,
        runner_sha256="d" * 64,
        inputs_sha256="e" * 64,
        outputs_sha256=outputs,
    )


class Soaked:
    """A store in which every job has its true result, and what the workers and devices said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ResultStore(folder / "store")
        self.done = {job: f"{job:064d}" for job in range(JOBS)}
        self.ledger = [f"{key}.1 10{job}" for job, key in self.done.items() for _ in range(3)]
        for job, key in self.done.items():
            self.add(key, soak_jobs.inputs().arrays[0] @ soak_jobs.weights(SEED, job))

    def add(self, key: str, values: np.ndarray) -> None:
        number = self.store.begin(key)
        self.store.record(run_of(key, number, outputs_of(self.store, values, self.folder)))

    def judged(self) -> dict[str, int]:
        return soak_jobs.judge(self.store, SEED, JOBS, self.done, self.ledger).problems


@pytest.fixture
def soaked(tmp_path: Path) -> Soaked:
    return Soaked(tmp_path)


def test_a_true_record_has_no_problem(soaked: Soaked) -> None:
    """The truth itself passes, a second attempt after a failed one and a restarted runner included."""
    soaked.store.record(run_of(soaked.done[0], soaked.store.begin(soaked.done[0]), None, RunStatus.LOST))
    soaked.ledger.append(f"{soaked.done[0]}.1-r1 999")
    assert soaked.judged() == {}


def test_a_job_without_result_is_lost(soaked: Soaked) -> None:
    """Never told done, or told done and not stored."""
    del soaked.done[1]
    soaked.done[2] = "f" * 64
    assert soaked.judged() == {"lost": 2}


def test_two_good_results_are_a_duplicate(soaked: Soaked) -> None:
    """Both would claim to be the job's."""
    soaked.add(soaked.done[1], soaked_values(1))
    assert soaked.judged() == {"duplicated": 1}


def soaked_values(job: int) -> np.ndarray:
    values: np.ndarray = soak_jobs.inputs().arrays[0] @ soak_jobs.weights(SEED, job)
    return values


@pytest.mark.parametrize("damage", ["other model's", "one value", "no file", "half a file"])
def test_other_outputs_are_corrupt(soaked: Soaked, damage: str) -> None:
    """One value of 32,000 that is off by a thousandth, another job's outputs, a file that is cut or gone."""
    values = soaked_values(1)
    key = "9" * 64
    if damage == "one value":
        values[1234, 5] += 1e-3
    soaked.add(key, soaked_values(2) if damage == "other model's" else values)
    soaked.done[1] = key
    run = soaked.store.selected(key)
    assert run is not None
    path = soaked.store.outputs_path(run.outputs_sha256 or "")
    if damage == "no file":
        path.unlink()
    if damage == "half a file":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert soaked.judged() == {"corrupt": 1}


def test_two_runners_of_one_start_are_seen(soaked: Soaked) -> None:
    """The device's own ledger tells, whatever the store says."""
    soaked.ledger.append(f"{soaked.done[3]}.1 777")
    assert soaked.judged() == {"run_twice": 1}


def test_an_attempt_without_end_is_seen(soaked: Soaked) -> None:
    """Begun, and never recorded."""
    soaked.store.begin(soaked.done[3])
    assert soaked.judged() == {"unrecorded": 1}


def test_a_lease_left_is_seen(soaked: Soaked) -> None:
    """Also that of a dead owner, which the next one would take over."""
    with hold_device(INFO, Deadline.after(5), soaked.store):
        assert soaked.judged() == {"leases": 1}
    assert soaked.judged() == {}
    assert isinstance(soaked.store.leases.acquire("x", "x", Owner.this_process(), expiry_seconds=30.0), Fence)
    assert soaked.judged() == {"leases": 1}


def test_late_runs_are_told_apart(soaked: Soaked) -> None:
    """They are no problem and no result: only counted."""
    with pytest.raises(LeaseLost):
        soaked.store.record(run_of(soaked.done[0], 9, None), fence=Fence(device=Leases.key("s"), token=1))
    assert soaked.judged() == {}
    assert soak_jobs.judge(soaked.store, SEED, JOBS, soaked.done, soaked.ledger).late == 1
