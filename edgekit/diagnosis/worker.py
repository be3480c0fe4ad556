"""The probing child: `python -m edgekit.diagnosis.worker FOLDER`; the files are described in `wire`.

It makes the tapped file, runs both it and the file as it is in the real runtime, and writes down what every layer
holds. In a child of its own, because an edited file that a runtime does not like can end the process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.converters.wire import WireError, load_samples
from edgekit.diagnosis.wire import ProbeAnswer, ProbeRequest
from edgekit.errors import EdgekitError
from edgekit.exporting import load_own_program
from edgekit.isolation import enter_child
from edgekit.schema import read_record, write_atomically

if TYPE_CHECKING:
    import numpy as np

    from edgekit.diagnosis.probe import Probed

__all__ = ["main"]


def main(folder: Path) -> None:
    """Do the probe request in `folder`."""
    enter_child()
    request = read_record(ProbeRequest, folder / "request.json")
    try:
        answer = _only_run(folder, request) if request.only_run else _probe(folder, request)
    except EdgekitError as e:
        answer = ProbeAnswer(error=WireError.of(e))
    write_atomically(folder / "answer.json", answer.model_dump_json())


def _only_run(folder: Path, request: ProbeRequest) -> ProbeAnswer:
    import numpy as np

    from edgekit.converters.host_runtimes import load_runtime

    run = load_runtime(Path(request.path), request.format)
    outputs: dict[str, np.ndarray] = {}
    for index, sample in enumerate(load_samples(folder / "samples.npz")):
        given = run(sample)
        outputs.update({f"o{index}_{position}": array for position, array in enumerate(given)})
    np.savez(folder / "outputs.npz", **outputs)  # type: ignore[arg-type]
    return ProbeAnswer(own_outputs=len(given))


def _probe(folder: Path, request: ProbeRequest) -> ProbeAnswer:
    import torch

    from edgekit.diagnosis.probe import probe

    torch.set_num_threads(1)
    program = load_own_program(folder / "program.pt2", request.sha256)
    samples = load_samples(folder / "samples.npz")
    calibration = load_samples(folder / "calibration.npz") if request.has_calibration else ()
    probed = probe(request, program, samples, calibration, folder)
    return _written(folder, request, probed, samples)


def _written(
    folder: Path, request: ProbeRequest, probed: Probed, samples: tuple[tuple[np.ndarray, ...], ...]
) -> ProbeAnswer:
    """Run every sample, write the values, and compare the two files' outputs."""
    import numpy as np

    from edgekit.converters.host_runtimes import load_runtime
    from edgekit.diagnosis.probe import real_values

    plain = load_runtime(Path(request.path), request.format)
    tapped = load_runtime(probed.path, request.format)
    outputs: dict[str, np.ndarray] = {}
    is_same, largest = True, 0.0
    for index, sample in enumerate(samples):
        own, given = plain(sample), tapped(sample)
        for position, (before, after) in enumerate(zip(own, given, strict=False)):
            outputs[f"o{index}_{position}"] = before
            is_same = is_same and np.array_equal(before, after)
            largest = max(largest, _change(before, after))
        values = {f"t{i}": real_values(given[tap.position], tap) for i, tap in enumerate(probed.taps)}
        np.savez(folder / f"values.{index}.npz", **values)  # type: ignore[arg-type]
    np.savez(folder / "outputs.npz", **outputs)  # type: ignore[arg-type]
    return ProbeAnswer(
        taps=probed.taps,
        tapped_file=probed.path.name,
        own_outputs=probed.own_outputs,
        is_same=is_same,
        largest_change=largest,
    )


def _change(before: np.ndarray, after: np.ndarray) -> float:
    import numpy as np

    if before.size == 0 or not (np.isfinite(before).all() and np.isfinite(after).all()):
        return 0.0
    reach = float(np.abs(before.astype(np.float64)).max()) or 1.0
    return float(np.abs(before.astype(np.float64) - after).max()) / reach


if __name__ == "__main__":
    main(Path(sys.argv[1]))
