"""A diagnosis as rows and sentences, which the terminal's table and the page share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.artifact import NodeRule
from edgekit.diagnosis.subject import lowest_sqnr
from edgekit.diagnosis.values import ArtifactDiagnosis, Bound, Diagnosis, Layer, LayerError, Repair, SearchResult

__all__ = ["Row", "Table", "findings", "layer_table", "sensitivity_table", "tried_table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Cells of a table; `is_marked` where something breaks."""

    cells: tuple[str, ...]
    is_marked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A titled table of texts."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


_HEADINGS = (
    *("layer", "computed", "dtype", "SQNR dB", "own dB", "inputs dB", "file holds", "model has"),
    *("clipped", "saturated", "dead", "alone dB", "without dB"),
)


def decibels(value: float | None, *, exact: bool = False) -> str:
    """`37.8`; `exact` where it is that, `-` where it is not known."""
    if value is not None:
        return "exact" if value >= 200 else f"{round(value, 1) + 0.0:.1f}"
    return "exact" if exact else "-"


def layer_table(diagnosis: Diagnosis, artifact: ArtifactDiagnosis) -> Table:
    """Every layer of one file, in graph order."""
    layers = {layer.node: layer for layer in diagnosis.layers}
    on_device = diagnosis.device is not None
    rows = []
    for error in artifact.layers:
        cells = _cells(layers[error.node], error) + ((_device(error),) if on_device else ())
        rows.append(Row(cells=cells, is_marked=error.node == artifact.first_break))
    return Table(
        title=artifact.name,
        headings=(*_HEADINGS, "device vs host dB") if on_device else _HEADINGS,
        rows=tuple(rows),
        note="; ".join(artifact.notes),
    )


def _cells(layer: Layer, error: LayerError) -> tuple[str, ...]:
    place = layer.module or layer.source or ""
    return (
        f"{error.node}" + (f" ({place})" if place else ""),
        _piece(error.piece),
        error.dtype,
        decibels(error.sqnr_db, exact=error.exact),
        decibels(error.local_sqnr_db, exact=True),
        decibels(error.input_sqnr_db, exact=True),
        _range(error.file_range),
        _range(error.seen_range),
        _share(error.clipped),
        _share(error.saturated),
        f"{error.dead_channels}/{error.channels}" if error.dead_channels else "",
        decibels(error.alone_sqnr_db),
        decibels(error.without_sqnr_db),
    )


def _piece(nodes: Sequence[str]) -> str:
    """The nodes, of many the last four: what makes a mask may be a dozen."""
    return " + ".join(nodes if len(nodes) <= 5 else ("…", *nodes[-4:]))


def _device(error: LayerError) -> str:
    return "not asked" if error.device_exact is None else decibels(error.device_sqnr_db, exact=error.device_exact)


def _range(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.3g} … {ends[1]:.3g}"


def _share(value: float | None) -> str:
    return "" if not value else f"{value:.2%}"


def sensitivity_table(diagnosis: Diagnosis, name: str) -> Table:
    """Layers by what they cost, the worst first."""
    rows = tuple(
        Row(
            cells=(
                item.node + (f" ({item.module})" if item.module else ""),
                item.op,
                decibels(item.alone_sqnr_db),
                decibels(item.without_sqnr_db),
                "-" if item.gain_db is None else f"{item.gain_db:+.2f}",
                f"{item.macs:,}",
                f"{item.weight_values:,}",
            )
        )
        for item in diagnosis.sensitivity[name]
    )
    headings = ("layer", "ops", "alone dB", "without dB", "gain dB", "MACs", "weights")
    note = (
        "SQNR of the worst output with this layer's error alone, and with all errors but this one; replayed in PyTorch"
    )
    return Table(title=f"Sensitivity of {name}", headings=headings, rows=rows, note=note)


def tried_table(repair: Repair) -> Table:
    """What was tried to repair one file."""
    rows = tuple(
        Row(
            cells=(
                attempt.what,
                _rules(attempt.rules),
                attempt.error or f"{decibels(attempt.search_sqnr_db)} dB",
                "" if attempt.size_bytes is None else f"{attempt.size_bytes:,}",
            )
        )
        for attempt in repair.attempts
    )
    note = f"before: {decibels(repair.before_sqnr_db, exact=True)} dB on calibration inputs"
    return Table(
        title=f"Tried for {repair.artifact}", headings=("what", "rules", "gave", "bytes"), rows=rows, note=note
    )


def _rules(rules: Sequence[NodeRule]) -> str:
    return ", ".join(f"{rule.node}={rule.action.value}" for rule in rules)


def findings(diagnosis: Diagnosis) -> tuple[str, ...]:
    """What a reader should know first, one sentence each."""
    sentences = []
    for artifact in diagnosis.artifacts:
        worst = lowest_sqnr(artifact.outputs)
        sentences.append(f"{artifact.name}: {decibels(worst, exact=True)} dB at its outputs; {artifact.reason}")
        if diagnosis.device is not None:
            where = artifact.device_differs
            told = "gives the values of this host" if where is None else f"first differs from this host at {where}"
            sentences.append(f"{artifact.name}: {diagnosis.device} {told}")
        sentences.extend(f"{artifact.name}: {note}" for note in artifact.notes)
    for repair in diagnosis.repairs:
        sentences.extend(_of_repair(repair))
    for found in diagnosis.searches:
        sentences.extend(_of_search(found))
    return tuple(sentences)


def _of_repair(repair: Repair) -> list[str]:
    told = [f"{repair.artifact}: {repair.verdict}"]
    if repair.rules:
        told.append(f"{repair.artifact}: the rule to use: {_rules(repair.rules)}")
        before, after = lowest_sqnr(repair.held_out_before), lowest_sqnr(repair.held_out_after)
        told.append(
            f"{repair.artifact}: on evaluation inputs, not used to choose: {decibels(before, exact=True)} dB before, "
            f"{decibels(after, exact=True)} dB after"
        )
    if repair.applied:
        told.append(f"{repair.artifact}: repaired as {repair.applied}")
    return told


def _of_search(found: SearchResult) -> list[str]:
    kept = ", ".join(found.float_layers) or "none"
    told = [
        f"{found.artifact}: {len(found.float_layers)} of {found.layers} layers in float ({kept}), "
        f"{found.float_macs_share:.1%} of the MACs",
        f"{found.artifact}: {found.verdict}: {found.reason}",
    ]
    if found.on_search is not None:
        told.insert(1, f"{found.artifact}: searched on {_bound(found.on_search)}")
    if found.stopped:
        told.append(f"{found.artifact}: {found.stopped}; this is the best so far")
    if found.applied:
        told.append(f"{found.artifact}: kept as {found.applied}")
    return told


def _bound(bound: Bound) -> str:
    return f"{bound.data}: {bound.metric} {bound.value.value:.2%}, a drop of {bound.drop.value * 100:.2f} points"
