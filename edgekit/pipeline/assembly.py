"""The end of a run: the report as one value, the run's folder, and what the command should answer."""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import edgekit
from edgekit.artifact import Artifact, Effect, LineageStep, Passport
from edgekit.benchmarks.verdict import overall
from edgekit.pipeline.conversion import Converted
from edgekit.pipeline.facts import host_facts, tool_versions
from edgekit.pipeline.measurement import Measured
from edgekit.pipeline.rows import RowMaker
from edgekit.report.model import Baseline, DataFacts, Report, Row, Verdict, Warned
from edgekit.schema import Record, read_record, write_atomically

if TYPE_CHECKING:
    from edgekit.pipeline.learning import Learned, Reference
    from edgekit.pipeline.run import Context, RunOutcome
    from edgekit.store import ResultStore

__all__ = ["RunState", "assemble", "finish", "finished_before"]


class RunState(Record):
    """`run.json`: whether a run is finished, and with which tools."""

    schema_version: Literal[1] = 1
    run_id: str
    is_finished: bool
    tool_versions: dict[str, str]
    edgekit: str


def assemble(
    context: Context,
    *,
    run_id: str,
    learned: Learned,
    teacher: Reference,
    student: Reference,
    converted: Converted,
    measured: Measured,
    store: ResultStore,
    seconds: float,
) -> Report:
    """The report of a run, from its stages and the store."""
    recipe, workload = context.recipe, context.workload
    rows = RowMaker(
        measured=measured,
        baseline=converted.baseline,
        teacher=teacher,
        student=student,
        classes=workload.classes,
        gates=recipe.gates,
        store=store,
    ).rows()
    baseline = _baseline(context, learned, teacher)
    verdict, reasons = _verdict(rows, converted, measured)
    return Report(
        run_id=run_id,
        title=recipe.title or recipe.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        edgekit_version=edgekit.__version__,
        recipe=recipe.model_dump(mode="json"),
        task=str(workload.task),
        data=DataFacts(
            name=workload.data_name,
            source=workload.data_source,
            train=len(workload.train) if workload.train is not None else 0,
            calibration=min(recipe.convert.calibration, len(workload.calibration or workload.train or ())),
            evaluation=len(workload.evaluation),
            classes=workload.classes,
        ),
        host=host_facts(),
        devices=measured.devices,
        skipped_devices=measured.skipped,
        baseline=baseline,
        lineage=_lineage(context, learned, baseline, rows, converted),
        artifacts=tuple(artifact.passport for artifact in converted.shipped),
        rows=rows,
        stages=tuple(context.stages),
        warnings=_warnings(context, converted, rows),
        verdict=verdict,
        verdict_reasons=reasons,
        command=context.options.command,
        seconds=round(seconds, 1),
    )


def _baseline(context: Context, learned: Learned, teacher: Reference) -> Baseline:
    from edgekit.benchmarks.accuracy import evaluate
    from edgekit.compress.cost import count_macs, count_parameters, weight_bytes

    module = learned.teacher.module
    return Baseline(
        name=context.workload.name,
        accuracy=evaluate(teacher.outputs, labels=teacher.targets).accuracy,
        parameters=count_parameters(module),
        macs=count_macs(module, context.workload.example_inputs),
        size_bytes=weight_bytes(module),
    )


def _lineage(
    context: Context, learned: Learned, baseline: Baseline, rows: tuple[Row, ...], converted: Converted
) -> tuple[LineageStep, ...]:
    """Teacher, the compression steps, then what quantization did to the artifact of each format."""
    options = context.recipe.teacher
    trained = options.train is not None
    teacher = LineageStep(
        step="teacher",
        summary=f"trained for {options.train.epochs} epochs on {context.workload.data_name}"
        if options.train is not None
        else f"weights from {options.weights}"
        if options.weights
        else "used as the workload gave it",
        options=options.model_dump(mode="json", exclude_none=True, exclude={"pretrain"}),
        seed=context.recipe.seed if trained else None,
        after=Effect(
            parameters=baseline.parameters,
            macs=baseline.macs,
            size_bytes=baseline.size_bytes,
            accuracy=baseline.accuracy.value if baseline.accuracy else None,
        ),
        seconds=learned.teacher_stage.seconds,
    )
    return (*learned.pretraining, teacher, *learned.lineage, *_quantization_steps(rows, converted.students))


