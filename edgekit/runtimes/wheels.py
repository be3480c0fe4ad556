"""Wheels for another machine, resolved here: by its ABI, C library and Python, kept in a cache.

The first request asks pip (and so a package index); later ones are answered from the cache, offline. Files
in the cache are checked against the sha256 noted when they came.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.benchmarks.devices.health import require_python
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import DeviceUnusable, HostError
from edgekit.runtimes.catalog import RuntimeSpec, Wheel
from edgekit.schema import Record, digest, known_sha256, read_record, sha256_of, write_atomically

__all__ = ["CachedWheel", "Target", "python_hint", "resolve_wheels", "target_of"]

_PIP_SECONDS = 600
_OLDEST_GLIBC = 17
_DEFAULT_GLIBC = 28
_LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}


class CachedWheel(Record):
    """One wheel in the cache."""

    file: str
    sha256: str


class _Manifest(Record):
    wheels: tuple[CachedWheel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What decides which wheel fits: Python (3, 13), machine `x86_64`, glibc minor version."""

    python: tuple[int, int]
    machine: str
    glibc: int

    def platforms(self) -> tuple[str, ...]:
        """pip's platform tags for this machine, newest first."""
        tags = []
        for minor in range(self.glibc, _OLDEST_GLIBC - 1, -1):
            tags.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _LEGACY:
                tags.append(f"{_LEGACY[minor]}_{self.machine}")
        return (*tags, f"linux_{self.machine}")


def target_of(info: DeviceInfo) -> Target:
    """What wheels must fit to run on the device `info`. Raises DeviceUnusable where it cannot take any."""
    require_python(info)
    version = re.match(r"(\d+)\.(\d+)", info.python or "")
    if not version or not info.abi:
        raise DeviceUnusable(f"cannot tell its Python ({info.python}) or ABI ({info.abi})", device=info.spec)
    libc = (info.libc or "").lower()
    if "musl" in libc or "bionic" in libc:
        raise DeviceUnusable(
            f"its C library is {info.libc}; the runtimes' wheels need glibc",
            device=info.spec,
            hint="use a system with glibc (Debian, Ubuntu, Fedora), or the Android app",
        )
    glibc = re.search(r"2\.(\d+)", libc)
    minor = int(glibc.group(1)) if glibc else _DEFAULT_GLIBC
    return Target(python=(int(version.group(1)), int(version.group(2))), machine=info.abi, glibc=minor)


def resolve_wheels(runtime: RuntimeSpec, info: DeviceInfo, cache: Path) -> tuple[tuple[Path, str], ...]:
    """(path, sha256) of each wheel `runtime` needs on `info`, from the cache or through pip.

    Raises DeviceUnusable when there are no wheels for the device's Python, HostError when they cannot be had.
    """
    target = target_of(info)
    known = runtime.wheels_for(target.machine)
    if not known:
        raise DeviceUnusable(
            f"{runtime.name} is not published for its processor ({target.machine})",
            device=info.spec,
            hint="use a 64-bit system; on 32-bit ARM (armv7l) only TFLite models run: convert to tflite",
        )
    requirements = [w.requirement for w in known if w.since <= target.python < w.before]
    if {w.name for w in known} != {r.partition("==")[0] for r in requirements}:
        raise DeviceUnusable(
            f"there is no {runtime.name} for its Python {target.python[0]}.{target.python[1]}",
            device=info.spec,
            hint=python_hint(known),
        )
    folder = cache / digest(requirements, target.python, target.machine, target.glibc)[:32]
    found = _cached(folder)
    if found is None:
        _download(requirements, target, folder, runtime.name)
        found = _cached(folder)
    if found is None:
        raise HostError(f"the wheels in {folder} changed while they were written", hint="remove that folder, try again")
    return found


def python_hint(known: Sequence[Wheel]) -> str:
    """Which Python serves all of `known`, and which systems bring it."""
    names = {wheel.name for wheel in known}
    oldest = max(min(w.since for w in known if w.name == name) for name in names)
    newest = min(max(w.before for w in known if w.name == name) for name in names)
    before = f", before {newest[0]}.{newest[1]}" if newest < (4, 0) else ""
    return (
        f"it takes Python {oldest[0]}.{oldest[1]} or newer{before} as `python3` on the device: Debian 12 and Raspberry "
        "Pi OS 12 have 3.11, Ubuntu 24.04 has 3.12, Debian 13 has 3.13"
    )


def _cached(folder: Path) -> tuple[tuple[Path, str], ...] | None:
    """The wheels of a finished download whose bytes are still what they were; None otherwise."""
    try:
        manifest = read_record(_Manifest, folder / "manifest.json")
        wheels = tuple((folder / Path(w.file).name, w.sha256) for w in manifest.wheels)
        if any(known_sha256(path) != sha for path, sha in wheels):
            return None
    except (OSError, ValueError):
        return None
    return wheels


def _download(requirements: list[str], target: Target, folder: Path, what: str) -> None:
    """Fetch the wheels with pip into `folder`, which appears whole by rename."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as scratch:
        partial = Path(scratch) / "wheels"
        _pip(_pip_arguments(requirements, target, partial), what, target)
        files = sorted(partial.glob("*.whl"))
        if len(files) != len(requirements):
            raise HostError(f"pip left {len(files)} wheels for {len(requirements)} requirements of {what}")
        manifest = _Manifest(wheels=tuple(CachedWheel(file=f.name, sha256=sha256_of(f)) for f in files))
        write_atomically(partial / "manifest.json", manifest.model_dump_json(indent=1))
        if folder.exists():  # damaged, or another process finished first; either way this one is good
            os.replace(folder, Path(scratch) / "replaced")
        os.replace(partial, folder)


def _pip_arguments(requirements: list[str], target: Target, folder: Path) -> list[str]:
    major, minor = target.python
    arguments = ["download", "--quiet", "--only-binary=:all:", "--no-deps", "--dest", str(folder)]
    arguments += ["--python-version", f"{major}.{minor}", "--implementation", "cp"]
    for abi in (f"cp{major}{minor}", "abi3", "none"):
        arguments += ["--abi", abi]
    for platform in target.platforms():
        arguments += ["--platform", platform]
    return [*arguments, *requirements]


def _pip(arguments: list[str], what: str, target: Target) -> None:
    """Run pip in a child; raises HostError with its last words."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise HostError(f"fetching the wheels of {what} took more than {_PIP_SECONDS} s", hint=_HINT) from e
    if done.returncode != 0:
        said = " | ".join(done.stderr.strip().splitlines()[-3:])
        python = f"{target.python[0]}.{target.python[1]}"
        raise HostError(
            f"the wheels of {what} for {target.machine}, Python {python} are not in the cache and pip could not "
            f"fetch them: {said}",
            hint=_HINT,
        )


_HINT = (
    "check that this host reaches a package index (`python -m pip download numpy`); once fetched, the wheels stay "
    "in the cache and no network is needed"
)
