"""One call that begins a job, and stays with it: shell text, and what it prints.

Over adb every call costs the device a shell and the user tens of milliseconds, so a job takes as few as it can: this
script looks whether all files are there, writes the job's own, starts it, prints each new line of its
`progress.json`, and ends with `result.json`. While it waits it costs the device one `sleep` each quarter of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import PurePosixPath

from edgekit.benchmarks.devices.base import Launch, Needed, Watched
from edgekit.benchmarks.devices.script import checked_name, number, quote
from edgekit.errors import DeviceLost

__all__ = [
    "INLINE_RESULT_BYTES",
    "Seen",
    "launch_script",
    "read_watched",
    "watch_script",
]

INLINE_RESULT_BYTES = 4 * 1024 * 1024
"""A result up to this size comes with the watching call; a larger one has to be pulled."""

_QUIET_ROUNDS = 16
"""Rounds of a quarter second without a new line, after which the call ends: the runner beats every second."""
_SILENT_SECONDS = 12.0
"""Without a byte from a call that prints at least every four seconds, the link is given up."""
_RESULT = "edgekit-result"


def launch_script(folder: PurePosixPath, launch: Launch, alone: str, start: str, token: str, seconds: float) -> str:
    """A script that runs `alone` and `start` (see `jobs`) when every file is there, and then watches the job."""
    used = " ".join(quote(str(n.path)) for n in launch.needed)
    checks = "\n".join(_check(n) for n in launch.needed)
    writes = "\n".join(_write(folder, name, data, token) for name, data in launch.files.items())
    return f"""missing=
{checks}
[ -z "$missing" ] || exit 0
touch {used or "."} 2>/dev/null  # what makes room removes what was not used for longest
{alone}
mkdir -p {quote(str(folder))} || exit 90
{writes}
owner=$({start}
) || exit $?
echo "owner $owner"
{watch_script(folder, seconds)}"""


def _check(needed: Needed) -> str:
    path = quote(str(needed.path))
    is_there = f"[ -d {path} ]"
    if needed.size is not None:
        is_there = f'[ -f {path} ] && [ "$(wc -c < {path})" -eq {needed.size} ]'
    return f"{is_there} || {{ missing=1; echo missing {path}; }}"


def _write(folder: PurePosixPath, name: str, data: bytes, token: str) -> str:
    final, temporary = (quote(str(folder / part)) for part in (checked_name(name), f".{name}.{token}"))
    # a shell's own printf says only "I/O error" of a full disk; cat says why, as in `jobs`
    failed = f"{{ echo full | cat > {temporary}; rm -f {temporary}; exit 90; }}"
    return f"printf %s {quote(data.decode())} > {temporary} && mv -f {temporary} {final} || {failed}"


def watch_script(folder: PurePosixPath, seconds: float) -> str:
    """A script that prints new lines of `progress.json`, and at the end `result.json` where there is one."""
    rounds = max(1, int(seconds * 4))
    return f"""cd {quote(str(folder))} || exit 0
i=0 quiet=0 last= pause=0.05
while [ ! -f result.json ] && [ $i -lt {rounds} ] && [ $quiet -lt {_QUIET_ROUNDS} ]; do
  line=
  {{ read -r line < progress.json; }} 2>/dev/null
  if [ -n "$line" ] && [ "$line" != "$last" ]; then echo "$line"; last=$line quiet=0; else quiet=$((quiet+1)); fi
  i=$((i+1)); [ $i -lt 8 ] || pause=0.25
  sleep $pause 2>/dev/null || sleep 1
done
[ -f result.json ] && [ ! -h result.json ] || exit 0
size=$(wc -c < result.json)
if [ $size -le {INLINE_RESULT_BYTES} ]; then echo "{_RESULT} $size"; cat result.json; else echo "{_RESULT} large"; fi"""


class Seen:
    """What a watching call has printed so far: lines passed on as they come, and the parts that end it."""

    def __init__(self, device: str, on_line: Callable[[str], None]) -> None:
        self._device = device
        self._on_line = on_line
        self._text = bytearray()
        self._passed = 0
        self._heard_at = time.monotonic()

    def __call__(self, chunk: bytes) -> None:
        """Take a piece of stdout. Raises DeviceLost after a silence that the script cannot have made."""
        now = time.monotonic()
        if not chunk:
            if now - self._heard_at > _SILENT_SECONDS:
                raise DeviceLost(
                    f"the link has been silent for {_SILENT_SECONDS:.0f} s",
                    device=self._device,
                    hint="check the cable or the network; the job goes on",
                )
            return
        self._heard_at = now
        self._text += chunk
        while (end := self._text.find(b"\n", self._passed)) >= 0:
            line = self._text[self._passed : end].decode("utf-8", "replace")
            if line.startswith(_RESULT):
                return
            self._passed = end + 1
            if line.startswith("{"):
                self._on_line(line)


def read_watched(stdout: bytes, token: str, device: str) -> Watched:
    """What the whole output of a launch or a watch says. Raises DeviceLost where its result is not whole."""
    missing: list[PurePosixPath] = []
    ghosts: list[str] = []
    started = False
    place = 0
    while (end := stdout.find(b"\n", place)) >= 0:
        line = stdout[place:end].decode("utf-8", "replace")
        place = end + 1
        kind, _, rest = line.partition(" ")
        if kind == "missing":
            missing.append(PurePosixPath(rest))
        elif kind == "ghost":
            ghosts.append(line)
        elif kind == "owner":
            started = rest == token
        elif kind == _RESULT and rest == "large":
            return Watched(result_is_large=True, started=started, ghosts=tuple(ghosts))
        elif kind == _RESULT:
            result = stdout[place:]
            if len(result) != number(rest.strip()):
                raise DeviceLost("the result was cut off before its end", device=device)
            return Watched(result=result, started=started, ghosts=tuple(ghosts))
    return Watched(missing=tuple(missing), started=started, ghosts=tuple(ghosts))
