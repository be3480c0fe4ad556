"""Measuring end to end over a real sshd, with a runtime double (numpy provisioned); the link cut or not."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from support import doubles
from support.links import meanwhile
from support.proxy import Proxy
from support.sshd import Sshd

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.posix import PosixDevice
from edgekit.benchmarks.devices.ssh import SshDevice, SshTransport, parse_target
from edgekit.benchmarks.harness import measure
from edgekit.benchmarks.inputs import read_outputs
from edgekit.benchmarks.values import Run, RunStatus
from edgekit.runtimes.catalog import LITERT
from edgekit.store import ResultStore

pytestmark = pytest.mark.slow

RUNTIME = replace(doubles.DOUBLE, wheels=tuple(w for w in LITERT.wheels if w.name == "numpy"), check="import numpy")


def _measured(device: PosixDevice, tmp_path: Path, store: ResultStore, **behaviour: object) -> Run:
    artifact = doubles.artifact(tmp_path / "model", **{"log": str(tmp_path / "loads"), **behaviour})
    info = device.probe(Deadline.after(30))
    return measure(
        device,
        info,
        artifact,
        doubles.inputs(),
        doubles.QUICK,
        store=store,
        work_dir=tmp_path / "work",
        runtime=RUNTIME,
    )


def _check(run: Run, store: ResultStore, tmp_path: Path) -> None:
    assert run.status is RunStatus.OK, run.error
    assert store.selected(run.job_key) == run
    assert len(store.attempts(run.job_key)) == 1
    passport = doubles.artifact(tmp_path / "again").passport
    (outputs,) = read_outputs(store.outputs_path(run.outputs_sha256 or ""), passport, 10, device="ssh")
    # Four products below 8 summed in float32: at most four roundings.
    np.testing.assert_allclose(outputs, doubles.inputs().arrays[0] @ doubles.weights(), atol=4 * 8 * 2**-24)


def test_a_host_behind_ssh_gives_the_hosts_answers(ssh_device: PosixDevice, tmp_path: Path) -> None:
    """Pushed, run and pulled through sshd, the outputs are right and the run is stored whole."""
    with ResultStore(tmp_path / "store") as store:
        _check(_measured(ssh_device, tmp_path, store), store, tmp_path)


def test_a_measurement_over_a_link_that_breaks_is_neither_lost_nor_doubled(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is cut again and again while the job runs: one attempt, each model loaded as often as without, right."""
    with Proxy(("127.0.0.1", sshd.port)) as proxy, ResultStore(tmp_path / "store") as store:
        for name, value in sshd.client(tmp_path / "client", port=proxy.port).environment().items():
            monkeypatch.setenv(name, value)

        uneven = random.Random(0)  # cuts in step with the retries would hit every one of them

        root = PurePosixPath(tmp_path / "device")
        with SshDevice(SshTransport(parse_target("testboard")), root=root) as device:
            _measured(device, tmp_path, store)  # brings numpy there
            calm = len((tmp_path / "loads").read_text().split())
            with meanwhile(proxy.cut, lambda: uneven.uniform(1.2, 2.8)):
                run = _measured(device, tmp_path, store, sleep_ms=20)
        _check(run, store, tmp_path)
        assert proxy.cuts
        assert len((tmp_path / "loads").read_text().split()) == 2 * calm
