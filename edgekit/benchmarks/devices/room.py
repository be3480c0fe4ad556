"""Shell text that makes room on a full device: edgekit's own stored files there, those not asked for longest first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from edgekit.benchmarks.devices.script import quote

__all__ = ["free_room_script"]

_FREE = r"""
cd %(cas)s 2>/dev/null || { echo 0 0; exit 0; }
# What a transfer that broke off has left; none takes as long as this.
find . -type f -name '.?*' -mmin +20 -exec rm -f {} + 2>/dev/null
# Files that a job's description or a running process names are in use.
busy=" %(keep)s $(cat ../jobs/*/job.json /proc/[0-9]*/cmdline 2>/dev/null | tr '\000' '\n' |
  grep -o '[0-9a-f]\{64\}' | sort -u | tr '\n' ' ') "
count=0 freed=0
for f in $(ls -tr); do
  [ "$freed" -lt %(needed)d ] || break
  case $f in *[!0-9a-f]*) continue ;; esac
  case $busy in *" $f "*) continue ;; esac
  size=$(wc -c < "$f") && rm -f "$f" && count=$((count+1)) freed=$((freed+size))
done
echo $count $freed
"""


def free_room_script(root: PurePosixPath, needed: int, keep: Sequence[str]) -> str:
    """A script that removes files from `root/cas` until `needed` bytes are free of them; prints `COUNT BYTES`.

    Never one of `keep` (sha256), never one that a job's `job.json` or a living process's command line names.
    """
    return _FREE % {"cas": quote(str(root / "cas")), "keep": " ".join(keep), "needed": needed}
