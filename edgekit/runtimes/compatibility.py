"""Whether a file will load on a device, told from its passport and the device's facts before anything is pushed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.artifact import Format, Passport
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import EdgekitError, Problem, UnsupportedError
from edgekit.runtimes.catalog import RuntimeSpec, runtime_for
from edgekit.runtimes.wheels import python_hint

__all__ = ["LoadFinding", "examine", "require_new_enough"]

_DISTRIBUTIONS = {
    "executorch": ("executorch", "executorch-numpy-runtime"),
    "onnxruntime": ("onnxruntime",),
    "tflite-runtime": ("tflite-runtime",),
}
"""Name in a passport's `minimum_runtime` to the distributions whose versions count as its."""
_MEMORY_SHARE = 0.8
"""Of a device's RAM, which a system leaves to one program at best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFinding:
    """One thing that decides whether a file loads: `is_ok` is None where it cannot be told before trying."""

    what: str
    is_ok: bool | None
    detail: str
    hint: str | None = None


def require_new_enough(passport: Passport, identity: str) -> None:
    """Raise UnsupportedError when a runtime in `identity` (`numpy==2.5.5+onnxruntime==1.32.0`) is too old for the file.

    A runtime whose oldest version is not known is not judged; the run itself will tell.
    """
    problems = _too_old(passport, identity)
    if problems:
        raise UnsupportedError(problems)


def _too_old(passport: Passport, identity: str) -> list[Problem]:
    present = dict(part.split("==", 1) for part in identity.split("+") if "==" in part)
    return [
        Problem(
            backend=name,
            message=f"{passport.name} needs {name} {oldest} or newer; this device has {distribution} "
            f"{present[distribution]}",
            hint="upgrade the runtime, or convert with the toolchain of its version",
        )
        for name, oldest in passport.minimum_runtime.items()
        for distribution in _DISTRIBUTIONS.get(name, ())
        if distribution in present and _numbers(present[distribution]) < _numbers(oldest)
    ]


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version: `1.32.0+cpu` -> (1, 32, 0)."""
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])


def examine(passport: Passport, info: DeviceInfo) -> tuple[LoadFinding, ...]:
    """Everything that decides whether the file of `passport` loads on the device `info` describes."""
    runtime = runtime_for(passport.format)
    return (
        _python(info),
        *_wheels(runtime, info),
        _version(passport, runtime, info),
        _ops(passport),
        _memory(passport, info),
    )


def _python(info: DeviceInfo) -> LoadFinding:
    if info.kind == "local" or info.python:
        return LoadFinding(what="Python", is_ok=True, detail=info.python or "this one")
    return LoadFinding(
        what="Python",
        is_ok=False,
        detail="the device has none, which edgekit's runner needs",
        hint="the file may still load in an app that brings the runtime; see docs/devices.md",
    )


def _wheels(runtime: RuntimeSpec, info: DeviceInfo) -> tuple[LoadFinding, ...]:
    """Whether the runtime is published for the device's processor and Python."""
    if info.kind == "local" or not runtime.wheels or not info.python:
        return ()
    known = runtime.wheels_for(info.abi)
    if not known:
        detail = f"no wheels of {runtime.name} are published for {info.abi or 'an unknown ABI'}"
        return (LoadFinding(what="runtime", is_ok=False, detail=detail, hint="use a 64-bit system"),)
    version = _numbers(info.python)[:2]
    names = {wheel.name for wheel in known}
    served = {wheel.name for wheel in known if wheel.since <= version < wheel.before}
    if served == names:
        return ()
    missing = ", ".join(sorted(names - served))
    detail = f"no wheel of {missing} for Python {info.python}"
    return (LoadFinding(what="runtime", is_ok=False, detail=detail, hint=python_hint(known)),)


def _version(passport: Passport, runtime: RuntimeSpec, info: DeviceInfo) -> LoadFinding:
    from edgekit.runtimes.provision import runtime_identity

    try:
        identity = runtime_identity(runtime, info)
    except EdgekitError as e:
        return LoadFinding(what="runtime version", is_ok=False, detail=e.message, hint=e.hint)
    problems = _too_old(passport, identity)
    if problems:
        return LoadFinding(what="runtime version", is_ok=False, detail=problems[0].message, hint=problems[0].hint)
    if not passport.minimum_runtime:
        detail = f"{identity}; the oldest version that takes this file is not known"
        return LoadFinding(what="runtime version", is_ok=None, detail=detail)
    needs = ", ".join(f"{name} {version}" for name, version in passport.minimum_runtime.items())
    return LoadFinding(what="runtime version", is_ok=True, detail=f"{identity}; the file needs {needs} or newer")


def _ops(passport: Passport) -> LoadFinding:
    """Ops that are not part of the runtime as it is published."""
    foreign = [delegate.name for delegate in passport.delegates if delegate.name != "XnnpackBackend"]
    if passport.format is Format.EXECUTORCH and foreign:
        detail = f"needs the delegate {', '.join(foreign)}, which the published runtime does not have"
        return LoadFinding(what="ops", is_ok=False, detail=detail, hint="convert with edgekit's executorch converter")
    custom = sorted({op.name for op in passport.ops if passport.format is Format.TFLITE and not op.name.isupper()})
    if custom:
        detail = f"custom or Flex ops: {', '.join(custom)}"
        return LoadFinding(what="ops", is_ok=False, detail=detail, hint="write them with built-in operations")
    kinds = len({op.name for op in passport.ops})
    return LoadFinding(what="ops", is_ok=True, detail=f"{kinds} kinds, all of the published runtime")


def _memory(passport: Passport, info: DeviceInfo) -> LoadFinding:
    needed = passport.size_bytes + (passport.peak_activation_bytes or 0)
    told = f"{needed / 1e6:.1f} MB of weights and activations"
    if info.ram_bytes is None or passport.peak_activation_bytes is None:
        return LoadFinding(what="memory", is_ok=None, detail=f"{told} known of; the rest cannot be told")
    is_ok = needed < _MEMORY_SHARE * info.ram_bytes
    return LoadFinding(
        what="memory",
        is_ok=is_ok,
        detail=f"{told}; the device has {info.ram_bytes / 1e6:.0f} MB",
        hint=None if is_ok else "make the model smaller, or its input",
    )
