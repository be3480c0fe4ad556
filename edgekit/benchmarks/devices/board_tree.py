"""The file tree of the virtual board: Debian with adbd and Python, built once and kept by its recipe's hash."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edgekit.benchmarks.devices.adb_client import file_lock
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board_arch import ARCHES
from edgekit.benchmarks.devices.cell import remove_tree, start_cell
from edgekit.errors import DeviceTimeout, DeviceUnusable
from edgekit.schema import digest

__all__ = ["BOARD_UID", "BOARD_USER", "KEYRING", "board_tree", "debian_mirror", "recipe_id"]

log = logging.getLogger(__name__)

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SUITE = "trixie"  # the first release with adbd
_LAYOUT = 3
"""Raised when what `_furnish` does changes."""
_PACKAGES = (
    "base-files", "base-passwd", "dash", "bash", "coreutils", "grep", "sed", "util-linux", "libc-bin", "procps",
    "login", "tar", "gzip", "adbd", "python3", "python3-minimal", "toybox", "libgomp1",
    "openssh-server",
)  # fmt: skip
_PYTHON_PACKAGES = ("python3-minimal", "python3.11", "libpython3.11-stdlib", "python3-numpy")
BOARD_USER = "edgekit"
"""Who logs in over ssh; sshd runs as this user, too, so it needs none of root's powers on the board."""
BOARD_UID = 1000
_SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d")
_DEBIAN_SUITE = re.compile(r"(stable|testing|unstable|sid|[a-z]+)(-updates)?")


def _own(arch: str) -> tuple[str, ...]:
    """What goes into the tree of `arch` besides what goes into all."""
    known = ARCHES[arch]
    return (*known.packages, *((known.python_suite, *_PYTHON_PACKAGES) if known.python_suite else ()))


def recipe_id(arch: str) -> str:
    """The name of the tree for `arch`: changes when anything that goes into it does."""
    return f"{arch}-{digest([arch, _SUITE, _LAYOUT, *_PACKAGES, *_own(arch)])[:12]}"


def board_tree(arch: str, boards: Path, deadline: Deadline, on_step: Callable[[str], None] | None = None) -> Path:
    """The finished tree for `arch` below `boards`, built when it is not there (about 10 s).

    Two processes build it once: the second waits. A build that was killed leaves a `.build-` folder, removed here.
    `on_step` is told what is being done.
    """
    name = recipe_id(arch)
    tree = boards / name
    if tree.is_dir():
        return tree
    boards.mkdir(parents=True, exist_ok=True, mode=0o755)
    lock = boards / f"{arch}.lock"
    with file_lock(lock, deadline, busy=f"another process is still building the board ({lock})"):
        for leftover in boards.glob(f".build-{arch}-*"):
            remove_tree(leftover)
        if not tree.is_dir():
            work = Path(tempfile.mkdtemp(prefix=f".build-{arch}-", dir=boards))
            try:
                build = _Build(arch=arch, log_file=work / "log", deadline=deadline, on_step=on_step)
                _bootstrap(build, _SUITE, (*_PACKAGES, *ARCHES[arch].packages), work / "tree")
                if ARCHES[arch].python_suite:
                    _bootstrap(build, ARCHES[arch].python_suite, _PYTHON_PACKAGES, work / "python")
                    _take_python(work / "python", work / "tree")
                _furnish(work / "tree", name, ARCHES[arch].emulation)
                os.rename(work / "tree", tree)
            finally:
                remove_tree(work)
    return tree


@dataclass(frozen=True, slots=True, kw_only=True)
class _Build:
    """One build of a tree."""

    arch: str
    log_file: Path
    deadline: Deadline
    on_step: Callable[[str], None] | None


def _bootstrap(build: _Build, suite: str | None, packages: Sequence[str], tree: Path) -> None:
    """mmdebstrap, in a cell: it ends with this process, and what it mounts is not the host's."""
    argv = [
        "mmdebstrap", "--mode=root", "--variant=extract", f"--arch={build.arch}", f"--include={','.join(packages)}",
        f"--keyring={KEYRING}", str(suite), str(tree),
    ]  # fmt: skip
    mirror = debian_mirror()
    if mirror:
        argv.append(mirror)
    log.info("building the %s board in %s", build.arch, tree)
    cell = start_cell(argv, log_file=build.log_file, mounts=True)
    try:
        while cell.is_alive:
            if build.deadline.remaining <= 0:
                raise DeviceTimeout(
                    "the board was not built in time", device=f"board:{build.arch}", hint="is the mirror slow?"
                )
            if build.on_step is not None:
                build.on_step(_last_step(build.log_file))
            time.sleep(0.05)
    finally:
        cell.end()
    if cell.process.returncode != 0:
        lines = [
            line for line in build.log_file.read_text("utf-8", "replace").splitlines() if line.startswith(("E:", "W:"))
        ]
        raise DeviceUnusable(
            f"mmdebstrap could not build the board ({' | '.join(lines[-3:])[:500] or cell.process.returncode})",
            device=f"board:{build.arch}",
            hint="it needs a Debian mirror: check the network, or set EDGEKIT_DEBIAN_MIRROR to one that answers",
        )


