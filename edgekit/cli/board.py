"""`edgekit board …`: virtual boards that stay up between commands."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.app import app
from edgekit.errors import UserError

if TYPE_CHECKING:
    from edgekit.benchmarks.devices.board_records import BoardRecord

board = typer.Typer(no_args_is_help=True, help="Virtual boards, for desks without a phone: real adbd, sshd and Python.")
app.add_typer(board, name="board")

ArchOption = Annotated[str, typer.Option("--arch", help="amd64 (native speed), or arm64 (emulated by qemu).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@board.command(epilog="Example: edgekit board create --arch arm64")
def create(arch: ArchOption = "amd64", as_json: JsonOption = False) -> int:
    """Build the file tree of a board's architecture, once (about 10 s; needs a Debian mirror)."""
    path = _created(arch)
    print(json.dumps({"arch": arch, "tree": path}) if as_json else f"board:{arch} is ready to start ({path})")
    return 0


@board.command(epilog="Example: edgekit board start -n 3 && edgekit benchmark model.tflite -d board:amd64-1")
def start(
    number: Annotated[int, typer.Option("-n", min=1, max=16, help="How many.")] = 1,
    arch: ArchOption = "amd64",
    as_json: JsonOption = False,
) -> int:
    """Start boards that run until `edgekit board stop`, reachable over adb and ssh."""
    from edgekit.benchmarks.devices.boards import start_board

    _created(arch)
    started = []
    for _ in range(number):
        record = start_board(arch)
        started.append(record)
        if not as_json:
            print(f"{record.name} runs ({_emulation(record)})")
            print(f"  adb: -d {record.spec}    ssh: -d {record.ssh_spec}")
    if as_json:
        print(json.dumps([_as_record(record) for record in started]))
    return 0


@board.command("list", epilog="Example: edgekit board list --json | jq -r '.[].spec'")
def list_boards(as_json: JsonOption = False) -> int:
    """The boards that run: architecture, address, and how to name each over adb and ssh."""
    from edgekit.benchmarks.devices.board_records import running_boards

    boards = running_boards()
    if as_json:
        print(json.dumps([_as_record(record) for record in boards]))
    elif not boards:
        print("no board runs; start one: edgekit board start")
    else:
        _print(boards)
    return 0


@board.command(epilog="Example: edgekit board stop amd64-1")
def stop(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> int:
    """Stop boards, with everything that runs on them."""
    from edgekit.benchmarks.devices.board_records import running_boards
    from edgekit.benchmarks.devices.boards import chosen_boards, stop_board

    if bool(names) == every:
        raise UserError("say which boards to stop", hint="edgekit board stop NAME…, or --all")
    boards = running_boards() if every else chosen_boards(names or ())
    for record in boards:
        stop_board(record)
        print(f"{record.name} stopped")
    if not boards:
        print("no board runs")
    return 0


@board.command(epilog="Example: edgekit board destroy --arch arm64 --yes")
def destroy(
    arch: Annotated[str | None, typer.Option("--arch", help="Only this architecture's.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Remove trees, files put on boards, and host keys; they are made again when needed. No board may run."""
    from edgekit.benchmarks.devices.board_arch import ARCHES
    from edgekit.benchmarks.devices.boards import destroy_boards

    if arch is not None and arch not in ARCHES:
        raise UserError(f"there is no architecture {arch[:40]!r}", hint=f"there are {', '.join(ARCHES)}")
    arches = [arch] if arch else list(ARCHES)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("destroying boards needs a yes", hint="edgekit board destroy --yes")
        typer.confirm(f"Remove the boards of {', '.join(arches)} with all that was put on them?", abort=True)
    removed = destroy_boards(arches)
    for path in removed:
        print(f"removed {path}")
    if not removed:
        print("there was nothing to remove")
    return 0


def _created(arch: str) -> str:
    """The path of the tree, built under a line that shows what is being done."""
    from rich.console import Console

    from edgekit.benchmarks.devices.boards import create_board

    console = Console(stderr=True)
    with console.status(f"building the {arch} board") as status:
        path = create_board(arch, lambda step: status.update(f"building the {arch} board: {_plain(step)}"))
    return str(path)


def _plain(text: str) -> str:
    from rich.markup import escape

    from edgekit.report.visible import visible

    return escape(visible(text))


def _emulation(record: BoardRecord) -> str:
    from edgekit.benchmarks.devices.board_arch import ARCHES

    return f"EMULATED: {ARCHES[record.arch].emulation}"


def _as_record(record: BoardRecord) -> dict[str, object]:
    from edgekit.benchmarks.devices.board_records import ssh_files

    return {
        "name": record.name,
        "arch": record.arch,
        "state": "running",
        "address": record.address,
        "spec": record.spec,
        "adb_spec": record.adb_spec,
        "ssh_spec": record.ssh_spec,
        "ssh_config": str(ssh_files() / "config"),
        "since_unix_s": record.since_unix_s,
        "pid": record.pid,
        "emulation": _emulation(record).removeprefix("EMULATED: "),
    }


def _print(boards: tuple[BoardRecord, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    from edgekit.benchmarks.devices.board_records import ssh_files

    table = Table(box=None, pad_edge=False)
    for heading in ("board", "state", "address", "ssh", "since"):
        table.add_column(heading, overflow="fold")
    for record in boards:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.since_unix_s))
        table.add_row(record.spec, "running", record.address, record.ssh_spec, since)
    console = Console()
    console.print(table)
    for arch, text in dict.fromkeys((record.arch, _emulation(record)) for record in boards):
        console.print(f"{arch}: {text}", style="yellow")
    console.print(f"plain ssh: ssh -F {ssh_files() / 'config'} edgekit-{boards[0].name}", markup=False)
