"""`run JOBDIR` (what the harness starts) and `phase JOBDIR PHASE PART` (what the supervisor starts)."""

import sys


def main(arguments: list[str]) -> int:
    """The exit status: 0 done, 2 wrong usage, 3 a phase that raised."""
    if len(arguments) == 2 and arguments[0] == "run":
        from .supervisor import own_command, supervise

        return supervise(arguments[1], own_command())
    if len(arguments) == 4 and arguments[0] == "phase":
        from .child import run_phase

        return run_phase(*arguments[1:])
    print("usage: run JOBDIR | phase JOBDIR PHASE PART", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
