"""`compare_artifacts`: two model files by turns on one device, until the interval of their ratio decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgekit.api.files import open_artifact
from edgekit.artifact import PASSPORT_NAME, Artifact, Format
from edgekit.benchmarks.interleaved import Interleaved, Interval, compare_rounds
from edgekit.benchmarks.values import Plan
from edgekit.report.model import Verdict

__all__ = ["BLOCK", "compare_artifacts", "is_artifact"]

BLOCK = Plan(
    cold_starts=0,
    warmup_max_seconds=2.0,
    min_samples=50,
    min_seconds=0.5,
    max_seconds=10.0,
    memory=False,
    accuracy=False,
)
"""How one block is measured: short, since the rounds are what repeats."""


def is_artifact(path: Path) -> bool:
    """Whether `path` is a model file that edgekit runs, or the folder of an artifact (a run's folder is not one)."""
    if path.is_dir():
        return (path / PASSPORT_NAME).is_file()
    return path.is_file() and path.suffix.lower() in {f.suffix for f in Format}


def compare_artifacts(
    before: Path,
    after: Path,
    device: str = "local",
    *,
    max_regress: float = 0.03,
    budget_seconds: float = 120.0,
    plan: Plan = BLOCK,
    workspace: Path = Path("runs"),
    seed: int = 0,
    on_block: Callable[[str], None] | None = None,
    on_round: Callable[[int, Interval | None], None] | None = None,
) -> Interleaved:
    """Whether `after` is at most `max_regress` (a share) slower than `before` on `device`; every run is stored.

    Inputs are random, the same for both where their types are. Raises ArtifactError, DeviceError and its kin.
    """
    from edgekit.benchmarks.inputs import random_inputs
    from edgekit.benchmarks.session import measuring_on
    from edgekit.benchmarks.side_by_side import take_turns
    from edgekit.disk import disk_errors_explained
    from edgekit.store import ResultStore

    first, second = (open_artifact(path) for path in (before, after))
    refused = _unlike(first, second)
    if refused:
        return Interleaved(
            verdict=Verdict.INCOMPARABLE, reasons=refused, interval=None, rounds=(), discarded=(), seconds=0.0
        )
    pair = tuple((artifact, random_inputs(artifact.passport, seed=0)) for artifact in (first, second))
    with disk_errors_explained(workspace), ResultStore(workspace) as store, measuring_on(device, store) as session:
        turns = take_turns(
            session, (pair[0], pair[1]), plan, work_dir=workspace / "inputs", seed=seed, on_block=on_block
        )
        return compare_rounds(
            turns, session.info, max_regress=max_regress, budget_seconds=budget_seconds, on_round=on_round
        )


def _unlike(first: Artifact, second: Artifact) -> tuple[str, ...]:
    """What shows before anything is measured: other runtimes, other batches."""
    from edgekit.benchmarks.inputs import batch_of
    from edgekit.runtimes.catalog import runtime_for

    facts = [
        ("runtime", *(runtime_for(a.passport.format).name for a in (first, second))),
        ("inputs in one inference", *(batch_of(a.passport) for a in (first, second))),
    ]
    return tuple(f"{what}: {x} and {y}" for what, x, y in facts if x != y)
