"""The gates as JUnit XML, for the CI systems that read it: one test case a row and gate."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET  # only written here, never parsed

from edgekit.report.model import GateResult, Report, Row, Verdict
from edgekit.report.visible import visible

__all__ = ["render_junit"]

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _text(text: str) -> str:
    """`text` with what XML 1.0 cannot hold written out; ElementTree escapes the markup."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", visible(text))


def render_junit(report: Report) -> str:
    """`report` as JUnit XML.

    PASS is a passed case, FAIL a failure; NOISY and INCOMPARABLE are errors, for nothing was decided. A row that
    did not run is an error whatever its gates. A row without gates is one skipped case, so that it is seen.
    """
    suites = ET.Element("testsuites", name=_text(report.title))
    for device in dict.fromkeys(row.device for row in report.rows):
        suite = ET.SubElement(suites, "testsuite", name=_text(device), timestamp=_text(report.created))
        for row in report.rows:
            if row.device == device:
                _row_cases(suite, row)
        _count(suite)
    _count(suites)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _row_cases(suite: ET.Element, row: Row) -> None:
    if row.status != "ok":
        case = _case(suite, row, "runs")
        said = row.error or row.status
        ET.SubElement(case, "error", type=_text(row.status), message=_text(said)).text = _text(said)
    elif not row.gates:
        ET.SubElement(_case(suite, row, "gates"), "skipped", message="no gate was asked for")
    for gate in row.gates:
        _gate_case(suite, row, gate)


def _case(suite: ET.Element, row: Row, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=_text(f"{row.device}.{row.artifact}"), name=_text(name))


def _gate_case(suite: ET.Element, row: Row, gate: GateResult) -> None:
    case = _case(suite, row, gate.gate)
    if gate.verdict is Verdict.PASS:
        return
    if gate.verdict is Verdict.NOT_GATED:
        ET.SubElement(case, "skipped", message=_text(gate.detail))
        return
    kind = "failure" if gate.verdict is Verdict.FAIL else "error"
    ET.SubElement(case, kind, type=gate.verdict.value, message=_text(gate.detail)).text = _text(gate.detail)


def _count(element: ET.Element) -> None:
    """Write the totals of the cases under `element` into its attributes."""
    cases = list(element.iter("testcase"))
    element.set("tests", str(len(cases)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
