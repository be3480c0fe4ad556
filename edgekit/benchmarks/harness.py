"""Measuring one artifact on one device: push by content, start detached, wait, pull, check, record.

A job's key is the hash of (artifact, inputs, plan, runner, runtime, device fingerprint): what was measured is not
measured again. An attempt is journaled before anything happens on the device and recorded once. Whatever dies
in between (this process, the link, the runner), a second call finds the attempt pending and carries on with
it: pulls a result that lies there, waits for a runner that lives, starts a dead one again on the same folder,
where finished phases are kept. Only when the device was restarted meanwhile is the attempt recorded as lost
and a new one begun.

What the model does wrong (refused, crashed, too slow) is a recorded run with that status. What the link does
wrong is raised, and the attempt stays pending.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from edgekit.artifact import Artifact, Format
from edgekit.benchmarks.affinity import with_cores_of
from edgekit.benchmarks.devices.base import Deadline, Device, Launch, Needed, Watched
from edgekit.benchmarks.devices.inventory import require_runtime, with_floors_of
from edgekit.benchmarks.devices.quarantine import quarantined
from edgekit.benchmarks.failures import REBOOTED, killed_for_memory
from edgekit.benchmarks.inputs import InputFiles, InputSet, batch_of, outputs_limit, prepare_inputs, read_outputs
from edgekit.benchmarks.journal import Store
from edgekit.benchmarks.result import MAX_RESULT_BYTES, RunnerResult, parse_result, read_result
from edgekit.benchmarks.values import DeviceInfo, Plan, Run, RunStatus, RuntimeFacts
from edgekit.benchmarks.waiting import Died, Progress, Start, Watcher, launch, read_progress, wait_until_done
from edgekit.errors import DeviceError, DeviceRebooted, HostError, Interrupted, InvalidResultError
from edgekit.runtimes.catalog import RuntimeSpec, runtime_for
from edgekit.runtimes.compatibility import require_new_enough
from edgekit.runtimes.pack import pack_runner
from edgekit.runtimes.provision import provided, provision, runtime_identity
from edgekit.runtimes.runner import SCHEMA_VERSION
from edgekit.schema import canonical_json, digest, known_sha256, sha256_of

__all__ = ["job_key", "measure"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_NUMBERS = ("cold_starts", "latency_ns", "memory", "evaluated")

_PUSH_SECONDS = 900.0
_COMMAND_SECONDS = 60.0
_GRACE_SECONDS = 60.0
"""Beyond the plan's timeout, which the runner itself keeps."""


def measure(
    device: Device,
    info: DeviceInfo,
    artifact: Artifact,
    inputs: InputSet,
    plan: Plan,
    *,
    store: Store,
    work_dir: Path,
    fresh: bool = False,
    on_progress: Callable[[str, float], None] | None = None,
    runtime: RuntimeSpec | None = None,
) -> Run:
    """The run of `artifact` on `device` by `plan`: the stored one unless `fresh`, else a new one, recorded.

    `work_dir` takes input files and the packed runner (shared between calls). `on_progress` is told the phase
    and the share of phases that are done. `runtime` is the format's own unless given.
    Raises DeviceError and its kin for the device and the link (DeviceRebooted where a restart voided the attempt,
    DeviceFlapping for a link that broke three times within half a minute), InvalidResultError for a result that breaks
    the format, MissingDependencyError, UnsupportedError for a runtime too old for the file, WorkloadError for inputs
    that do not fit, LeaseLost when `store` says that the device is another's by now, Interrupted on Ctrl-C (the job
    goes on).
    """
    runtime = runtime or runtime_for(artifact.passport.format)
    require_runtime(info.spec, runtime.name)
    plan = with_floors_of(info.spec, with_cores_of(info, plan))
    files = prepare_inputs(inputs, artifact.passport, work_dir)
    runner, runner_sha256 = pack_runner(work_dir)
    identity = runtime_identity(runtime, info)
    require_new_enough(artifact.passport, identity)
    key = job_key(artifact, files, plan, runner_sha256, identity, info)
    known = None if fresh else store.selected(key)
    if known is not None and _has_outputs(known, store):
        return known
    job = _Job(
        device=device,
        info=info,
        artifact=artifact,
        files=files,
        plan=plan,
        store=store,
        work_dir=work_dir,
        runner=runner,
        runner_sha256=runner_sha256,
        runtime=runtime,
        key=key,
        on_progress=on_progress or (lambda _phase, _part: None),
    )
    try:
        with quarantined(info):
            return job.measure()
    except KeyboardInterrupt as e:
        raise Interrupted(
            f"interrupted while measuring {artifact.passport.name} on {info.spec}; the job may go on there",
            hint="run the same command again: it takes up the job where it is",
        ) from e


