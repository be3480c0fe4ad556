"""The rungs: each makes one int8 file in its own way, or says why it cannot."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, RangeRule, Scheme
from edgekit.compress.qat_options import backend_trained_for
from edgekit.compress.student import Student
from edgekit.converters.base import QuantizationOptions
from edgekit.converters.target_run import ConversionOptions
from edgekit.errors import UserError
from edgekit.pipeline.samples import calibration_batches, held_out_batches
from edgekit.pipeline.trained_form import form_of
from edgekit.training.fitting import weights_digest

if TYPE_CHECKING:
    from edgekit.compress.effects import TeacherReference
    from edgekit.recipe import Step
    from edgekit.training.fitting import TrainProgress
    from edgekit.tuning.data import TuneData
    from edgekit.tuning.options import TuneOptions

__all__ = ["RUNG_MAKERS", "BudgetEnded", "Rung", "Setting", "State"]

VERIFIED = 100
FILE, STUDENT = "file", "student"
"""What a rung's stage holds."""


class BudgetEnded(UserError):
    """The time for the climb was up while a rung was being made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a file is made of: the model, and how its activations are quantized."""

    student: Student
    student_key: str
    quantization: QuantizationOptions
    calibration: int
    scheme: Scheme = Scheme.STATIC_W8A8


@dataclass(slots=True, kw_only=True)
class State:
    """A climb on its way. `best` is the setting of the best file so far that the next rungs start from."""

    options: TuneOptions
    data: TuneData
    teacher: TeacherReference
    """On the search data."""
    best: Setting
    best_file: Artifact | None = None
    float_drop_points: float = 0.0
    """The float student's own drop on the search data."""
    allowed_points: float = 0.0
    input_layout: str | None = None
    timeout_seconds: float = 900.0
    deadline: float = 0.0
    tell: Callable[[str], None] = field(default=lambda _: None)

    @property
    def left_seconds(self) -> float:
        return self.deadline - time.monotonic()

    def conversion(self) -> ConversionOptions:
        return ConversionOptions(
            input_layouts=self.data.visible.input_layouts,
            input_layout=self.input_layout,
            timeout_seconds=max(1.0, min(self.timeout_seconds, self.left_seconds)),
            allow_lossy=True,  # the gate judges
        )

    def on_training(self, what: str) -> Callable[[TrainProgress], None]:
        """An observer of training that ends it when the time is up; its last checkpoint stays."""

        def tell(progress: TrainProgress) -> None:
            self.tell(f"{what}: epoch {progress.epoch} of {progress.epochs}, loss {progress.loss:.3f}")
            if self.left_seconds < 0:
                raise BudgetEnded(f"the budget ended in step {progress.step} of {progress.total_steps}")

        return tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """`refusal` says why it cannot or need not be made, `make` writes FILE (and STUDENT) into a folder.

    `key` is what its file is made from besides what every rung's is.
    """

    what: str
    refusal: Callable[[State], str | None]
    setting: Callable[[State], Setting]
    make: Callable[[State, Setting, Path, Path], None]
    can_mend_float: bool = False
    """Whether it may help where the float student itself misses the gate."""

    def key(self, state: State) -> list[object]:
        setting = self.setting(state)
        quantization = setting.quantization.model_dump(mode="json")
        return [setting.student_key, quantization, setting.calibration, setting.scheme.value, state.input_layout]


def convert(state: State, setting: Setting, work: Path, out: Path) -> None:
    """The file of a setting."""
    from edgekit.converters.conversion import convert_model

    workload, backend, seed = state.data.visible, state.options.backend, state.options.seed
    options = replace(state.conversion(), quantization=setting.quantization, lineage=setting.student.lineage)
    form = form_of(setting.student, workload.example_inputs, backend, setting.scheme, options)
    state.tell(f"converting to {backend} {setting.scheme}")
    outcome = convert_model(
        form.model,
        form.example_inputs,
        name="tuned",
        targets=[backend],
        schemes=[setting.scheme],
        calibration=form.samples(calibration_batches(workload, setting.calibration, seed=seed)),
        verification=form.samples(held_out_batches(workload, VERIFIED, seed=seed)),
        output_dir=Path(tempfile.mkdtemp(prefix="made-", dir=work)),
        options=form.options,
    )
    outcome.raise_failures()
    os.replace(outcome.artifacts[0].folder, out / FILE)


# ---- after training


def _never(_state: State) -> str | None:
    return None


def _quantized(state: State, **changes: object) -> Setting:
    quantization = state.best.quantization.model_copy(update=changes)
    return replace(state.best, quantization=quantization, calibration=state.options.calibration)


