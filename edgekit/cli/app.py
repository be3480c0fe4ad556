"""The commands of `edgekit`, and how an error is shown.

Exit status: 0 done and every gate passed; 1 a gate failed; 2 what was asked for is wrong; 3 device;
4 link to the device; 5 this host; 6 model; 70 a bug in edgekit; 130 stopped by Ctrl-C. `edgekit compare`
gives its verdict (0 PASS, 1 FAIL, 2 NOISY, 3 INCOMPARABLE), and 10 more than the above when it cannot compare.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import edgekit
from edgekit.errors import Blame, EdgekitError, Interrupted, exit_status
from edgekit.extras import missing_dependency

__all__ = ["app", "fail", "run_command_line"]

_STOPPED = Interrupted("stopped; what was finished is kept", hint="run the same command again to go on")

_ClickException: Any = typer.BadParameter.__mro__[2]
"""The base of typer's usage errors; typer carries its own click, so `click.ClickException` is another class."""

app = typer.Typer(
    name="edgekit",
    help="From a PyTorch model to measured numbers on the phone or board it will ship on.",
    epilog="Start with: edgekit doctor · edgekit demo · edgekit init DIR",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"edgekit {edgekit.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and what edgekit does (any place).")] = False,
    inventory: Annotated[
        str | None, typer.Option(metavar="FILE", help="The devices' names and floors, devices.yaml (any place).")
    ] = None,
    adb_server: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="An adb server to ask; may be repeated (any place).")
    ] = None,
) -> None:
    """Options of every command."""
    if inventory is not None:
        from edgekit.benchmarks.devices.inventory import FILE_VARIABLE

        os.environ[FILE_VARIABLE] = inventory
    if adb_server:
        from edgekit.benchmarks.devices.adb_server import SERVERS_VARIABLE, checked_server

        os.environ[SERVERS_VARIABLE] = ",".join(checked_server(server) for server in adb_server)


def _options_first(arguments: Sequence[str]) -> list[str]:
    """`arguments` with the options of every command that take a value moved before the command."""
    front: list[str] = []
    rest = list(arguments)
    at = 0
    while at < len(rest) and rest[at] != "--":
        option, is_joined, _ = rest[at].partition("=")
        if option not in ("--inventory", "--adb-server") or not (is_joined or at + 1 < len(rest)):
            at += 1
        elif is_joined:
            front.append(rest.pop(at))
        else:
            front.append(f"{rest.pop(at)}={rest.pop(at)}")
    return front + rest


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; errors go to stderr, as JSON to stdout with `--json`."""
    arguments = list(arguments)
    is_debug = "--debug" in arguments or os.environ.get("EDGEKIT_DEBUG") == "1"
    arguments = _options_first([a for a in arguments if a != "--debug"])
    as_json = "--json" in arguments
    _configure_logging(is_debug)
    # on a machine with other work, OpenMP threads that spin while they wait cost a third of training's speed
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import edgekit.cli.commands  # noqa: F401  (registers the commands on `app`)

    command = next((a for a in arguments if not a.startswith("-")), "")
    try:
        result = typer.main.get_command(app).main(arguments, prog_name="edgekit", standalone_mode=False)
        if result == exit_status(_STOPPED):  # typer makes this number of a KeyboardInterrupt
            return fail(_STOPPED, as_json=as_json)
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return fail(_STOPPED, as_json=as_json)
    except EdgekitError as e:
        if is_debug:
            traceback.print_exc()
        return fail(e, as_json=as_json) + (10 if command == "compare" and not isinstance(e, Interrupted) else 0)
    except _ClickException as e:
        e.show()
        return int(e.exit_code) + (10 if command == "compare" else 0)
    except BrokenPipeError:
        # the reader of our output went away (`| head`); Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as e:
        missing = missing_dependency(e, what="this command")
        if missing is None:
            return _bug(e, is_debug)
        return fail(missing, as_json=as_json) + (10 if command == "compare" else 0)
    except Exception as e:  # noqa: BLE001  the border of the program: everything else is a bug, said as one
        return _bug(e, is_debug)


def _bug(error: Exception, is_debug: bool) -> int:
    if is_debug:
        traceback.print_exception(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    print(
        f"edgekit: internal error: {type(error).__name__}: {error} ({place.filename}:{place.lineno})\n"
        "  this is a bug in edgekit; run again with --debug and report what it prints",
        file=sys.stderr,
    )
    return exit_status(EdgekitError(""))


def fail(error: EdgekitError, *, as_json: bool) -> int:
    """Show `error` and return its exit status."""
    if as_json:
        print(json.dumps({"error": _as_record(error)}))
    from edgekit.report.visible import visible

    print(f"edgekit: {visible(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  try: {visible(error.hint)}", file=sys.stderr)
    return exit_status(error)


def _as_record(error: EdgekitError) -> dict[str, Any]:
    blame: Blame = error.blame
    return {
        "code": error.code,
        "blame": blame.value,
        "retryable": error.retryable,
        "message": error.message,
        "hint": error.hint,
    }


class _VisibleFormatter(logging.Formatter):
    """Shows terminal escapes in what a device said, instead of obeying them."""

    def format(self, record: logging.LogRecord) -> str:
        from edgekit.report.visible import visible

        return visible(super().format(record))


def _configure_logging(is_debug: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_VisibleFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("edgekit").setLevel(logging.DEBUG if is_debug else logging.WARNING)
    if not is_debug:
        os.environ.setdefault("TORCH_LOGS", "-all")  # what matters of torch's log is in our own messages
