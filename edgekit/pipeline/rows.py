"""From measurements to the rows of the report: accuracy, agreement, statistics, verdicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact
from edgekit.benchmarks.values import DeviceInfo, Gates, RunStatus
from edgekit.errors import EdgekitError
from edgekit.pipeline.measurement import Measured, Measurement
from edgekit.report.model import Row, Verdict, WorstInput

if TYPE_CHECKING:
    import numpy as np

    from edgekit.benchmarks.accuracy import Accuracy
    from edgekit.pipeline.learning import Reference
    from edgekit.store import ResultStore

__all__ = ["RowMaker"]

WORST_SHOWN = 6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RowMaker:
    """Makes the rows of one run; `teacher` and `student` are the PyTorch outputs that all is judged by."""

    measured: Measured
    baseline: Artifact | None
    teacher: Reference
    student: Reference
    classes: tuple[str, ...]
    gates: Gates
    store: ResultStore

    def rows(self) -> tuple[Row, ...]:
        """One row a measurement, in the order measured, gated and with the Pareto front marked."""
        from edgekit.benchmarks.pareto import pareto_front

        devices = {info.spec: info for info in self.measured.devices}
        rows = [self._row(m, devices.get(m.device)) for m in self.measured.measurements]
        rows = self._compared_with_host(rows, devices)
        rows = self._compared_with_float(rows)
        rows = [self._judged(row, rows) for row in rows]
        front = pareto_front(rows)
        return tuple(row.model_copy(update={"pareto": row.id in front}) for row in rows)

    def _row(self, measurement: Measurement, info: DeviceInfo | None) -> Row:
        from edgekit.benchmarks.stability import invalid_reasons, judge_stability
        from edgekit.benchmarks.stats import cold_load_ns, cold_process_ns, summarize

        run, passport = measurement.run, measurement.artifact.passport
        row = Row(
            id=f"{passport.name}@{measurement.device}",
            artifact=passport.name,
            device=measurement.device,
            is_baseline=self._is_baseline(measurement.artifact),
            format=passport.format.value,
            scheme=passport.scheme.value if passport.scheme else None,
            size_bytes=passport.size_bytes,
            status=run.status.value if run else "not measured",
            error=_told(measurement.error) if run is None else run.error,
            emulated=info.emulated if info else False,
        )
        if run is None:
            return row
        stability = judge_stability(run) if run.latency_ns else None
        memory = run.memory
        peak = memory.peak_rss_bytes if memory else None
        base = memory.baseline_rss_bytes if memory else None
        return row.model_copy(
            update={
                "run": run,
                "latency": summarize(run.latency_ns) if run.latency_ns else None,
                "cold_load_ns": cold_load_ns(run),
                "cold_process_ns": cold_process_ns(run),
                "peak_rss_bytes": peak,
                "model_rss_bytes": peak - base if peak is not None and base is not None else None,
                "flags": (*run.flags, *(str(d) for d in stability.doubts)) if stability else run.flags,
                "stability": stability,
                "invalid": invalid_reasons(run) if run.status is RunStatus.OK else (),
                **self._accuracy_of(measurement),
            }
        )

    def _is_baseline(self, artifact: Artifact) -> bool:
        return self.baseline is not None and artifact.passport.sha256 == self.baseline.passport.sha256

    def outputs(self, measurement: Measurement) -> tuple[np.ndarray, ...] | None:
        """What the device gave for the whole evaluation set, dequantized; None where it was not evaluated."""
        from edgekit.benchmarks.inputs import read_outputs

        run = measurement.run
        if run is None or run.outputs_sha256 is None:
            return None
        path = self.store.outputs_path(run.outputs_sha256)
        return read_outputs(path, measurement.artifact.passport, len(self.measured.inputs), device=measurement.device)

    def _accuracy_of(self, measurement: Measurement) -> dict[str, object]:
        from edgekit.benchmarks.accuracy import evaluate

        outputs = self.outputs(measurement)
        if outputs is None:
            return {}
        reference = self.teacher if self._is_baseline(measurement.artifact) else self.student
        told = evaluate(
            outputs[0],
            labels=self.teacher.targets,
            teacher=self.teacher.outputs,
            reference=reference.outputs,
        )
        return {
            "accuracy": told.accuracy,
            "top5": told.top5,
            "accuracy_drop": told.accuracy_drop,
            "agreement": told.agreement,
            "kl_to_teacher": told.kl_to_teacher,
            "sqnr_db": told.sqnr_db,
            "sqnr_exact": told.sqnr_exact,
            "non_finite": told.non_finite,
            "worst": self._worst(told, outputs[0]),
        }

    def _worst(self, told: Accuracy, outputs: np.ndarray) -> tuple[WorstInput, ...]:
        from edgekit.report.pictures import png_base64

        def name(index: int) -> str:
            return self.classes[index] if 0 <= index < len(self.classes) else str(index)

        return tuple(
            WorstInput(
                index=index,
                label=name(int(self.teacher.targets[index])),
                teacher=name(int(self.teacher.outputs[index].argmax())),
                artifact=name(int(outputs[index].argmax())),
                kl=kl,
                image_png_base64=png_base64(self.measured.inputs.arrays[0][index]),
            )
            for index, kl in told.worst[:WORST_SHOWN]
        )

    def _compared_with_host(self, rows: list[Row], devices: Mapping[str, DeviceInfo]) -> list[Row]:
        """Rows of other devices, with whether their outputs are this host's: to the bit where they should be."""
        by_id = {row.id: m for row, m in zip(rows, self.measured.measurements, strict=True)}
        compared = []
        for row in rows:
            host = by_id.get(f"{row.artifact}@local")
            if row.device != "local" and host is not None:
                row = self._matched(row, host, by_id[row.id], devices)
            compared.append(row)
        return compared

    def _matched(self, row: Row, host: Measurement, there: Measurement, devices: Mapping[str, DeviceInfo]) -> Row:
        from edgekit.benchmarks.host_match import match_host, why_not_exact

        outputs, ours = self.outputs(there), self.outputs(host)
        if outputs is None or ours is None or host.run is None or there.run is None:
            return row
        infos = (devices.get("local"), devices.get(there.device))
        excuse: str | None = "the facts of one device are not known"
        if infos[0] is not None and infos[1] is not None:
            excuse = why_not_exact(host.run, there.run, infos[0], infos[1])
        reference = self.teacher if self._is_baseline(there.artifact) else self.student
        told = match_host(ours, outputs, reference=reference.outputs, excuse=excuse)
        flag = (f"outputs against this host's: {told.reason}",) if told.verdict is Verdict.FAIL else ()
        return row.model_copy(
            update={
                "matches_host": told.is_equal,
                "host_max_abs_difference": told.max_abs_difference,
                "host_verdict": told.verdict,
                "host_reason": told.reason,
                "flags": (*row.flags, *flag),
            }
        )

    def _compared_with_float(self, rows: list[Row]) -> list[Row]:
        """Quantized rows slower than their fp32 twin on the same device are flagged, where the intervals tell."""
        backend = {m.artifact.passport.name: m.artifact.passport.backend for m in self.measured.measurements}
        floats = {
            (row.device, backend[row.artifact]): row.latency
            for row in rows
            if row.scheme == "fp32" and not row.is_baseline and row.latency is not None
        }
        flagged = []
        for row in rows:
            twin = floats.get((row.device, backend[row.artifact]))
            is_quantized = row.scheme is not None and row.scheme != "fp32"
            if is_quantized and twin and row.latency and row.latency.p50_low_ns > twin.p50_high_ns:
                told = (
                    f"slower than fp32 here: {row.latency.p50_ns / 1e3:.4g} µs against {twin.p50_ns / 1e3:.4g} µs "
                    f"({row.latency.p50_ns / twin.p50_ns:.2f}x); {row.scheme} does not pay in time on this device"
                )
                row = row.model_copy(update={"flags": (*row.flags, told)})
            flagged.append(row)
        return flagged

    def _judged(self, row: Row, rows: list[Row]) -> Row:
        from edgekit.benchmarks.verdict import judge, unstated_speedup

        base = next((other for other in rows if other.is_baseline and other.device == row.device), None)
        unstated = unstated_speedup(row, base) if base and not row.is_baseline else None
        if unstated is not None:
            row = row.model_copy(update={"speedup_unstated": unstated, "flags": (*row.flags, unstated)})
        elif base and base.latency and row.latency and row.latency.p50_ns:
            row = row.model_copy(update={"speedup": base.latency.p50_ns / row.latency.p50_ns})
        if row.is_baseline:
            # the baseline is the yardstick; only that it could be measured is asked of it
            verdict = Verdict.NOT_GATED if row.status == "ok" else Verdict.FAIL
            return row.model_copy(update={"verdict": verdict})
        verdict, gates = judge(row, self.gates, baseline=base.latency if base else None, unstated=unstated)
        if row.status != "ok":
            verdict = Verdict.FAIL
        return row.model_copy(update={"verdict": verdict, "gates": gates})


def _told(error: EdgekitError | None) -> str | None:
    return None if error is None else error.message
