"""A report on disk: `report.html`, `report.json`, `report.md` in one folder, each written whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import HostError, UserError
from edgekit.report.model import Report
from edgekit.schema import read_record, write_atomically

__all__ = ["ReportFiles", "read_report", "write_report"]

JSON_NAME = "report.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFiles:
    """Where the views of one report lie."""

    html: Path
    json: Path
    markdown: Path


def write_report(report: Report, folder: Path) -> ReportFiles:
    """Write every view of `report` into `folder` (made if missing) and return where they are.

    All are rendered before the first is written; `report.json` is written last, so a folder that has a new
    one has the page that belongs to it. Raises HostError when the folder cannot be written.
    """
    from edgekit.report.html import render_html
    from edgekit.report.markdown import render_markdown

    written = ReportFiles(html=folder / "report.html", json=folder / JSON_NAME, markdown=folder / "report.md")
    texts = {
        written.html: render_html(report),
        written.markdown: render_markdown(report),
        written.json: report.model_dump_json() + "\n",
    }
    try:
        for path, text in texts.items():
            write_atomically(path, text)
    except OSError as e:
        raise HostError(
            f"{folder}: the report cannot be written: {e.strerror or e}",
            hint="give another folder, or make space",
        ) from e
    return written


def read_report(path: Path) -> Report:
    """The report in a `report.json`, or in a folder that has one.

    Raises UserError when it is missing, too large, not strict JSON, or not a report of a known schema version.
    """
    file = path / JSON_NAME if path.is_dir() else path
    try:
        return read_record(Report, file)
    except FileNotFoundError as e:
        raise UserError(f"{file}: no such report", hint="`edgekit run` writes report.json; check the path") from e
    except (OSError, ValueError) as e:
        raise UserError(f"{file}: not a readable report: {e}") from e
