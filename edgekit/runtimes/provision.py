"""Providing a runtime on a device: `local` uses what is installed here, others get wheels pushed.

The device needs no network and no pip. Wheels are resolved on the host (`edgekit.runtimes.wheels`), sent once
by content hash, unpacked there once, and proven by importing the runtime once.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.benchmarks.devices.asking import ask
from edgekit.benchmarks.devices.base import Deadline, Device, Needed
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import DeviceDiskFull, DeviceUnusable, IntegrityError, MissingDependencyError
from edgekit.runtimes.catalog import RuntimeSpec
from edgekit.runtimes.device_scripts.install_wheels import BROKEN, FULL, REFUSED
from edgekit.runtimes.wheels import resolve_wheels
from edgekit.schema import digest, parse_json

__all__ = ["Provision", "provided", "provision", "runtime_identity", "wheel_cache"]

log = logging.getLogger(__name__)

_INSTALLER = Path(__file__).parent / "device_scripts" / "install_wheels.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision:
    """How to start the runner so that it finds the runtime."""

    env: dict[str, str] = field(default_factory=dict)
    needed: tuple[Needed, ...] = ()
    """What is on the device when it is provided."""


def wheel_cache() -> Path:
    """`$EDGEKIT_CACHE/wheels`, by default `~/.cache/edgekit/wheels`."""
    from edgekit.benchmarks.devices.local import cache_dir

    return cache_dir() / "wheels"


def runtime_identity(runtime: RuntimeSpec, info: DeviceInfo) -> str:
    """Which build of the runtime a job on `info` will use (`ai-edge-litert==2.3.0`); part of a job's key.

    Raises MissingDependencyError where `info` is this host and the runtime is not installed.
    """
    if info.kind == "local":
        return "+".join(_installed(runtime))
    return "+".join(w.requirement for w in runtime.wheels_for(info.abi))


def provided(device: Device, info: DeviceInfo, runtime: RuntimeSpec) -> Provision:
    """What `provision` comes to on `device`, told without asking it. Raises what `provision` does on the host."""
    if info.kind == "local":
        _installed(runtime)
        return Provision()
    if not runtime.wheels:
        return Provision()
    site = device.root / "site"
    shas = [sha for _, sha in resolve_wheels(runtime, info, wheel_cache())]
    folders = [site / sha for sha in shas]
    ready = Needed(path=site / _ready(info, runtime, shas), size=0)
    return Provision(
        env={"PYTHONPATH": ":".join(map(str, folders))},
        needed=(*(Needed(path=folder, size=None) for folder in folders), ready),
    )


def _ready(info: DeviceInfo, runtime: RuntimeSpec, shas: list[str]) -> str:
    """The file in `site/` that tells: these wheels were unpacked and work with this Python."""
    return f"ready-{digest(info.python, runtime.check, shas)}"


def provision(device: Device, info: DeviceInfo, runtime: RuntimeSpec, deadline: Deadline) -> Provision:
    """Make `runtime` importable on `device`; a second call costs two short commands and sends nothing.

    Raises MissingDependencyError (local, not installed), HostError (wheels cannot be had), DeviceUnusable (no
    wheels for this device, or they do not import there), and what the link raises.
    """
    if info.kind == "local":
        _installed(runtime)
        return Provision()
    if not runtime.wheels:
        return Provision()
    given = provided(device, info, runtime)
    wheels = {sha: path for path, sha in resolve_wheels(runtime, info, wheel_cache())}
    installer = device.put(_INSTALLER, deadline)
    ready = _ready(info, runtime, list(wheels))
    answer = _install(device, str(installer), runtime, ready, list(wheels), deadline)
    for sha in answer.get("missing", []):
        if sha not in wheels:
            raise IntegrityError("asked for a wheel it was never offered", device=device.spec)
        _put(device, str(installer), wheels[sha], list(wheels), deadline)
    if "missing" in answer:
        answer = _install(device, str(installer), runtime, ready, list(wheels), deadline)
    paths = [str(device.root / "site" / sha) for sha in wheels]
    if answer.get("paths") != paths:
        raise IntegrityError("did not install the wheels it was sent", device=device.spec)
    return given


def _put(device: Device, installer: str, wheel: Path, keep: list[str], deadline: Deadline) -> None:
    """Send a wheel; on a full device once more, after runtimes there that nothing uses were removed."""
    try:
        device.put(wheel, deadline)
    except DeviceDiskFull:
        freed = device.run([device.python, installer, "--free", str(device.root / "site"), *keep], deadline)
        log.warning("%s is full; runtimes that nothing uses were removed: %s", device.spec, freed.stdout.strip()[:100])
        device.put(wheel, deadline)


def _installed(runtime: RuntimeSpec) -> list[str]:
    """`distribution==version` of what is installed here, the preferred first; raises MissingDependencyError."""
    for module, distribution in runtime.imports:
        if importlib.util.find_spec(module) is not None:
            try:
                return [f"{distribution}=={importlib.metadata.version(distribution)}"]
            except importlib.metadata.PackageNotFoundError:
                return [distribution]
    if not runtime.imports:
        return [runtime.name]
    raise MissingDependencyError(
        f"running {'/'.join(f.value for f in runtime.formats)} models on this host",
        extra=runtime.extra,
        package=runtime.imports[0][1] if runtime.name != "executorch" else "executorch",
    )


def _install(
    device: Device, installer: str, runtime: RuntimeSpec, ready: str, shas: list[str], deadline: Deadline
) -> dict[str, list[str]]:
    """What the installer on the device printed: `missing` or `paths`."""
    argv = [device.python, installer, str(device.root / "site"), str(device.root / "cas"), runtime.check]
    argv += [ready, *shas]
    done = ask(device, argv, deadline)  # it unpacks by rename, so twice is once
    if done.returncode == 0:
        try:
            answer = parse_json(done.stdout, max_bytes=1 << 20)
        except ValueError as e:
            raise DeviceUnusable(f"the installer printed no JSON: {e}", device=device.spec) from e
        if isinstance(answer, dict) and all(isinstance(v, list) for v in answer.values()):
            return answer
        raise DeviceUnusable("the installer's answer is not what it should be", device=device.spec)
    tail = " | ".join(done.stderr.strip().splitlines()[-3:])
    if done.returncode == BROKEN:
        raise DeviceUnusable(
            f"{runtime.name} was installed and cannot be imported: {tail}",
            device=device.spec,
            hint="the device needs Python's standard library and libstdc++6; on 32-bit ARM python3-numpy, too",
        )
    if done.returncode == FULL:
        raise DeviceDiskFull(
            f"no space left for {runtime.name}: {tail}", device=device.spec, hint=f"free some where {device.root} lies"
        )
    reason = "a wheel was refused" if done.returncode == REFUSED else f"the installer ended with {done.returncode}"
    raise DeviceUnusable(f"{reason}: {tail}", device=device.spec)