def _take_python(source: Path, tree: Path) -> None:
    """Put the Python and numpy of the tree `source` into `tree`, as its `python3`."""
    shutil.copy2(source / "usr/bin/python3.11", tree / "usr/bin/python3.11")
    for folder in ("usr/lib/python3.11", "usr/lib/python3/dist-packages/numpy"):
        shutil.copytree(source / folder, tree / folder, symlinks=True)
    python = tree / "usr/bin/python3"
    python.unlink(missing_ok=True)
    python.symlink_to("python3.11")
    for name in ("blas", "lapack"):  # links that configuring the packages would have made
        for library in (tree / "usr/lib").glob(f"*/{name}/lib{name}.so.3"):
            (library.parent.parent / library.name).symlink_to(f"{name}/{library.name}")


def _last_step(log_file: Path) -> str:
    """The last that mmdebstrap said it does."""
    lines = re.findall(r"^I: (.{1,80})", log_file.read_text("utf-8", "replace"), re.MULTILINE)
    return lines[-1] if lines else "starting mmdebstrap"


def _furnish(tree: Path, name: str, emulation: str) -> None:
    """What configuring the packages would have done, as far as adbd, sshd, a shell and Python need it."""
    for link in ("bin", "sbin", "lib", "lib64"):
        if not (tree / link).exists() and (tree / "usr" / link).is_dir():
            (tree / link).symlink_to(f"usr/{link}")
    shell = tree / "usr" / "bin" / "sh"
    if not shell.exists():
        shell.symlink_to("dash")
    for kind in ("passwd", "group"):
        shutil.copyfile(tree / "usr/share/base-passwd" / f"{kind}.master", tree / "etc" / kind)
    with (tree / "etc/passwd").open("a") as users:
        users.write(f"sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n{BOARD_USER}:x:{BOARD_UID}:{BOARD_UID}::")
        users.write(f"/home/{BOARD_USER}:/bin/bash\n")
    with (tree / "etc/group").open("a") as groups:
        groups.write(f"{BOARD_USER}:x:{BOARD_UID}:\n")
    (tree / "etc/edgekit-board").write_text(emulation + "\n")
    (tree / "etc/hostname").write_text("edgekit-board\n")
    (tree / "etc/machine-id").write_text(digest(name)[:32] + "\n")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    # mmdebstrap left device nodes here; a board mounts its own over an empty folder.
    remove_tree(tree / "dev")
    for folder in ("proc", "sys", "dev", "tmp", "run", "root", "data/local/tmp/edgekit", f"home/{BOARD_USER}"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    os.chown(tree / "home" / BOARD_USER, BOARD_UID, BOARD_UID)


def debian_mirror() -> str | None:
    """The Debian mirror this host's apt uses; None leaves the choice to mmdebstrap (Debian's own address)."""
    chosen = os.environ.get("EDGEKIT_DEBIAN_MIRROR")
    if chosen:
        return chosen
    files = []
    for place in map(Path, _SOURCES):
        files += sorted(place.glob("*")) if place.is_dir() else [place]
    for file in files:
        try:
            text = file.read_text("utf-8", "replace")
        except OSError:
            continue
        found = _deb822_mirror(text) if file.suffix == ".sources" else _list_mirror(text)
        if found:
            return found
    return None


def _is_debian(uri: str, suite: str, components: list[str]) -> bool:
    parts = urlsplit(uri)
    return (
        parts.scheme in ("http", "https")
        and parts.path.rstrip("/").endswith("/debian")
        and _DEBIAN_SUITE.fullmatch(suite) is not None
        and "main" in components
    )


def _list_mirror(text: str) -> str | None:
    """From lines `deb [options] URI suite component…`."""
    for line in text.splitlines():
        words = re.sub(r"\[[^\]]*\]", "", line.partition("#")[0]).split()
        if len(words) >= 4 and words[0] == "deb" and _is_debian(words[1], words[2], words[3:]):
            return words[1]
    return None


def _deb822_mirror(text: str) -> str | None:
    """From stanzas of `URIs:`, `Suites:`, `Components:`."""
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if line[:1] not in ("#", " ", "\t")]
        fields = {k.strip().lower(): v.split() for k, _, v in (line.partition(":") for line in lines)}
        if fields.get("enabled") == ["no"] or "deb" not in fields.get("types", []):
            continue
        suite = next(iter(fields.get("suites", [])), "")
        for uri in fields.get("uris", []):
            if _is_debian(uri, suite, fields.get("components", [])):
                return uri
    return None
