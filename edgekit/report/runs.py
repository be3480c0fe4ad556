"""One run in words and small tables: what was timed, the device meanwhile, memory, energy, the longest operators."""

from __future__ import annotations

from collections.abc import Iterable

from edgekit.benchmarks.values import Conditions, Energy, Memory, Run
from edgekit.report import quantities as q

__all__ = ["OPERATOR_HEADINGS", "energy_text", "operator_rows", "run_pairs"]

OPERATOR_HEADINGS = ("Operator", "Type", "Per inference", "Share")
_SHOWN_OPERATORS = 10
_NAME, _TYPE = 80, 40


def run_pairs(run: Run) -> tuple[tuple[str, str], ...]:
    """(name, value) of what the run tells beyond its latencies; what it does not tell is left out."""
    moments = [m for m in (run.before, *(block.state for block in run.blocks), run.after) if m is not None]
    pairs = [
        ("Timed", _timed(run)),
        ("Temperature", _temperature(moments)),
        ("Clocks", _span((max(m.cpu_khz.values()) / 1000 for m in moments if m.cpu_khz), "MHz, the fastest core", 0)),
        ("Load", _span((m.load_average_1m for m in moments if m.load_average_1m is not None), "", 2)),
        ("Waited for the plan's conditions", _waited(run)),
        ("Memory", _memory(run.memory) if run.memory else ""),
        ("Energy", energy_text(run.energy) if run.energy else ""),
    ]
    return tuple((name, value) for name, value in pairs if value)


def energy_text(energy: Energy) -> str:
    """`1.23 ± 0.05 mJ per inference above idle (BAT0: 3200 mW busy, 2100 mW idle)`."""
    return (
        f"{energy.mj_per_inference:.3g} ± {energy.error_mj:.2g} mJ per inference above idle "
        f"({energy.source}: {energy.busy_mw:.0f} mW busy, {energy.idle_mw:.0f} mW idle)"
    )


def operator_rows(run: Run) -> tuple[tuple[str, str, str, str], ...]:
    """The ten longest operators under OPERATOR_HEADINGS, and the rest as one; empty without a profile."""
    operators = sorted(run.operators or (), key=lambda o: -o.total_ns)
    if not operators:
        return ()
    total = sum(o.total_ns for o in operators) or 1
    runs = max(o.calls for o in operators)
    rows = [
        (o.name[:_NAME], o.type[:_TYPE], q.time(round(o.total_ns / runs)), f"{o.total_ns / total:.1%}")
        for o in operators[:_SHOWN_OPERATORS]
    ]
    rest = operators[_SHOWN_OPERATORS:]
    if rest:
        left = sum(o.total_ns for o in rest)
        rows.append((f"{len(rest)} more", "", q.time(round(left / runs)), f"{left / total:.1%}"))
    return tuple(rows)


def _timed(run: Run) -> str:
    if run.runtime is None or run.runtime.interface is None:
        return ""
    told = run.runtime.interface
    if run.calls_per_sample > 1:
        told += f"; {run.calls_per_sample} calls a sample"
    if run.sampled_every > 1:
        told += f"; one sample in {run.sampled_every} kept"
    return told + (f"; {len(run.blocks)} blocks" if run.blocks else "")


def _temperature(moments: list[Conditions]) -> str:
    """Of the zone that became the hottest."""
    highest = max(((t, zone) for m in moments for zone, t in m.temperature_milli_c.items()), default=None)
    if highest is None:
        return ""
    zone = highest[1]
    values = [m.temperature_milli_c[zone] / 1000 for m in moments if zone in m.temperature_milli_c]
    return _span(values, f"°C ({zone})", 1)


def _span(values: Iterable[float], unit: str, digits: int) -> str:
    known = list(values)
    if not known:
        return ""
    low, high = (f"{v:.{digits}f}" for v in (min(known), max(known)))
    return f"{low if low == high else f'{low} to {high}'} {unit}".rstrip()


def _waited(run: Run) -> str:
    waited = sum(block.waited_ns for block in run.blocks) / 1e9
    return q.duration(waited) if waited >= 0.01 else ""


def _memory(memory: Memory) -> str:
    """The runtime's own apart from the model's."""
    peak, base = memory.peak_rss_bytes, memory.baseline_rss_bytes
    parts = []
    if base is not None:
        parts.append(f"{q.size(base)} with the runtime imported")
    if peak is not None:
        parts.append(f"peak {q.size(peak)}")
    if base is not None and peak is not None:
        parts.append(f"the model's own {q.size(max(0, peak - base))}")
    if memory.pss_bytes is not None:
        before = f", {q.size(memory.baseline_pss_bytes)} before it" if memory.baseline_pss_bytes is not None else ""
        parts.append(f"proportional {q.size(memory.pss_bytes)} with the model{before}")
    return "; ".join(parts)
