"""`edgekit …`: a thin skin over the façade."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process and exit with its status."""
    from edgekit.cli.app import run_command_line
    from edgekit.leaving import leave

    leave(run_command_line(sys.argv[1:]))
