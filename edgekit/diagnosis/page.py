"""A diagnosis as one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.diagnosis.values import ArtifactDiagnosis, Diagnosis
from edgekit.diagnosis.view import decibels, findings, layer_table, sensitivity_table, tried_table
from edgekit.report.charts import label
from edgekit.report.html import render_chart_page
from edgekit.schema import write_atomically

__all__ = ["render_page", "write_page"]


def write_page(diagnosis: Diagnosis, path: Path) -> None:
    """Write the page at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render_page(diagnosis))


def render_page(diagnosis: Diagnosis) -> str:
    """The whole page, nearly all of it plotly.js."""
    tables = [layer_table(diagnosis, artifact) for artifact in diagnosis.artifacts]
    tables += [sensitivity_table(diagnosis, name) for name in diagnosis.sensitivity]
    tables += [tried_table(repair) for repair in diagnosis.repairs if repair.attempts]
    return render_chart_page(
        "why.html.j2",
        "why.js",
        _chart(diagnosis),
        title="Why is it worse?",
        subtitle=f"{diagnosis.workload}, {diagnosis.samples} {diagnosis.source}",
        findings=findings(diagnosis),
        tables=tables,
    )


def _chart(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "layers": [label(layer.node) for layer in diagnosis.layers],
        "lines": [_line(artifact) for artifact in diagnosis.artifacts],
    }


def _line(artifact: ArtifactDiagnosis) -> dict[str, Any]:
    broken = [layer for layer in artifact.layers if layer.node == artifact.first_break and layer.sqnr_db is not None]
    return {
        "name": label(artifact.name, 60),
        "x": [label(layer.node) for layer in artifact.layers],
        "y": [layer.sqnr_db for layer in artifact.layers],
        "own": [layer.local_sqnr_db for layer in artifact.layers],
        "hover": [
            f"<b>{label(layer.node, 60)}</b><br>{label(' + '.join(layer.piece), 80)}<br>"
            f"SQNR {decibels(layer.sqnr_db, exact=layer.exact)} dB, own {decibels(layer.local_sqnr_db, exact=True)} dB"
            for layer in artifact.layers
        ],
        "broken": {"x": [label(layer.node) for layer in broken], "y": [layer.sqnr_db for layer in broken]},
    }
