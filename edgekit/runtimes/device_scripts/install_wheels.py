"""Unpack wheels on a device, each once: `install_wheels.py SITE CAS CHECK READY SHA256...`.

CAS/<sha256> is a wheel whose bytes were checked when it arrived; it is unpacked into SITE/<sha256> by rename.
When all are there, CHECK (Python source) is run once with them on the path, in a process of its own, and SITE/READY
is made, an empty file by which the host sees that nothing is left to do. Prints one line of JSON:
{"missing": [sha256, ...]}, or {"paths": [...]} when everything is in place and works. Exit status 4
for a wheel that would write outside its folder, 5 when CHECK fails.
"""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile

MAX_BYTES = 2 * 1024**3
MAX_MEMBERS = 50_000
REFUSED = 4
BROKEN = 5


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
    for sha in shas:
        target = os.path.join(site, sha)
        if os.path.isdir(target):
            continue
        wheel = os.path.join(cas, sha)
        if not os.path.isfile(wheel):
            missing.append(sha)
            continue
        try:
            unpack(wheel, target)
        except (RefusedError, zipfile.BadZipFile) as e:
            print(f"{sha}: {e}", file=sys.stderr)
            return REFUSED
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
    os.makedirs(sys.argv[1], exist_ok=True)
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:]))
