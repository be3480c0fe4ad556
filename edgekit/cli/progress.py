"""The live view of a run: one line a stage, with a bar, what it is doing, and how long it took.

On a terminal the lines move; elsewhere each stage prints one line when it ends.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from edgekit.pipeline.events import StageEvent, StageStatus
from edgekit.report.visible import visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

__all__ = ["RunDisplay"]

_MARKS = {
    StageStatus.STARTED: ("…", "cyan"),
    StageStatus.PROGRESS: ("…", "cyan"),
    StageStatus.DONE: ("✓", "green"),
    StageStatus.CACHED: ("=", "dim"),
    StageStatus.FAILED: ("✗", "red"),
    StageStatus.SKIPPED: ("–", "yellow"),
}


@dataclass(slots=True)
class _Line:
    status: StageStatus
    started: float
    fraction: float | None = None
    text: str = ""
    seconds: float | None = None


@dataclass(slots=True)
class RunDisplay:
    """Draws stage events on stderr; use it as a context manager and give `observe` to the pipeline."""

    is_quiet: bool = False
    _lines: dict[str, _Line] = field(default_factory=dict)
    _live: object | None = None
    _console: Console | None = None

    def __enter__(self) -> Self:
        from rich.console import Console

        self._console = Console(stderr=True)
        if self._console.is_terminal and not self.is_quiet:
            from rich.live import Live

            live = Live(self, console=self._console, refresh_per_second=8, transient=False)
            live.start()
            self._live = live
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()  # type: ignore[attr-defined]
            self._live = None

    def observe(self, event: StageEvent) -> None:
        """Take in one event."""
        line = self._lines.get(event.stage)
        if line is None or (event.status is StageStatus.STARTED and line.seconds is not None):
            line = self._lines[event.stage] = _Line(status=event.status, started=time.monotonic())
        line.status = event.status
        line.fraction = event.fraction if event.fraction is not None else line.fraction
        line.text = visible(event.text) or ("" if event.status is StageStatus.CACHED else line.text)
        if event.status not in (StageStatus.STARTED, StageStatus.PROGRESS):
            line.seconds = event.seconds if event.seconds is not None else time.monotonic() - line.started
            if self._live is None and not self.is_quiet:
                self._print_line(event.stage, line)

    def _print_line(self, stage: str, line: _Line) -> None:
        mark, _ = _MARKS[line.status]
        took = "already done" if line.status is StageStatus.CACHED else f"{line.seconds:.1f} s"
        text = f"  {line.text.splitlines()[0]}" if line.text else ""
        print(f"{mark} {stage:<32} {took:>12}{text}", file=sys.stderr, flush=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table(console)

    def _table(self, console: Console) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1), expand=False)
        table.add_column(width=1)
        table.add_column(min_width=24, no_wrap=True)
        table.add_column(width=14)
        table.add_column(justify="right", width=8)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        shown = list(self._lines.items())[-max(4, console.height - 2) :]
        for stage, line in shown:
            mark, style = _MARKS[line.status]
            is_open = line.status in (StageStatus.STARTED, StageStatus.PROGRESS)
            bar: ProgressBar | Text = Text("")
            if is_open and line.fraction is not None:
                bar = ProgressBar(total=1.0, completed=line.fraction, width=14)
            elif is_open:
                bar = ProgressBar(total=1.0, pulse=True, width=14)
            seconds = time.monotonic() - line.started if line.seconds is None else line.seconds
            took = "cached" if line.status is StageStatus.CACHED else f"{seconds:.1f} s"
            text = line.text.splitlines()[0] if line.text else ""
            table.add_row(Text(mark, style), Text(stage, style), bar, Text(took, "dim"), Text(text, "dim"))
        return table
