"""What a virtual board must leave as it found it: this host's mounts, device nodes and processes."""

from __future__ import annotations

import os
from pathlib import Path


def host_state() -> tuple[list[str], dict[str, tuple[int, int]]]:
    """This host's mounts, and the nodes of its /dev."""
    mounts = sorted(line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    nodes = {}
    for name in os.listdir("/dev"):
        status = os.lstat(f"/dev/{name}")
        nodes[name] = (status.st_mode, status.st_rdev)
    return mounts, nodes


def host_changes(before: tuple[list[str], dict[str, tuple[int, int]]]) -> list[str]:
    """What differs from `before`: mounts and nodes of /dev that came or went."""
    mounts, nodes = host_state()
    gone = [f"gone: {line}" for line in before[0] if line not in mounts]
    gone += [f"gone or another: /dev/{name}" for name, value in before[1].items() if nodes.get(name) != value]
    come = [f"new: {line}" for line in mounts if line not in before[0]]
    return [*gone, *come, *(f"new: /dev/{name}" for name in nodes if name not in before[1])]


def processes_of(folder: Path, root_pid: int | None = None) -> set[int]:
    """Descendants of `root_pid`, and every process whose command line names `folder`."""
    parents, named = {}, set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            if stat[0] in "ZX":
                continue
            parents[int(entry.name)] = int(stat[1])
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                named.add(int(entry.name))
        except (OSError, ValueError):
            continue
    family, grown = ({root_pid} if root_pid else set()), True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        family |= more
        grown = bool(more)
    return (family | named) & set(parents)


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
