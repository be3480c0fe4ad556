"""`tune`: rung by rung up from what is cheap, until an int8 file passes the gate."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact
from edgekit.compress.effects import TeacherReference
from edgekit.converters.shapes import Order, input_orders
from edgekit.diagnosis.subject import lowest_sqnr
from edgekit.diagnosis.values import Bound
from edgekit.errors import DeviceError, EdgekitError, Interrupted, UserError
from edgekit.pipeline.facts import tool_versions
from edgekit.pipeline.workspace import Stage, Workspace
from edgekit.schema import digest, read_record, write_atomically
from edgekit.training.evaluation import evaluate_outputs
from edgekit.training.fitting import weights_digest
from edgekit.tuning.data import split
from edgekit.tuning.exam import Exam, exam_of, holds, refused_gate, verdict
from edgekit.tuning.options import RUNGS, TuneOptions
from edgekit.tuning.rungs import FILE, RUNG_MAKERS, STUDENT, BudgetEnded, Rung, Setting, State
from edgekit.tuning.start import Start, start
from edgekit.tuning.values import RungResult, RungStatus, TuneGate, TuneResult
from edgekit.workload import sample_digest

if TYPE_CHECKING:
    from edgekit.workload import Workload

__all__ = ["tune"]

VERSION = 1
"""Raised when a rung starts to make something else of the same student."""


def tune(
    subject: str | Path | Workload,
    *,
    options: TuneOptions | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> TuneResult:
    """Climb until an int8 file of the student passes the gate; `subject` is a recipe, a workload's name, or a workload.

    A rung that passes on training data kept apart for the search is shown the evaluation data, which decide. Finished
    rungs are stages of the workspace: a call that was killed, or ran out of its budget, is gone on with by the next.
    Raises UserError for a gate, backend or budget that cannot be, WorkloadError for data or weights that are missing.
    """
    from edgekit.converters.registry import load_converter

    options = options or TuneOptions()
    load_converter(options.backend)
    began = time.monotonic()
    return _Climb(start(subject, options), options, tell, began).finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A rung that gave a file."""

    result: RungResult
    file: Artifact
    setting: Setting


