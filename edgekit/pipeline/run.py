"""`run_recipe`: a recipe from teacher to report.

Order: load the workload; teacher and compression steps; PyTorch reference outputs; conversions; measurements,
device by device; report. Each stage is keyed by the content of what it is made from, so a second run does
nothing, a changed gate measures nothing again, and a killed run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.disk import disk_errors_explained
from edgekit.errors import EdgekitError, UserError
from edgekit.pipeline.events import Observer, StageEvent, StageStatus, silent
from edgekit.pipeline.learning import WorkloadIdentity, identify, learn, reference_outputs
from edgekit.pipeline.workspace import Stage, Workspace
from edgekit.recipe import Recipe
from edgekit.report.model import Report, StageFacts, Warned
from edgekit.schema import digest
from edgekit.workload import Workload, load_workload

if TYPE_CHECKING:
    from edgekit.store import ResultStore

__all__ = ["Context", "RunOptions", "RunOutcome", "open_run", "run_recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the caller may change about one run without changing the recipe's meaning."""

    workspace: Path = Path("runs")
    base: Path = Path()
    """The recipe's folder: relative paths in it start here."""
    is_fresh: bool = False
    """Measure again what was measured before."""
    observe: Observer = silent
    command: str = "edgekit run"
    store_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """A finished run: its report, where it lies, and the first failure that should decide the exit status."""

    report: Report
    folder: Path
    did_nothing: bool
    """True when everything had been done before."""
    error: EdgekitError | None = None


@dataclass(slots=True, kw_only=True)
class Context:
    """What the stages of one run share; collects what the report will tell of them."""

    recipe: Recipe
    workload: Workload
    identity: WorkloadIdentity
    workspace: Workspace
    options: RunOptions
    stages: list[StageFacts] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    errors: list[EdgekitError] = field(default_factory=list)

    @property
    def base(self) -> Path:
        return self.options.base

    def observe(self, event: StageEvent) -> None:
        self.options.observe(event)

    def stage(self, name: str, key: list[object], make: Callable[[Path, Path], None]) -> Stage:
        """A stage of the workspace, observed and noted."""
        self.observe(StageEvent(stage=name, status=StageStatus.STARTED))
        try:
            stage = self.workspace.stage(name, self.plain(key), make)
        except EdgekitError as e:
            self.note(name, StageStatus.FAILED, text=str(e))
            raise
        self.note(name, StageStatus.CACHED if stage.cached else StageStatus.DONE, seconds=stage.seconds, key=stage.key)
        return stage

    @staticmethod
    def plain(key: list[object]) -> list[object]:
        """`key` as JSON can hold it."""
        return [_plain(part) for part in key]

    def note(
        self, name: str, status: StageStatus, *, seconds: float | None = None, key: str = "", text: str = ""
    ) -> None:
        """Tell the observer how a stage ended and keep it for the report."""
        self.observe(StageEvent(stage=name, status=status, seconds=seconds, text=text))
        is_failed = status is StageStatus.FAILED
        self.stages.append(
            StageFacts(name=name, key=key, status=status.value, seconds=seconds, error=text if is_failed else None)
        )

    def warn(self, where: str, text: str) -> None:
        warned = Warned(where=where, text=text)
        if warned not in self.warnings:
            self.warnings.append(warned)


def _plain(value: object) -> object:
    """`value` as JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump else value


def run_recipe(recipe: Recipe, options: RunOptions) -> RunOutcome:
    """Run `recipe` and return its report.

    Raises what stops the whole run (a workload that does not load, a teacher that cannot be trained). A
    conversion or a device that fails is kept as the outcome's `error`; everything else still runs.
    """
    from edgekit.store import ResultStore

    started = time.monotonic()
    context = open_run(recipe, options)
    done = None if options.is_fresh else _done_before(context)
    if done is not None:
        return done
    with disk_errors_explained(context.workspace.root), ResultStore(context.workspace.root, url=options.store_url) as s:
        return _run(context, s, started)


def _done_before(context: Context) -> RunOutcome | None:
    """The outcome of this very run if it was finished before: no stage is looked at, no device touched."""
    from edgekit.pipeline.assembly import finished_before

    run_id = run_id_of(context.recipe, context.identity)
    folder = context.workspace.run_folder(run_id)
    report = finished_before(folder)
    if report is None:
        return None
    context.workspace.point_latest(run_id)
    return RunOutcome(report=report, folder=folder, did_nothing=True)


def open_run(recipe: Recipe, options: RunOptions) -> Context:
    """The workload loaded and identified, the workspace opened; nothing is made yet.

    Raises UserError for a required device that is no spec and no name of the inventory: before it is trained for.
    """
    _inventory_devices(recipe)
    options.observe(StageEvent(stage="workload", status=StageStatus.STARTED))
    began = time.monotonic()
    loaded = load_workload(recipe.workload, recipe.params, base=options.base)
    context = Context(
        recipe=recipe,
        workload=loaded.workload,
        identity=identify(loaded, recipe),
        workspace=Workspace(options.workspace),
        options=options,
    )
    context.note("workload", StageStatus.DONE, seconds=time.monotonic() - began, text=f"{loaded.workload.data_name}")
    return context


def run_id_of(recipe: Recipe, identity: WorkloadIdentity) -> str:
    """`<recipe name>-<8 hex digits>`: the same recipe on the same code, data and devices is the same run."""
    named = _inventory_devices(recipe)
    parts = (_plain(recipe), dataclasses.asdict(identity), *((named,) if named else ()))
    return f"{recipe.name}-{digest(*parts)[:8]}"


def _inventory_devices(recipe: Recipe) -> dict[str, str]:
    """The recipe's names of the inventory (`pixel`, `tag:phone`), each with the device it means now."""
    from edgekit.benchmarks.devices.registry import resolve

    found = {}
    for entry in recipe.devices:
        try:
            spec, name = resolve(entry.spec)
        except UserError:
            if entry.required:
                raise
            continue  # said when its turn comes
        if name is not None:
            found[entry.spec] = spec
    return found


def _run(context: Context, store: ResultStore, started: float) -> RunOutcome:
    from edgekit.pipeline.assembly import assemble, finish
    from edgekit.pipeline.conversion import convert_all
    from edgekit.pipeline.measurement import measure_all

    learned = learn(context)
    teacher = reference_outputs(context, "teacher-outputs", learned.teacher, learned.teacher_stage)
    student = reference_outputs(context, "student-outputs", learned.student, learned.student_stage)
    converted = convert_all(context, learned)
    measured = measure_all(context, converted, store)
    report = assemble(
        context,
        run_id=run_id_of(context.recipe, context.identity),
        learned=learned,
        teacher=teacher,
        student=student,
        converted=converted,
        measured=measured,
        store=store,
        seconds=time.monotonic() - started,
    )
    return finish(context, report, converted, measured)


def work_is_cached(stages: list[StageFacts]) -> bool:
    """Whether every stage of a run had been done before."""
    return all(
        s.status in (StageStatus.CACHED.value, StageStatus.SKIPPED.value) or s.name == "workload" for s in stages
    )
