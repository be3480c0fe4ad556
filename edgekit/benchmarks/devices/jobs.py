"""Shell text for detached jobs: started exactly once, found alive or dead, killed whole.

A job is a folder. `started/` in it is the start lock: `mkdir` is atomic, so of any number of callers, on any
number of links, one wins. The winner's wrapper makes a session of its own, writes down who it is
(`started/process`: pid, start time, boot id) *before* it runs the command, and the command's exit status
afterwards (`exit`, by rename). A pid alone proves nothing: it may be another process's by now. Pid, start time
and boot id together do.

Only POSIX sh, `mkdir mv rm cat sleep kill` and `setsid` are used: dash, busybox, toybox with mksh (Android).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from edgekit.benchmarks.devices.script import CALL_VARIABLE, command, exports, quote

__all__ = ["alive_script", "end_others_script", "kill_script", "start_script"]

# What a process table looks like where there is /proc, and where there is not (macOS): `pid pgid sid state start`.
_TABLE = r"""
boot_id() { cat /proc/sys/kernel/random/boot_id 2>/dev/null || sysctl -n kern.boottime 2>/dev/null | tr ' ' _; }
start_of() {
  if [ -r /proc/self/stat ]; then
    line=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    set -- ${line##*) }
    echo "${20}"
  else
    ps -o lstart= -p "$1" | tr -s ' ' _
  fi
}
table() {
  if [ -r /proc/self/stat ]; then
    for f in /proc/[0-9]*/stat; do
      line=
      { read -r line < "$f"; } 2>/dev/null
      case $line in *') '*) ;; *) line=$(cat "$f" 2>/dev/null) || continue ;; esac
      pid=${f#/proc/}
      set -- ${line##*) }
      echo "${pid%/stat} ${3:-0} ${4:-0} ${1:-X}"
    done
  else
    ps -A -o pid= -o pgid= -o stat= | while read -r pid group state; do echo "$pid $group 0 $state"; done
  fi
}
leader_lives() {
  # The usual case, answered without a process table and without a fork: a poll should cost the device nothing.
  boot_now= line=
  { read -r leader start boot < started/process; read -r boot_now < /proc/sys/kernel/random/boot_id; } 2>/dev/null
  [ -n "$boot_now" ] && [ "$boot_now" = "$boot" ] || return 1
  { read -r line < "/proc/$leader/stat"; } 2>/dev/null || return 1
  set -- ${line##*) }
  [ "${20}" = "$start" ] && case $1 in Z*|X*|x*) return 1 ;; esac
}
living() {
  [ -f started/process ] || return 0
  read -r leader start boot < started/process
  [ "$(boot_id)" = "$boot" ] || return 0
  now=$(start_of "$leader") && [ -n "$now" ] && [ "$now" != "$start" ] && return 0
  table | while read -r pid group session state; do
    [ "$group" = "$leader" ] || [ "$session" = "$leader" ] || [ "$pid" = "$leader" ] || continue
    case $state in Z*|X*|x*) ;; *) echo "$pid" ;; esac
  done
}
"""

_WRAPPER = (
    _TABLE
    + r"""
echo "$$ $(start_of $$) $(boot_id)" > started/process.tmp && mv started/process.tmp started/process || exit 97
trap : INT TERM HUP
(trap - INT TERM HUP; "$@")
echo $? > exit.tmp; mv exit.tmp exit
"""
)

_START = r"""
cd %(jobs)s && mkdir -p %(job)s && cd %(job)s || exit 90
if ! mkdir started 2>/dev/null; then
  [ -d started ] || { mkdir started; exit 90; }
  for i in 1 2 3 4 5 6 7 8 9 10; do [ -f started/owner ] && break; sleep 0.1 2>/dev/null || sleep 1; done
  cat started/owner; exit
fi
rm -f exit  # of an earlier job of this name, written while its folder was being removed
: > stdout && : > stderr && echo %(token)s > started/owner.tmp && mv started/owner.tmp started/owner || {
  echo full | cat > started/owner.tmp  # says why: a shell's own echo says only "I/O error"
  rm -rf started; exit 90
}
unset %(call)s
detach() { exec %(setsid)s "$@"; }
( detach sh -c %(wrapper)s %(job)s %(words)s ) >stdout 2>stderr </dev/null &
child=$!
i=0
while [ ! -f started/process ] && [ ! -f exit ] && [ $i -lt 1500 ]; do
  # A child that is gone may have left the work to one of its own (setsid forks where it leads a group). On a device
  # with ten times the work it has processors for, that one took more than half a second: five.
  kill -0 $child 2>/dev/null || [ $i -ge 1000 ] || i=1000
  i=$((i+1)); sleep 0.01 2>/dev/null || sleep 1
done
[ -f started/process ] || { echo "the job did not come up" >&2; exit 91; }
cat started/owner
"""


def start_script(
    jobs: PurePosixPath, job: str, argv: Sequence[str], token: str, setsid: str, env: Mapping[str, str] | None
) -> str:
    """A script that prints the token of whoever started the job: `token` when it was this call."""
    words = command(["sh", "-c", exports(env) + 'exec "$@"', job, *argv]) if env else command(argv)
    return _START % {
        "jobs": quote(str(jobs)),
        "job": quote(job),
        "token": token,
        "call": CALL_VARIABLE,
        "setsid": setsid,
        "wrapper": quote(_WRAPPER),
        "words": words,
    }


def alive_script(folder: PurePosixPath) -> str:
    """A script that prints the pids of the job's living processes (zombies left out)."""
    return (
        f"{_TABLE}\ncd {quote(str(folder))} 2>/dev/null || exit 0\nif leader_lives; then echo $leader; else living; fi"
    )


def kill_script(folder: PurePosixPath, rounds: int) -> str:
    """A script that kills every process of the job and prints the pids that would not die in `rounds` x 0.1 s."""
    return f"""{_TABLE}
cd {quote(str(folder))} 2>/dev/null || exit 0
i=0
while left=$(living); [ -n "$left" ] && [ $i -lt {rounds} ]; do
  kill -9 $left 2>/dev/null
  i=$((i+1)); sleep 0.1 2>/dev/null || sleep 1
done
echo $left
"""


def end_others_script(jobs: PurePosixPath, job: str) -> str:
    """A script that ends what other jobs than `job` left running, before a job that must have the device alone.

    Prints `ghost NAME` for each job that had living processes, and `ghost NAME PID…` where some would not die. Other
    starts of the same job (`NAME-r1`) are left alone.
    """
    same = job.partition("-r")[0]
    return f"""{_TABLE}
(
cd {quote(str(jobs))} 2>/dev/null || exit 0
for record in */started/process; do
  name=${{record%%/*}}
  case $name in '*'|{same}|{same}-r*) continue ;; esac
  cd "$name" 2>/dev/null || continue
  i=0 was=
  while left=$(living); [ -n "$left" ] && [ $i -lt 20 ]; do
    was=1
    kill -9 $left 2>/dev/null
    i=$((i+1)); sleep 0.1 2>/dev/null || sleep 1
  done
  [ -z "$was" ] || echo ghost "$name" $left
  cd ..
done
)
"""
