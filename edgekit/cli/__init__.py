"""`edgekit …`: a thin skin over the façade."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

INTERRUPTED = 130


def main() -> None:
    """Run the command line of this process and exit with its status."""
    from edgekit.cli.app import run_command_line

    status = run_command_line(sys.argv[1:])
    if status == INTERRUPTED:
        # nothing is left to save, and unloading the toolkits would keep the user waiting for another second
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
