"""The report as one HTML file that needs nothing else: no network, no fonts, no second file.

Everything a device or a user said passes Jinja2's autoescape (and `visible`); the data of the pictures is JSON
in a script element of its own that no browser executes, with `<`, `>` and `&` written as escapes. The page's
Content-Security-Policy allows only the two scripts it was made with, by their sha256, and no connections.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from edgekit.report import quantities as q
from edgekit.report.charts import charts
from edgekit.report.headline import headlines
from edgekit.report.methods import methods
from edgekit.report.model import Report
from edgekit.report.results import result_table, verdict_text
from edgekit.report.runs import OPERATOR_HEADINGS, operator_rows, run_pairs
from edgekit.report.sections import (
    comparisons,
    device_facts,
    host_facts,
    options_text,
    passport_views,
    png_data_uri,
    proportion_text,
    steps,
)
from edgekit.report.visible import visible

__all__ = ["render_chart_page", "render_html"]


def render_html(report: Report) -> str:
    """The whole page of `report`, about 5 MB, nearly all of it plotly.js."""
    return render_page(report, _plotly_source())


def render_page(report: Report, plotly_source: str) -> str:
    """The page with `plotly_source` as the drawing library."""
    library = _script(plotly_source)
    program = _script(_template_text("report.js"))
    table = result_table(report)
    page = _environment().get_template("report.html.j2")
    return page.render(
        report=report,
        policy=_policy(library, program),
        css=Markup(_template_text("report.css")),  # noqa: S704  the package's own file
        library=library,
        program=program,
        chart_data=_json_for_script(charts(report, table)),
        table=table,
        headlines=headlines(report),
        comparisons=comparisons(report),
        steps=steps(report.lineage),
        passports=passport_views(report),
        host=host_facts(report),
        devices=tuple(device_facts(d) for d in report.devices),
        methods=methods(report),
        recipe_text=options_text(report.recipe),
        emulated_any=any(r.emulated for r in report.rows) or any(d.emulated for d in report.devices),
    )


def render_chart_page(template: str, program: str, data: Any, **context: Any) -> str:
    """Another page made as the report is: `template` and `program` are file names here, `data` what it draws.

    The program calls `chart` of chart.js, which is put before it.
    """
    library, source = _script(_plotly_source()), _script(_template_text("chart.js") + _template_text(program))
    page = _environment().get_template(template)
    return page.render(
        policy=_policy(library, source),
        css=Markup(_template_text("report.css")),  # noqa: S704  the package's own file
        library=library,
        program=source,
        chart_data=_json_for_script(data),
        **context,
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("edgekit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters.update(
        breakable=_breakable,
        size=q.size,
        duration=q.duration,
        verdict=verdict_text,
        png=png_data_uri,
        full=q.grouped_count,
    )
    environment.filters.update(run_pairs=run_pairs, operator_rows=operator_rows)
    environment.filters.update(proportion=proportion_text, full=q.grouped_count)
    environment.globals["MISSING"] = q.MISSING
    environment.globals["OPERATOR_HEADINGS"] = OPERATOR_HEADINGS
    return environment


def _finalize(value: Any) -> Any:
    """Plain text with its hidden characters shown; markup of the package's own stays as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(text: str) -> Markup:
    """`text`, escaped, that may break after a dot, slash, colon or underscore before a letter."""
    return Markup(re.sub(r"([./:_-])(?=[^\W\d])", r"\1<wbr>", str(escape(visible(text)))))  # noqa: S704  escaped above


def _template_text(name: str) -> str:
    return (files("edgekit.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _plotly_source() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def _script(source: str) -> Markup:
    """`source` as the text of a script element, in the very form a browser hashes it.

    A browser turns CR LF into LF before it hashes, and would end the element at `</script`, which inside a
    JavaScript string means the same with a backslash.
    """
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    return Markup(re.sub(r"</(?=script)", r"<\\/", source, flags=re.IGNORECASE))  # noqa: S704  installed packages' own


def _policy(*scripts: Markup) -> str:
    """The Content-Security-Policy; plotly.js sets style attributes, so styles cannot be hashed."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json_for_script(value: Any) -> Markup:
    """`value` as JSON that can stand in a script element: no character that ends it or starts a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  escaped above
