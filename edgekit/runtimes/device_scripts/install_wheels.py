"""Unpack wheels on a device, each once: `install_wheels.py SITE CAS CHECK READY SHA256...`.

CAS/<sha256> is a wheel whose bytes were checked when it arrived; it is unpacked into SITE/<sha256> by rename.
When all are there, CHECK (Python source) is run once with them on the path, in a process of its own, and SITE/READY
is made, an empty file by which the host sees that nothing is left to do. Prints one line of JSON:
{"missing": [sha256, ...]}, or {"paths": [...]} when everything is in place and works. Exit status 4
for a wheel that would write outside its folder, 5 when CHECK fails, 6 when the device is full.

A wheel that was unpacked is removed from CAS. When something was unpacked, folders of SITE that nothing asked for in
30 days are removed, and the oldest of those that exceed 1 GiB together; when the device is full, all of them, once.
Never one that is asked for now, was in the last two minutes, or is on a running process's path.
`install_wheels.py --free SITE SHA256...` removes all others but the named ones, and prints {"freed": COUNT}.
"""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import zipfile

MAX_BYTES = 2 * 1024**3
MAX_MEMBERS = 50_000
REFUSED = 4
BROKEN = 5
FULL = 6
KEPT_SECONDS = 30 * 24 * 3600
KEPT_BYTES = 1024**3
RECENT_SECONDS = 120


class RefusedError(Exception):
    """A member that may not be unpacked."""


def checked_member(member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """`member`, or RefusedError when its name leaves the folder or it is not a plain file or folder."""
    parts = member.filename.split("/")
    if (
        member.filename.startswith("/")
        or ".." in parts
        or "\\" in member.filename
        or "\0" in member.orig_filename
        or (os.name == "nt" and ":" in member.filename)
    ):
        raise RefusedError(f"member {member.filename!r} would leave the folder")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise RefusedError(f"member {member.filename!r} is not a plain file")
    return member


def unpack(wheel: str, target: str) -> None:
    """Unpack `wheel` to the folder `target`, which appears whole by rename."""
    partial = f"{target}.{os.getpid()}.partial"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [checked_member(m) for m in archive.infolist()]
            if len(members) > MAX_MEMBERS or sum(m.file_size for m in members) > MAX_BYTES:
                raise RefusedError("more members or bytes than a wheel may have")
            names = [m.filename for m in members]
            if len(set(names)) != len(names):
                raise RefusedError("a member is there twice")
            os.makedirs(partial)
            for member in members:
                archive.extract(member, partial)
        try:
            os.rename(partial, target)
        except OSError:
            if not os.path.isdir(target):  # else another process was quicker with the same content
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def in_use() -> "set[str]":
    """The sha256 that running processes have in their environment (their PYTHONPATH)."""
    found = set()
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                found.update(re.findall(rb"[0-9a-f]{64}", file.read(1 << 20)))
        except OSError:  # it ended, or is another user's, who has a folder of their own
            continue
    return {sha.decode() for sha in found}


def size_of(folder: str) -> int:
    return sum(os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names)


def sweep(site: str, keep: "list[str]", seconds: float = KEPT_SECONDS, size: int = KEPT_BYTES) -> int:
    """Remove unpacked wheels that are not in use, the oldest first: past `seconds`, or past `size` bytes of them.

    Returns how many. Their age is the time since they were last asked for.
    """
    needed = in_use() | set(keep)
    idle = []
    for name in os.listdir(site):
        path = os.path.join(site, name)
        partial = re.fullmatch(r"[0-9a-f]{64}\.[0-9]+\.partial", name)
        if partial and time.time() - os.lstat(path).st_mtime > 1200:  # what an installer that was killed left
            shutil.rmtree(path, ignore_errors=True)
        elif not re.fullmatch(r"[0-9a-f]{64}", name) or name in needed or os.path.islink(path):
            continue
        elif time.time() - os.lstat(path).st_mtime > RECENT_SECONDS:  # else the job it is for may be about to start
            idle.append((os.lstat(path).st_mtime, path))
    removed = total = 0
    for used, path in sorted(idle, reverse=True):
        total += size_of(path)
        if time.time() - used <= seconds and total <= size:
            continue
        doomed = f"{path}.{os.getpid()}.partial"
        try:
            os.rename(path, doomed)
        except OSError:  # another process removes it
            continue
        shutil.rmtree(doomed, ignore_errors=True)
        removed += 1
    return removed


def unpack_making_room(wheel: str, target: str, site: str, keep: "list[str]") -> None:
    """`unpack`, once more after a sweep of all that is idle when the device is full."""
    try:
        unpack(wheel, target)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT) or not sweep(site, keep, seconds=-1, size=0):
            raise
        unpack(wheel, target)


def verify(site: str, check: str, paths: list[str]) -> None:
    """Run `check` in a fresh interpreter once per set of paths; raises CalledProcessError with its stderr."""
    proof = os.path.join(site, "works-" + hashlib.sha256("\n".join([sys.version, check, *paths]).encode()).hexdigest())
    if os.path.exists(proof):
        return
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    subprocess.run(
        [sys.executable, "-c", check], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    with open(proof, "w", encoding="ascii"):
        pass


def main(site: str, cas: str, check: str, ready: str, shas: list[str]) -> int:
    missing = []
    unpacked = False
    for sha in shas:
        target = os.path.join(site, sha)
        if os.path.isdir(target):
            os.utime(target)  # its age counts from now
            continue
        wheel = os.path.join(cas, sha)
        if not os.path.isfile(wheel):
            missing.append(sha)
            continue
        try:
            unpack_making_room(wheel, target, site, shas)
        except (RefusedError, zipfile.BadZipFile) as e:
            print(f"{sha}: {e}", file=sys.stderr)
            return REFUSED
        except OSError as e:
            print(f"{sha}: {e}", file=sys.stderr)
            return FULL if e.errno in (errno.ENOSPC, errno.EDQUOT) else 1
        unpacked = True
        os.unlink(wheel)
    if unpacked:
        sweep(site, shas)
    if missing:
        print(json.dumps({"missing": missing}))
        return 0
    paths = [os.path.join(site, sha) for sha in shas]
    try:
        verify(site, check, paths)
    except subprocess.CalledProcessError as e:
        print(e.stderr[-3000:], file=sys.stderr)
        return BROKEN
    with open(os.path.join(site, ready), "w", encoding="ascii"):
        pass
    print(json.dumps({"paths": paths}))
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--free":
        print(json.dumps({"freed": sweep(sys.argv[2], sys.argv[3:], seconds=-1, size=0)}))
        sys.exit(0)
    os.makedirs(sys.argv[1], exist_ok=True)
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:]))