class _Climb:
    """One climb on its way."""

    def __init__(self, begin: Start, options: TuneOptions, tell: Callable[[str], None], began: float) -> None:
        self._options = options
        self._tell = tell
        self._began = began
        self._name = begin.name
        drop = options.max_drop if options.max_drop is not None or options.min_accuracy is not None else 1.0
        self._gate = TuneGate(max_drop_points=drop, min_accuracy=options.min_accuracy)
        data = split(begin.workload, options.searched, seed=options.seed)
        tell("the teacher's answers")
        self._search = exam_of(data.search, data.search_name, begin.workload, begin.teacher)
        self._evaluation = exam_of(data.evaluation, data.evaluation_name, begin.workload, begin.teacher)
        refused_gate(self._gate, self._evaluation)
        outputs, _ = evaluate_outputs(begin.student.module, data.search)
        self._float = self._search.of_outputs(outputs[: len(self._search.labels)])
        self._orders: tuple[Order, ...] = input_orders(
            begin.input_layout, begin.workload.example_inputs, begin.workload.input_layouts
        )
        self._workspace = Workspace(options.workspace)
        self._base_key = [
            VERSION,
            begin.source,
            weights_digest(begin.teacher),
            *_data_of(begin),
            options.searched,
            options.seed,
        ]
        student_key = digest(
            weights_digest(begin.student.module), [edit.model_dump(mode="json") for edit in begin.student.edits]
        )
        self._start_key = student_key
        self._state = State(
            options=options,
            data=data,
            teacher=TeacherReference(begin.teacher, data.visible),
            best=Setting(
                student=replace(begin.student, trained={}),
                student_key=student_key,
                quantization=begin.quantization,
                calibration=options.calibration,
            ),
            float_drop_points=100 * self._float.drop.value,
            allowed_points=self._allowed_points(),
            input_layout=begin.input_layout,
            timeout_seconds=begin.timeout_seconds,
            deadline=began + options.budget_seconds,
            tell=tell,
        )
        self._identities = {"search": None, "evaluation": sample_digest(data.evaluation)}
        self._results: list[RungResult] = []
        self._nearest: _Found | None = None
        self._evaluations = 0
        self._stopped: str | None = None
        self._untimed: str | None = None

    def finish(self) -> TuneResult:
        passed: _Found | None = None
        for name in (name for name in RUNGS if name in self._options.rungs):
            if passed is not None or self._is_over():
                self._leave(name, RungStatus.NOT_TRIED, self._stopped or "a rung below passed")
                continue
            found = self._climb(name)
            if found is not None and found.result.status is RungStatus.PASSED:
                passed = found
        if self._stopped is not None and all(result.on_search is None for result in self._results):
            raise UserError(
                f"the budget of {self._options.budget_seconds:g} s ended before the first rung was made",
                hint="give a larger one with --budget; what was begun is kept",
            )
        return self._told(passed)

    def _is_over(self) -> bool:
        if self._stopped is None and self._state.left_seconds < 0:
            self._stopped = f"the budget of {self._options.budget_seconds:g} s was spent"
        return self._stopped is not None

    # ---- one rung

    def _climb(self, name: str) -> _Found | None:
        rung = RUNG_MAKERS[name]
        refusal = rung.refusal(self._state) or self._hopeless(rung)
        if refusal is not None:
            self._leave(name, RungStatus.SKIPPED, refusal)
            return None
        self._tell(name)
        try:
            return self._made(name, rung)
        except Interrupted:
            raise
        except EdgekitError as e:
            if isinstance(e, BudgetEnded) or self._state.left_seconds < 0:
                self._stop(name, e)
            else:
                self._leave(name, RungStatus.FAILED, e.message)
        return None

    def _hopeless(self, rung: Rung) -> str | None:
        """Why a rung that leaves the float student as it is cannot help; None where it can."""
        if rung.can_mend_float or self._state.best.student_key != self._start_key:
            return None
        drop = self._float.drop
        limit = self._gate.max_drop_points
        if limit is not None and 100 * drop.low > limit:
            return f"the float student itself is {100 * drop.value:.2f} points under the teacher on the search data"
        return None

    def _made(self, name: str, rung: Rung) -> _Found:
        state, backend = self._state, self._options.backend
        setting = rung.setting(state)
        key = [*self._base_key, name, backend, *rung.key(state), *self._trained_key(name), tool_versions()]
        if name == "keep-float":
            key += [state.best_file.passport.sha256 if state.best_file else None, state.allowed_points]
        stage = self._workspace.stage(f"tune-{backend}-{name}", key, lambda w, out: rung.make(state, setting, w, out))
        file = Artifact.open(stage.folder / FILE)
        on_search = self._bound(file, self._search, "search")
        latency = self._latency(file)
        result = RungResult(
            name=name,
            what=rung.what,
            status=RungStatus.MISSED,
            reason="",
            seconds=round(stage.seconds, 1),
            was_there=stage.cached,
            size_bytes=file.passport.size_bytes,
            latency_p50_ns=latency,
            sqnr_db=lowest_sqnr(file.passport.fidelity),
            on_search=on_search,
            artifact=str(file.folder),
        )
        found = _Found(result=self._judged(result, file), file=file, setting=self._setting_of(stage, setting))
        self._results.append(found.result)
        self._keep(found)
        return found

    def _trained_key(self, name: str) -> list[object]:
        options = self._options
        return [options.epochs, options.batch_size] if name in ("distill", "qat") else []

    def _judged(self, result: RungResult, file: Artifact) -> RungResult:
        assert result.on_search is not None  # noqa: S101 - the caller made it
        if not holds(self._gate, result.on_search):
            _, told = verdict(self._gate, result.on_search)
            return result.model_copy(update={"reason": told})
        self._evaluations += 1
        on_evaluation = self._bound(file, self._evaluation, "evaluation")
        sure, told = verdict(self._gate, on_evaluation)
        status = RungStatus.PASSED if sure else RungStatus.REFUTED
        return result.model_copy(update={"status": status, "reason": told, "on_evaluation": on_evaluation})

    def _bound(self, file: Artifact, exam: Exam, name: str) -> Bound:
        """The file's answers, kept: a file is run once on each data set."""

        def run(work: Path, out: Path) -> None:
            bound = exam.of_file(file, work, self._orders)
            write_atomically(out / "bound.json", bound.model_dump_json() + "\n")

        self._tell(f"{file.passport.backend} file on {exam.name}")
        key = [*self._base_key, file.passport.sha256, exam.name, self._identities[name]]
        stage = self._workspace.stage(f"tune-exam-{name}", key, run)
        return read_record(Bound, stage.folder / "bound.json")

    def _latency(self, file: Artifact) -> int | None:
        from edgekit.api import benchmark
        from edgekit.benchmarks.values import Plan

        device = self._options.device
        if device is None:
            return None
        self._tell(f"timing on {device}")
        plan = Plan(cold_starts=0, warmup_max_seconds=1.0, min_samples=50, min_seconds=0.5, memory=False)
        try:
            measured = benchmark(file, device, plan=plan, workspace=self._options.workspace)
        except DeviceError as e:
            self._untimed = e.message
            return None
        return measured.latency.p50_ns if measured.latency is not None else None

    def _allowed_points(self) -> float:
        """The drop the gate allows on the search data."""
        allowed = [] if self._gate.max_drop_points is None else [self._gate.max_drop_points]
        if self._gate.min_accuracy is not None and self._float.reference is not None:
            allowed.append(100 * (self._float.reference.value - self._gate.min_accuracy))
        return max(0.0, min(allowed))

    def _setting_of(self, stage: Stage, setting: Setting) -> Setting:
        """The setting with the student that the rung trained, if it did."""
        from edgekit.compress.storage import load_student

        if not (stage.folder / STUDENT).is_dir():
            return setting
        visible = self._state.data.visible
        student = load_student(stage.folder / STUDENT, visible.build_base, visible.example_inputs)
        return replace(setting, student=student, student_key=stage.key)

    def _keep(self, found: _Found) -> None:
        """Let the next rungs start from the best so far, as the search data tell."""
        if self._nearest is None or _drop_of(found) < _drop_of(self._nearest):
            self._nearest = found
            if found.result.name not in ("keep-float", "int16-activations"):  # dead ends: nothing goes on from them
                self._state.best, self._state.best_file = found.setting, found.file

    def _leave(self, name: str, status: RungStatus, reason: str) -> None:
        self._results.append(RungResult(name=name, what=RUNG_MAKERS[name].what, status=status, reason=reason))

    def _stop(self, name: str, error: EdgekitError) -> None:
        self._leave(name, RungStatus.STOPPED, f"{error.message}; the next call goes on with it")
        self._stopped = f"the budget of {self._options.budget_seconds:g} s was spent"

    def _told(self, passed: _Found | None) -> TuneResult:
        output = None
        if passed is not None and self._options.output is not None:
            output = self._options.output / passed.file.passport.name
            if output.exists():
                shutil.rmtree(output)
            shutil.copytree(passed.file.folder, output)
        options = self._options
        return TuneResult(
            workload=self._name,
            backend=options.backend,
            gate=self._gate,
            float_accuracy=self._float.value.value,
            teacher_accuracy=self._float.reference.value if self._float.reference else 1.0,
            search_data=self._search.name,
            evaluation_data=self._evaluation.name,
            evaluations=self._evaluations,
            device=options.device,
            rungs=tuple(self._results),
            passed=passed.result.name if passed else None,
            nearest=self._nearest.result.name if self._nearest else None,
            output=str(output) if output else None,
            budget_seconds=options.budget_seconds,
            seconds=round(time.monotonic() - self._began, 1),
            stopped=self._stopped,
            untimed=self._untimed,
        )


def _drop_of(found: _Found) -> tuple[float, float]:
    """Smaller is nearer: the drop on the search data, then the SQNR."""
    bound = found.result.on_search
    return (bound.drop.value if bound else 1.0, -(found.result.sqnr_db or 0.0))


def _data_of(begin: Start) -> list[object]:
    workload = begin.workload
    return [sample_digest(data) for data in (workload.train, workload.calibration, workload.unlabelled)]
