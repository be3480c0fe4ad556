"""A climb as one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.report.charts import label
from edgekit.report.html import render_chart_page
from edgekit.schema import write_atomically
from edgekit.tuning.values import TuneResult
from edgekit.tuning.view import gate_text, rung_table, sentences

__all__ = ["render_page", "write_page"]


def write_page(result: TuneResult, path: Path) -> None:
    """Write the page at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render_page(result))


def render_page(result: TuneResult) -> str:
    """The whole page, nearly all of it plotly.js."""
    return render_chart_page(
        "tune.html.j2",
        "tune.js",
        _chart(result),
        title="Recovery ladder",
        subtitle=f"{result.workload} to {result.backend}; {gate_text(result.gate)}",
        findings=sentences(result),
        tables=[rung_table(result)],
        has_passed=result.passed is not None,
    )


def _chart(result: TuneResult) -> dict[str, Any]:
    made = [rung for rung in result.rungs if rung.on_search is not None]
    on_search = [(rung, rung.on_search) for rung in made if rung.on_search is not None]
    on_evaluation = [(rung, rung.on_evaluation) for rung in made if rung.on_evaluation is not None]
    return {
        "rungs": [label(rung.name) for rung in made],
        "search": [100 * bound.drop.value for _, bound in on_search],
        "evaluation": {
            "x": [label(rung.name) for rung, _ in on_evaluation],
            "y": [100 * bound.drop.value for _, bound in on_evaluation],
            "above": [100 * (bound.drop.high - bound.drop.value) for _, bound in on_evaluation],
            "below": [100 * (bound.drop.value - bound.drop.low) for _, bound in on_evaluation],
        },
        "seconds": [rung.seconds for rung in made],
        "gate": result.gate.max_drop_points,
    }
