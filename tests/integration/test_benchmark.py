"""Measuring end to end on the virtual board: through a real adbd, with a runtime double (numpy provisioned)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import doubles

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board import BoardDevice
from edgekit.benchmarks.harness import measure
from edgekit.benchmarks.inputs import read_outputs
from edgekit.benchmarks.values import Run, RunStatus
from edgekit.runtimes.catalog import LITERT
from edgekit.store import ResultStore

pytestmark = [pytest.mark.board, pytest.mark.needs_root, pytest.mark.slow]

NUMPY = tuple(w for w in LITERT.wheels if w.name == "numpy")
RUNTIME = replace(doubles.DOUBLE, wheels=NUMPY, check="import numpy")


def measured(board: BoardDevice, tmp_path: Path, store: ResultStore, **behaviour: object) -> Run:
    # The double logs each load into its own folder; on the board that is a folder every board has.
    artifact = doubles.artifact(tmp_path / "model", **{"log": "/tmp/loads", **behaviour})
    info = board.probe(Deadline.after(30))
    return measure(
        board, info, artifact, doubles.inputs(), doubles.QUICK, store=store, work_dir=tmp_path / "work", runtime=RUNTIME
    )


def test_a_board_gives_the_hosts_answers(board: BoardDevice, tmp_path: Path) -> None:
    """Pushed, run and pulled through adb, the outputs are right and the run is stored whole."""
    with ResultStore(tmp_path / "store") as store:
        run = measured(board, tmp_path, store)
        assert run.status is RunStatus.OK, run.error
        assert store.selected(run.job_key) == run
        passport = doubles.artifact(tmp_path / "again").passport
        (outputs,) = read_outputs(store.outputs_path(run.outputs_sha256 or ""), passport, 10, device="board")
    # Four products below 8 summed in float32: at most four roundings.
    np.testing.assert_allclose(outputs, doubles.inputs().arrays[0] @ doubles.weights(), atol=4 * 8 * 2**-24)


def test_a_crash_on_the_board_is_a_row(board: BoardDevice, tmp_path: Path) -> None:
    """A model that dies on the device is told with its signal; the board goes on."""
    with ResultStore(tmp_path / "store") as store:
        run = measured(board, tmp_path, store, crash_at=1)
        assert (run.status, len(store.attempts(run.job_key))) == (RunStatus.CRASHED, 1)
        assert "SIGSEGV" in (run.error or "")
    assert board.run(["true"], Deadline.after(30)).returncode == 0