def job_key(
    artifact: Artifact, files: InputFiles, plan: Plan, runner_sha256: str, runtime: str, info: DeviceInfo
) -> str:
    """sha256 over everything that decides the numbers."""
    passport = artifact.passport
    names = [[t.name for t in passport.inputs], [t.name for t in passport.outputs], batch_of(passport)]
    plan_facts = plan.model_dump(mode="json")
    return digest(passport.sha256, names, files.sha256, plan_facts, runner_sha256, runtime, info.fingerprint())


def _with_nodes(facts: RuntimeFacts | None, artifact: Artifact) -> RuntimeFacts | None:
    """`facts` with the nodes of the delegate as the model file has them, where the runtime does not count its own.

    Only where the file fixes them: a delegate of an ExecuTorch program is part of the program, and a runtime that
    cannot execute it refuses the program.
    """
    passport = artifact.passport
    if facts is None or facts.delegate is None or facts.total_nodes is not None:
        return facts
    if passport.format is not Format.EXECUTORCH:
        return facts
    for known in passport.delegates:
        if known.name.lower().startswith(facts.delegate.lower()):
            return facts.model_copy(update={"delegate_nodes": known.nodes, "total_nodes": known.total})
    return facts


def _has_outputs(run: Run, store: Store) -> bool:
    return run.outputs_sha256 is None or store.outputs_path(run.outputs_sha256).is_file()