def _minmax(state: State) -> Setting:
    plain = _quantized(state, ranges=RangeRule.MINMAX, bias_correction=False)
    return replace(plain, calibration=max(1, state.options.calibration // 5))


def _per_channel(state: State) -> str | None:
    from edgekit.converters.registry import capabilities

    note = next((c.note for c in capabilities(state.options.backend) if c.scheme is Scheme.STATIC_W8A8), "")
    return f"every {state.options.backend} int8 file has its weight scales by its own rule already ({note})"


def _no_int16(state: State) -> str | None:
    from edgekit.converters.registry import capabilities

    found = next(c for c in capabilities(state.options.backend) if c.scheme is Scheme.STATIC_W8A16)
    return None if found.supported else found.note


def _int16(state: State) -> Setting:
    return replace(_quantized(state), scheme=Scheme.STATIC_W8A16)


def _keep_float(state: State, setting: Setting, work: Path, out: Path) -> None:
    """The fewest layers in float that hold the bound, searched on the visible training data."""
    from edgekit.diagnosis.examination import examine
    from edgekit.diagnosis.reconversion import float_file_of
    from edgekit.diagnosis.search import search
    from edgekit.diagnosis.subject import subject_of

    file = state.best_file
    if file is None:
        made = Path(tempfile.mkdtemp(prefix="base-", dir=work))
        convert(state, setting, work, made)
        file = Artifact.open(made / FILE)
    with tempfile.TemporaryDirectory(prefix="search-", dir=work) as folder:
        subject = subject_of(
            state.data.visible,
            setting.student.module,
            (file,),
            name="tuned",
            samples=8,
            seed=state.options.seed,
            work=Path(folder),
        )
        float_file = file if file.passport.format == "executorch" else float_file_of(subject, file, ())
        found = search(
            subject,
            examine(subject, file, float_file),
            max_drop_points=max(0.0, state.allowed_points - state.float_drop_points),
            budget_seconds=max(1.0, state.left_seconds),
            tell=state.tell,
        )
        if found.record.stopped is not None and state.left_seconds < 0:
            raise BudgetEnded(found.record.stopped)
        if found.record.stopped is not None:  # `search` ends with its best on Ctrl-C; that is no finished rung
            raise KeyboardInterrupt
        shutil.copytree(found.artifact.folder, out / FILE)


# ---- with training


def _no_float_to_mend(state: State) -> str | None:
    visible = state.data.visible
    if visible.train is None:
        return "the workload has no training data"
    if weights_digest(state.best.student.module) == state.teacher.digest:
        return "the student is its own teacher: in float there is nothing to learn from it (qat learns from it)"
    return None


def _trained(state: State, setting: Setting, step: Step, what: str, work: Path, out: Path) -> Student:
    """The setting's student after a training step on the data a climb may see, kept in `out`."""
    from edgekit.compress.steps import run_step
    from edgekit.compress.storage import save_student

    student = run_step(
        setting.student,
        state.teacher,
        step,
        state.data.visible,
        seed=state.options.seed,
        work_dir=work / "training",
        on_progress=state.on_training(what),
    )
    save_student(student, out / STUDENT)
    return student


def _distill(state: State, setting: Setting, work: Path, out: Path) -> None:
    """The float student fine-tuned to the teacher's answers, without a label, then converted as the best was."""
    from edgekit.recipe import DistillOptions, Step

    options = DistillOptions(
        epochs=state.options.epochs, batch_size=state.options.batch_size, weight=1.0, learning_rate=1e-3
    )
    student = _trained(state, setting, Step(distill=options), "distillation", work, out)
    convert(state, replace(setting, student=student), work, out)


def _no_training(state: State) -> str | None:
    if backend_trained_for(state.options.backend) is None:
        return f"{state.options.backend} has no quantizer to train with"
    if state.data.visible.train is None:
        return "the workload has no training data"
    return None


def _qat(state: State, setting: Setting, work: Path, out: Path) -> None:
    """The student trained with the backend's rounding, towards the teacher and the labels."""
    from edgekit.compress.qat_options import QatOptions
    from edgekit.recipe import Step

    backend = backend_trained_for(state.options.backend)
    options = QatOptions(backends=(str(backend),), epochs=state.options.epochs, batch_size=state.options.batch_size)
    student = _trained(state, setting, Step(qat=options), "quantization-aware training", work, out)
    plain = QuantizationOptions(io_dtype=setting.quantization.io_dtype)  # ranges and biases are those of training
    convert(state, replace(setting, student=student, quantization=plain), work, out)


RUNG_MAKERS: dict[str, Rung] = {
    "minmax": Rung(
        what="ranges by minimum and maximum of a fifth of the samples", refusal=_never, setting=_minmax, make=convert
    ),
    "ranges": Rung(
        what="ranges chosen tensor by tensor by the SQNR at the outputs, more samples",
        refusal=_never,
        setting=lambda state: _quantized(state, ranges=RangeRule.AUTO),
        make=convert,
    ),
    "bias-correction": Rung(
        what="biases shifted by the mean error of their layers (Nagel et al. 2019)",
        refusal=_never,
        setting=lambda state: _quantized(state, bias_correction=True),
        make=convert,
    ),
    "per-channel": Rung(
        what="one weight scale for each output channel", refusal=_per_channel, setting=_quantized, make=convert
    ),
    "keep-float": Rung(
        what="the fewest layers in float that hold the gate", refusal=_never, setting=_quantized, make=_keep_float
    ),
    "int16-activations": Rung(
        what="int8 weights with int16 activations", refusal=_no_int16, setting=_int16, make=convert
    ),
    "distill": Rung(
        what="the float student distilled from the teacher without labels, then int8",
        refusal=_no_float_to_mend,
        setting=_quantized,
        make=_distill,
        can_mend_float=True,
    ),
    "qat": Rung(
        what="quantization-aware training towards the teacher",
        refusal=_no_training,
        setting=_quantized,
        make=_qat,
        can_mend_float=True,
    ),
}
"""By name, in the order of `options.RUNGS`."""
