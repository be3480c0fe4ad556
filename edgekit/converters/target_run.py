"""One child process at work on one target: what it is given, what it answers, and where its artifacts go."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, LineageStep, Scheme
from edgekit.converters.base import MicroBudget, QuantizationOptions
from edgekit.converters.early import EarlyChild, EarlyChildren
from edgekit.converters.shapes import DynamicAxis
from edgekit.converters.wire import SchemeResult, WorkRequest
from edgekit.disk import disk_reason_in
from edgekit.errors import ConversionError, EdgekitError, HostError
from edgekit.isolation import ChildExit, failure_of, stderr_tail
from edgekit.schema import read_record, write_atomically

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Batch", "ConversionFailure", "ConversionOptions", "ConversionProgress", "Samples", "TargetRun"]

DISK_HINT = "free some space, or choose another folder with -o; finished artifacts are kept"

Samples = Sequence[Sequence["np.ndarray"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionProgress:
    """Where a conversion is; `stage` is `import`, `check`, `convert`, `done` or `failed`."""

    target: str
    scheme: Scheme | None
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """How to convert; what is asked for has no default here."""

    lineage: tuple[LineageStep, ...] = ()
    input_layouts: tuple[str | None, ...] = ()
    """The layout each input has in the model; `NCHW` where it has four axes and nothing is said."""
    input_layout: str | None = None
    """`nchw` or `nhwc`: the layout images are to have in the artifact; None leaves the model's."""
    dynamic: tuple[DynamicAxis, ...] = ()
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    is_trained: bool = False
    """The program holds quantize and dequantize ops from quantization-aware training; see `ConversionRequest`."""
    micro: MicroBudget = field(default_factory=MicroBudget)
    jobs: int = 1
    """Children at a time; two need twice the memory and pay only with idle cores."""
    threads: int = 1
    timeout_seconds: float = 900
    """Of wall clock, for each target."""
    memory_bytes: int | None = None
    """Held in memory by each child and what it starts."""
    allow_lossy: bool = False
    """Keep an artifact below the fidelity floor, with a warning in its passport."""
    only_check: bool = False
    """Look for obstacles and convert nothing."""
    warnings: tuple[str, ...] = ()
    """Said of the samples, for every passport."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionFailure:
    """One (target, scheme) that came to nothing, and why."""

    target: str
    scheme: Scheme
    error: EdgekitError


@dataclass(slots=True)
class Batch:
    """What all children of one call share."""

    name: str
    program_path: Path
    sha256: str
    samples: dict[str, Path]
    """`calibration` and `verification` to the file of each that there is."""
    output_dir: Path
    options: ConversionOptions
    report: Callable[[ConversionProgress], None]
    signatures: dict[str, tuple[Path, str]] = field(default_factory=dict)
    """Further entry points: name to program file and sha256."""
    early: EarlyChildren = field(default_factory=lambda: EarlyChildren((), Path(), 0))
    cancelled: threading.Event = field(default_factory=threading.Event)


class TargetRun:
    """Every scheme of one target, by one child. Each finished artifact is published at once, not at the end."""

    def __init__(self, batch: Batch, target: str, schemes: tuple[Scheme, ...]) -> None:
        self.artifacts: list[Artifact] = []
        self.failures: list[ConversionFailure] = []
        self._batch = batch
        self._target = target
        self._waiting = list(schemes)
        self._schemes = schemes
        self._told = ""
        self._folder = Path()

    def finish(self) -> None:
        """Run the child to its end; `artifacts` and `failures` then hold every scheme."""
        if self._batch.cancelled.is_set():
            return
        options = self._batch.options
        child = self._batch.early.take(self._target) or EarlyChild(
            self._target, self._batch.output_dir, options.threads
        )
        self._folder = child.folder
        try:
            self._prepare()
            ended = child.process.wait(
                timeout_seconds=options.timeout_seconds,
                resident_bytes=options.memory_bytes,
                cancelled=self._batch.cancelled,
                on_poll=self._look,
            )
            self._look()
            for scheme in list(self._waiting):
                self._fail(scheme, self._death(scheme, ended))
        finally:
            child.close()

    def _prepare(self) -> None:
        """Write everything the child reads."""
        batch, folder = self._batch, self._folder
        _place(batch.program_path, folder / "program.pt2")
        for index, (path, _) in enumerate(batch.signatures.values()):
            _place(path, folder / f"signature.{index}.pt2")
        for what, path in batch.samples.items():
            _place(path, folder / f"{what}.npz")
        request = WorkRequest(
            converter=self._target,
            name=batch.name,
            program="program.pt2",
            sha256=batch.sha256,
            schemes=self._schemes,
            has_calibration="calibration" in batch.samples,
            has_verification="verification" in batch.samples,
            quantization=batch.options.quantization,
            is_trained=batch.options.is_trained,
            signatures={name: sha256 for name, (_, sha256) in batch.signatures.items()},
            micro=batch.options.micro,
            input_layouts=batch.options.input_layouts,
            lineage=batch.options.lineage,
            threads=batch.options.threads,
            allow_lossy=batch.options.allow_lossy,
            warnings=batch.options.warnings,
            only_check=batch.options.only_check,
        )
        write_atomically(folder / "request.json", request.model_dump_json())

    def _look(self) -> None:
        """Take every answer that has come, then tell the stage that followed."""
        stage = self._stage()
        for scheme in list(self._waiting):
            answer = self._folder / f"result.{scheme}.json"
            if answer.is_file():
                self._take(read_record(SchemeResult, answer))
        if stage and stage != self._told:
            self._told = stage
            scheme_name, _, what = stage.partition(" ")
            self._tell(Scheme(scheme_name), what)

    def _take(self, result: SchemeResult) -> None:
        if result.error is not None:
            error = result.error.rebuilt(backend=self._target, stderr=stderr_tail(self._folder))
            self._fail(result.scheme, error)
            return
        if not self._batch.options.only_check:
            self.artifacts.append(self._publish(result))
        self._waiting.remove(result.scheme)
        self._tell(result.scheme, "done")

    def _fail(self, scheme: Scheme, error: EdgekitError) -> None:
        self.failures.append(ConversionFailure(target=self._target, scheme=scheme, error=error))
        self._waiting.remove(scheme)
        self._tell(scheme, "failed")

    def _tell(self, scheme: Scheme, stage: str) -> None:
        self._batch.report(ConversionProgress(target=self._target, scheme=scheme, stage=stage))

    def _stage(self) -> str:
        try:
            return (self._folder / "stage.txt").read_text()
        except FileNotFoundError:
            return ""

    def _death(self, scheme: Scheme, ended: ChildExit) -> EdgekitError:
        """Why a scheme has no answer: the way its child ended, and the stage it was in."""
        options = self._batch.options
        stage = self._stage() or f"{scheme} start"
        death = failure_of(
            ended,
            backend=self._target,
            stage=stage,
            timeout_seconds=options.timeout_seconds,
            memory_bytes=options.memory_bytes,
        )
        if death is not None and (reason := disk_reason_in(ended.stderr_tail)):
            return HostError(f"{self._target}: {stage}: {reason}", hint=DISK_HINT)
        if death is not None:
            return death
        return ConversionError("ended without an answer", backend=self._target, stage=stage, stderr=ended.stderr_tail)

    def _publish(self, result: SchemeResult) -> Artifact:
        """The artifact in its final folder; one of the same name made before is replaced."""
        batch, made = self._batch, self._folder / "out" / result.scheme
        artifact = Artifact.open(made)
        final = batch.output_dir / f"{batch.name}.{result.scheme}.{self._target}"
        if final.exists():
            final.rename(self._folder / f"replaced.{result.scheme}")
        made.rename(final)
        return Artifact(path=final / artifact.path.name, passport=artifact.passport)


def _place(path: Path, target: Path) -> None:
    """A hard link (the files are never written to again), or a copy where the file systems differ."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