@dataclass(kw_only=True)
class _Job:
    """One call of `measure`, past the look into the store."""

    device: Device
    info: DeviceInfo
    artifact: Artifact
    files: InputFiles
    plan: Plan
    store: Store
    work_dir: Path
    runner: Path
    runner_sha256: str
    runtime: RuntimeSpec
    key: str
    on_progress: Callable[[str, float], None]
    host_ns: dict[str, int] = field(default_factory=dict)
    begun: int = field(default_factory=time.monotonic_ns)

    def measure(self) -> Run:
        attempt = self.store.pending(self.key)
        if attempt is not None and self._was_restarted(attempt):
            self._record(attempt, RunStatus.LOST, REBOOTED)
            attempt = None
        resumed = attempt is not None
        if attempt is None:
            attempt = self.store.begin(self.key)
        job = self._timed("push", lambda: self._launch(attempt))
        watcher = Watcher(job.job, self._show)
        deadline = Deadline.after(self.plan.timeout_seconds + _GRACE_SECONDS)
        watched = self._timed("run", lambda: launch(self.device, job, watcher))
        if watched.missing:
            self.host_ns["push"] += self.host_ns.pop("run")
            self._timed("push", lambda: self._push(watched.missing))
            self.store.check()
            watched = self._timed("run", lambda: launch(self.device, job, watcher))
        if watched.missing:
            raise DeviceError(
                f"{watched.missing[0].name} was sent and is not there",
                device=self.info.spec,
                hint="is something else removing files from edgekit's folder on the device?",
            )
        is_ours = watched.started and not resumed
        start, check = Start(job.job, list(job.argv), dict(job.env)), self.store.check
        ended = self._timed("run", lambda: wait_until_done(self.device, start, deadline, watched, watcher, check))
        if isinstance(ended, Died):
            run = self._finish(attempt, self._record(attempt, ended.status, ended.error))
            if ended.error == REBOOTED:
                raise DeviceRebooted(f"{REBOOTED}; attempt {attempt} is void", device=self.info.spec)
            return run
        return self._finish(attempt, self._collect(attempt, ended, is_whole=is_ours))

    def _name(self, attempt: int) -> str:
        return f"{self.key}.{attempt}"

    def _soon(self) -> Deadline:
        return Deadline.after(_COMMAND_SECONDS)

    def _timed(self, part: str, step: Callable[[], T]) -> T:
        begun = time.monotonic_ns()
        try:
            return step()
        finally:
            self.host_ns[part] = self.host_ns.get(part, 0) + time.monotonic_ns() - begun

    def _was_restarted(self, attempt: int) -> bool:
        """Whether the device booted since this attempt's runner wrote its progress."""
        progress = read_progress(self.device, self._name(attempt), self._soon())
        boots = (progress.boot_id if progress else None, self.info.boot_id)
        return None not in boots and boots[0] != boots[1]

    def _files(self) -> list[Path]:
        """Everything the job reads, beside its runtime."""
        backend = [self.runtime.backend_file] if self.runtime.backend_file else []
        return [self.runner, self.artifact.path, *(path for _, path in self.files.files), *backend]

    def _launch(self, attempt: int) -> Launch:
        """The job, told from what lies here; whether it lies there as well is for the device to say."""
        given = provided(self.device, self.info, self.runtime)
        places = [self._place(path) for path in self._files()]
        runner, model, *inputs = (needed.path for needed in places)
        names = [name for name, _ in self.files.files]
        backend = inputs.pop() if self.runtime.backend_file else None
        name = self._name(attempt)
        return Launch(
            job=name,
            argv=(self.device.python, str(runner), "run", str(self.device.job_dir(name))),
            env=given.env,
            needed=(*given.needed, *places),
            files={"job.json": self._job_json(attempt, model, list(zip(names, inputs, strict=True)), backend)},
        )

    def _place(self, path: Path) -> Needed:
        try:
            return Needed(path=self.device.stored(known_sha256(path)), size=path.stat().st_size)
        except OSError as e:
            raise HostError(f"cannot read {path}: {e.strerror}") from e

    def _push(self, missing: Sequence[PurePosixPath]) -> None:
        """What the device said it has not: files, and parts of the runtime."""
        deadline = Deadline.after(_PUSH_SECONDS)
        files = {self._place(path).path: path for path in self._files()}
        if not files.keys() >= set(missing):
            provision(self.device, self.info, self.runtime, deadline)
        for place in files.keys() & set(missing):
            self.device.put(files[place], deadline, is_missing=True)

    def _job_json(
        self, attempt: int, model: PurePosixPath, inputs: list[tuple[str, PurePosixPath]], backend: PurePosixPath | None
    ) -> bytes:
        passport = self.artifact.passport
        job = {
            "schema_version": SCHEMA_VERSION,
            "job": self._name(attempt),
            "runtime": self.runtime.name,
            "backend_file": str(backend) if backend else None,
            "model": str(model),
            "inputs": [{"name": name, "path": str(path)} for name, path in inputs],
            "outputs": [spec.name for spec in passport.outputs],
            "batch": batch_of(passport),
            "plan": self.plan.model_dump(mode="json"),
        }
        return canonical_json(job).encode()

    def _show(self, progress: Progress) -> None:
        self.store.check()
        self.on_progress(progress.phase, progress.done / max(1, progress.total))

    def _collect(self, attempt: int, watched: Watched, *, is_whole: bool) -> Run:
        """Take what the device has, check it, keep the outputs, record the run.

        `is_whole` says that this call saw the job from its start to its end.
        """
        try:
            result = self._timed("pull", lambda: self._pull(attempt, watched.result, is_whole=is_whole))
        except InvalidResultError as e:
            self._record(attempt, RunStatus.FAILED, f"the device's result was refused: {e.message}")
            raise
        flags = list(result.flags)
        if result.starts > 1:
            flags.append(f"the runner was started {result.starts} times")
        error = result.error
        if result.signal == signal.SIGKILL and (said := killed_for_memory(self.device)) is not None:
            error = f"{error}\nthe device's log: {said}"
        found = result.values() | {"flags": tuple(flags), "runtime": _with_nodes(result.runtime_facts(), self.artifact)}
        return self._record(attempt, RunStatus(result.status), error, found)

    def _result(self, name: str, text: bytes | None) -> RunnerResult:
        """The checked result: `text`, or what lies on the device where it was too large to come along."""
        spec, count = self.info.spec, self.files.count
        if text is not None:
            return parse_result(text, device=spec, job=name, plan=self.plan, inputs=count)
        local = self.work_dir / f"{name}.result.json"
        try:
            source = self.device.job_dir(name) / "result.json"
            self.device.pull(source, local, Deadline.after(_PUSH_SECONDS), max_bytes=MAX_RESULT_BYTES)
            return read_result(local, device=spec, job=name, plan=self.plan, inputs=count)
        finally:
            local.unlink(missing_ok=True)

    def _pull(self, attempt: int, text: bytes | None, *, is_whole: bool) -> RunnerResult:
        """The checked result; its outputs file, checked too, lies where the store wants it."""
        name, deadline = self._name(attempt), Deadline.after(_PUSH_SECONDS)
        folder, spec = self.device.job_dir(name), self.info.spec
        result = self._result(name, text)
        if is_whole:
            self._compare_clocks(result)
        if result.outputs is None:
            return result
        passport, count = self.artifact.passport, self.files.count
        pulled = self.work_dir / f"{name}.outputs.npz"
        try:
            limit = outputs_limit(passport, count)
            sha = result.outputs.sha256
            self.device.pull(folder / "outputs.npz", pulled, deadline, max_bytes=limit, sha256=sha)
            if sha256_of(pulled) != result.outputs.sha256:
                raise InvalidResultError("is not the file the result names", device=spec, field="outputs.sha256")
            read_outputs(pulled, passport, count, device=spec)
            target = self.store.outputs_path(result.outputs.sha256)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(pulled, target)
        finally:
            pulled.unlink(missing_ok=True)
        return result

    def _compare_clocks(self, result: RunnerResult) -> None:
        """Refuse a result whose phases take longer, by the device's clock, than the job did by ours."""
        told, seen = sum(result.phase_ns.values()), self.host_ns["run"]
        if result.starts == 1 and told > seen * 1.1 + 1e9:
            raise InvalidResultError(
                f"{told / 1e9:.1f} s of phases in a job that took {seen / 1e9:.1f} s",
                device=self.info.spec,
                field="phase_ns",
            )

    def _record(
        self, attempt: int, status: RunStatus, error: str | None, values: dict[str, object] | None = None
    ) -> Run:
        """Build the run of this attempt and record it."""
        self.host_ns["total"] = time.monotonic_ns() - self.begun
        why = (error or "").splitlines()[:1]
        facts: dict[str, Any] = (
            dict(values) if values is not None else {"unmeasured": {name: why[0] for name in _NUMBERS if why}}
        )
        run = Run(
            job_key=self.key,
            attempt=attempt,
            status=status,
            artifact_sha256=self.artifact.passport.sha256,
            device_fingerprint=self.info.fingerprint(),
            plan=self.plan,
            runner_sha256=self.runner_sha256,
            inputs_sha256=self.files.sha256,
            host_ns=dict(self.host_ns),
            error=error,
            **facts,
        )
        self.store.record(run)
        return run

    def _finish(self, attempt: int, run: Run) -> Run:
        """Take the job's folder off the device, now that its run is recorded; a link that fails here costs nothing."""
        folders = [str(self.device.job_dir(n)) for n in Start(self._name(attempt), [], {}).names()]
        try:
            self.device.run(["rm", "-rf", "--", *folders], self._soon())
        except DeviceError as e:
            log.warning("%s: the folder of a finished job stays on the device: %s", self.info.spec, e.message)
        return run