def _quantization_steps(rows: tuple[Row, ...], artifacts: tuple[Artifact, ...]) -> list[LineageStep]:
    """One step per quantized artifact: its fp32 twin before, itself after, on the first device."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.artifact, row)
    floats = {a.passport.backend: a.passport for a in artifacts if a.passport.scheme == "fp32"}
    steps = []
    for passport in (a.passport for a in artifacts if a.passport.scheme not in (None, "fp32")):
        twin = floats.get(passport.backend)
        steps.append(
            LineageStep(
                step=f"quantize {passport.scheme} ({passport.backend or passport.format})",
                summary=_quantization_summary(passport),
                before=_effect_of(twin, first) if twin else None,
                after=_effect_of(passport, first),
                seconds=passport.conversion_seconds,
            )
        )
    return steps


def _quantization_summary(passport: Passport) -> str:
    left = len(passport.unquantized_ops)
    told = "no op left in float" if left == 0 else f"{left} op(s) left in float"
    trained = passport.calibration is not None and passport.calibration.rule == "trained"
    return f"{'weights and ranges from qat' if trained else 'post-training, calibrated'}; {told}"


def _effect_of(passport: Passport, rows: dict[str, Row]) -> Effect:
    row = rows.get(passport.name)
    return Effect(
        parameters=passport.parameters,
        macs=passport.macs,
        size_bytes=passport.size_bytes,
        accuracy=row.accuracy.value if row and row.accuracy else None,
        agreement=row.agreement.value if row and row.agreement else None,
    )


def _verdict(rows: tuple[Row, ...], converted: Converted, measured: Measured) -> tuple[Verdict, tuple[str, ...]]:
    reasons = [f"{name} could not be converted: {error.message}" for name, error in converted.failures]
    for row in rows:
        if row.status != "ok":
            reasons.append(f"{row.artifact} on {row.device}: {row.status}: {row.error or 'no reason given'}")
        reasons.extend(
            f"{row.artifact} on {row.device}: {gate.gate}: {gate.verdict}: {gate.detail}"
            for gate in row.gates
            if gate.verdict is not Verdict.PASS and row.status == "ok"
        )
    if converted.failures or not rows:
        return Verdict.FAIL, tuple(reasons) or ("nothing was measured",)
    verdict = overall(row.verdict for row in rows)
    if verdict is Verdict.NOT_GATED:
        reasons.append("the recipe asks for no gates")
    elif verdict is Verdict.PASS:
        gated = [row for row in rows if row.gates]
        asked = dict.fromkeys(gate.gate for row in gated for gate in row.gates)
        reasons.append(f"all {len(gated)} gated rows pass: {', '.join(asked)}")
    return verdict, tuple(reasons)


def _warnings(context: Context, converted: Converted, rows: tuple[Row, ...]) -> tuple[Warned, ...]:
    for artifact in converted.shipped:
        for text in artifact.passport.warnings:
            context.warn(artifact.passport.name, text)
        for op in artifact.passport.unquantized_ops:
            context.warn(artifact.passport.name, f"{op.op} at {op.where} stayed in float: {op.reason}")
    for row in rows:
        if row.non_finite:
            context.warn(row.id, f"{row.non_finite} output values are not finite")
        is_odd = row.host_verdict is Verdict.FAIL or row.scheme not in (None, "fp32")
        if row.matches_host is False and is_odd:
            context.warn(row.id, f"outputs against this host's: {row.host_reason}")
    return tuple(context.warnings)


def finished_before(folder: Path) -> Report | None:
    """The report of a run that was finished with the tools of now, or None."""
    from edgekit.errors import UserError
    from edgekit.report.write import read_report

    try:
        state = read_record(RunState, folder / "run.json")
        if not state.is_finished or state.tool_versions != tool_versions() or state.edgekit != edgekit.__version__:
            return None
        return read_report(folder / "report.json")
    except (OSError, ValueError, UserError):
        return None  # an unreadable run is run again; its stages are checked one by one


def finish(context: Context, report: Report, converted: Converted, measured: Measured) -> RunOutcome:
    """Write the run's folder and say what the command should answer."""
    from edgekit.pipeline.run import RunOutcome, work_is_cached
    from edgekit.report.write import read_report, write_report

    folder = context.workspace.run_folder(report.run_id)
    did_nothing = (
        work_is_cached(context.stages)
        and all(m.was_stored for m in measured.measurements)
        and (folder / "report.json").is_file()
    )
    if did_nothing:
        report = read_report(folder / "report.json")
    else:
        _write_artifacts(folder / "artifacts", converted.shipped)
        write_report(report, folder)
    state = RunState(
        run_id=report.run_id,
        is_finished=not context.errors and not measured.skipped,
        tool_versions=tool_versions(),
        edgekit=edgekit.__version__,
    )
    write_atomically(folder / "run.json", state.model_dump_json(indent=2) + "\n")
    context.workspace.point_latest(report.run_id)
    return RunOutcome(
        report=report, folder=folder, did_nothing=did_nothing, error=context.errors[0] if context.errors else None
    )


def _write_artifacts(folder: Path, artifacts: tuple[Artifact, ...]) -> None:
    """Each artifact under its name, for people to take; links where the disk allows, so that nothing is twice."""
    for artifact in artifacts:
        place = folder / f"{artifact.passport.name}"
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)
        for path in artifact.folder.iterdir():
            if path.name == "stage.json":
                continue
            try:
                os.link(path, place / path.name)
            except OSError:
                shutil.copy2(path, place / path.name)
