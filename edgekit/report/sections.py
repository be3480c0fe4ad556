"""The parts of the page besides the result table: teacher and students, passports, facts, gates, methods.

Each is a few frozen values of ready text, so that templates only place them.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

from edgekit.artifact import Effect, LineageStep, Passport, QuantizationParams, StepProof, StepVerdict, TensorSpec
from edgekit.benchmarks.stats import stated_ratio
from edgekit.benchmarks.values import DeviceInfo
from edgekit.report import quantities as q
from edgekit.report.model import Proportion, Report, Row, WorstInput

__all__ = [
    "Change",
    "Comparison",
    "Facts",
    "PassportView",
    "Step",
    "comparisons",
    "device_facts",
    "host_facts",
    "judged_text",
    "options_text",
    "passport_views",
    "png_data_uri",
    "proportion_text",
    "steps",
]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A titled list of (name, value)."""

    title: str
    pairs: tuple[tuple[str, str], ...]
    emulated: bool = False
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The teacher or one artifact: what it is and how close it came."""

    name: str
    kind: str
    parameters: str
    macs: str
    size: str
    accuracy: str
    agreement: str
    kl: str
    sqnr: str
    is_teacher: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One measure of a model before and after a step, and what became of it."""

    name: str
    before: str
    after: str
    effect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the lineage."""

    name: str
    summary: str
    remarks: tuple[str, ...]
    changes: tuple[Change, ...]
    options: str
    verdict: StepVerdict | None = None
    judged: str = ""
    """Verdict, reason and conditions in one line; empty where the step was not judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassportView:
    """One artifact's passport as text."""

    passport: Passport
    facts: Facts
    tensors: tuple[tuple[str, ...], ...]
    ops: tuple[tuple[str, ...], ...]
    dtype_counts: str
    fidelity: tuple[tuple[str, ...], ...]


# ---- teacher beside students


def comparisons(report: Report) -> tuple[Comparison, ...]:
    """The PyTorch teacher first, then each artifact with what its devices measured (a range where they differ)."""
    found = []
    if report.baseline:
        b = report.baseline
        found.append(
            Comparison(
                name=b.name,
                kind="PyTorch fp32 on the host",
                parameters=q.count(b.parameters),
                macs=q.count(b.macs),
                size=q.size(b.size_bytes),
                accuracy=q.percent(b.accuracy.value if b.accuracy else None),
                agreement="reference",
                kl="reference",
                sqnr="reference",
                is_teacher=True,
            )
        )
    for passport in report.artifacts:
        rows = [r for r in report.rows if r.artifact == passport.name]
        found.append(_comparison(passport, rows))
    return tuple(found)


def _comparison(passport: Passport, rows: list[Row]) -> Comparison:
    return Comparison(
        name=passport.name,
        kind=" · ".join(part for part in (passport.format.value, passport.scheme) if part),
        parameters=q.count(passport.parameters),
        macs=q.count(passport.macs),
        size=q.size(passport.size_bytes),
        accuracy=_range(q.percent(r.accuracy.value) for r in rows if r.accuracy),
        agreement=_range(q.percent(r.agreement.value) for r in rows if r.agreement),
        kl=_range(f"{r.kl_to_teacher:.3g}" for r in rows if r.kl_to_teacher is not None),
        sqnr=_range(q.decibels(r.sqnr_db, exact=r.sqnr_exact) for r in rows if r.sqnr_exact or r.sqnr_db is not None),
    )


def _range(texts: Iterable[str]) -> str:
    different = list(dict.fromkeys(texts))
    return " / ".join(different) if different else q.MISSING


# ---- lineage


def steps(lineage: tuple[LineageStep, ...]) -> tuple[Step, ...]:
    """Each step with what it cost and what it brought."""
    return tuple(_step(s) for s in lineage)


def _step(step: LineageStep) -> Step:
    remarks = []
    if step.seconds is not None:
        remarks.append(q.duration(step.seconds))
    if step.seed is not None:
        remarks.append(f"seed {step.seed}")
    return Step(
        name=step.step,
        summary=step.summary,
        remarks=tuple(remarks),
        changes=_changes(step.before, step.after),
        options=options_text(step.options),
        verdict=step.proof.verdict if step.proof else None,
        judged=judged_text(step.proof) if step.proof else "",
    )


def judged_text(proof: StepProof) -> str:
    """`PAID: 2.10x faster on local (tflite fp32; judged with distill)`."""
    conditions = [f"{proof.format} {proof.scheme}"]
    if proof.judged_with:
        conditions.append(f"{' + '.join(proof.judged_with)} judged as one")
    if proof.emulated:
        conditions.append("emulated device")
    if proof.dropped:
        conditions.append("dropped from the student")
    return f"{proof.verdict.value}: {proof.reason} ({'; '.join(conditions)})"


def _changes(before: Effect | None, after: Effect | None) -> tuple[Change, ...]:
    a, b = before or Effect(), after or Effect()
    found = [
        _scaled("Parameters", a.parameters, b.parameters, q.count(a.parameters), q.count(b.parameters)),
        _scaled("MACs", a.macs, b.macs, q.count(a.macs), q.count(b.macs)),
        _changed_only(
            _scaled(
                "Non-zero",
                a.nonzero_parameters,
                b.nonzero_parameters,
                q.count(a.nonzero_parameters),
                q.count(b.nonzero_parameters),
            ),
            _scaled("Parameters", a.parameters, b.parameters, "", ""),
        ),
        _scaled("Size", a.size_bytes, b.size_bytes, q.size(a.size_bytes), q.size(b.size_bytes)),
        _scaled("File", a.file_bytes, b.file_bytes, q.size(a.file_bytes), q.size(b.file_bytes)),
        _scaled("Packed", a.packed_bytes, b.packed_bytes, q.size(a.packed_bytes), q.size(b.packed_bytes)),
        _scaled("Memory", a.memory_bytes, b.memory_bytes, q.size(a.memory_bytes), q.size(b.memory_bytes)),
        _timed("Latency, minimum", a.latency_min_ns, b.latency_min_ns, a, b),
        _timed("Latency, median", a.latency_p50_ns, b.latency_p50_ns, a, b),
        _shifted("Accuracy, %", a.accuracy, b.accuracy),
        _shifted("Agreement, %", a.agreement, b.agreement),
    ]
    return tuple(change for change in found if change)


def _scaled(name: str, a: int | None, b: int | None, before: str, after: str) -> Change | None:
    if a is None and b is None:
        return None
    if not a or not b:
        effect = ""
    elif a == b:
        effect = "same"
    else:
        effect = f"{q.significant(a / b)}× less" if a > b else f"{q.significant(b / a)}× more"
    return Change(name=name, before=before, after=after, effect=effect)


def _changed_only(change: Change | None, like: Change | None) -> Change | None:
    """None where it says no more than `like` does."""
    return None if change is None or (like is not None and change.effect == like.effect) else change


def _timed(name: str, before: int | None, after: int | None, a: Effect, b: Effect) -> Change | None:
    """Without an effect where minimum and median tell different ratios."""
    change = _scaled(name, before, after, q.time(before), q.time(after))
    if change is None or not (a.latency_min_ns and b.latency_min_ns and a.latency_p50_ns and b.latency_p50_ns):
        return change
    stated = stated_ratio(a.latency_min_ns / b.latency_min_ns, a.latency_p50_ns / b.latency_p50_ns)
    return change if stated is not None else replace(change, effect="not told: minimum and median differ")


def _shifted(name: str, a: float | None, b: float | None) -> Change | None:
    if a is None and b is None:
        return None
    effect = f"{q.points(b - a)} pp" if a is not None and b is not None else ""
    return Change(name=name, before=q.percent(a), after=q.percent(b), effect=effect)


def options_text(options: dict[str, object]) -> str:
    """Options as indented JSON, or nothing."""
    return json.dumps(options, indent=2, ensure_ascii=False, sort_keys=False) if options else ""


# ---- passports


def passport_views(report: Report) -> tuple[PassportView, ...]:
    """Every artifact's passport, as text."""
    return tuple(_passport_view(p) for p in report.artifacts)


def _passport_view(p: Passport) -> PassportView:
    pairs = [
        ("File", p.file),
        ("sha256", p.sha256),
        ("Size", f"{q.size(p.size_bytes)} ({q.grouped_count(p.size_bytes)} bytes)"),
        ("Parameters", q.grouped_count(p.parameters)),
        ("MACs", q.grouped_count(p.macs)),
        *((f"Delegate {d.name}", f"{d.nodes} of {d.total} nodes") for d in p.delegates),
        ("Oldest runtime", _versions(p.minimum_runtime)),
        ("Made with", _versions(p.tool_versions)),
        ("Conversion", f"{q.duration(p.conversion_seconds)}, peak memory {q.size(p.conversion_peak_rss_bytes)}"),
    ]
    tensors = [("input", *_tensor(t)) for t in p.inputs] + [("output", *_tensor(t)) for t in p.outputs]
    totals: dict[str, int] = {}
    for op in p.ops:
        totals[op.dtype] = totals.get(op.dtype, 0) + op.count
    return PassportView(
        passport=p,
        facts=Facts(title=p.name, pairs=tuple(pairs)),
        tensors=tuple(tensors),
        ops=tuple((o.name, o.dtype, str(o.count), str(o.version) if o.version else q.MISSING) for o in p.ops),
        dtype_counts=", ".join(f"{n} {dtype}" for dtype, n in sorted(totals.items(), key=lambda kv: -kv[1])),
        fidelity=_fidelity(p),
    )


def _tensor(t: TensorSpec) -> tuple[str, ...]:
    shape = " × ".join(str(extent) for extent in t.shape) or "scalar"
    return (t.name, shape, t.dtype, t.layout or q.MISSING, _quantization(t.quantization))


def _quantization(params: QuantizationParams | None) -> str:
    if params is None:
        return "none"
    if len(params.scale) == 1 and len(params.zero_point) == 1:
        return f"scale {params.scale[0]:.6g}, zero point {q.grouped_count(params.zero_point[0])}"
    low, high = min(params.scale), max(params.scale)
    return f"per slice of axis {params.axis}: {len(params.scale)} scales, {low:.3g} to {high:.3g}"


def _fidelity(p: Passport) -> tuple[tuple[str, ...], ...]:
    if p.fidelity is None:
        return ()
    return tuple(
        (
            o.name,
            q.decibels(o.sqnr_db, exact=o.exact),
            q.MISSING if o.cosine is None else f"{o.cosine:.6f}",
            q.MISSING if o.max_abs_error is None else f"{o.max_abs_error:.3g}",
            q.grouped_count(o.non_finite),
        )
        for o in p.fidelity.outputs
    )


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or q.MISSING


# ---- host and devices


def host_facts(report: Report) -> Facts:
    """The machine that ran edgekit."""
    h = report.host
    pairs = [
        ("Host", h.hostname),
        ("System", h.os),
        ("Processor", _join(h.cpu_model, h.cores and f"{h.cores} cores")),
        ("Memory", q.size(h.ram_bytes)),
        ("Python", h.python),
        ("edgekit", h.edgekit),
        ("Tools", _versions(h.tool_versions)),
        ("Load, 1 min", q.MISSING if h.load_average_1m is None else f"{h.load_average_1m:.2f}"),
    ]
    return Facts(title="This host", pairs=tuple(pairs))


def device_facts(device: DeviceInfo) -> Facts:
    """One device, as it described itself; unknown facts are left out."""
    clusters = "; ".join(
        f"{len(c.cores)} cores" + (f" at up to {c.max_khz / 1e6:.2f} GHz" if c.max_khz else "") for c in device.clusters
    )
    pairs = [
        ("Kind", device.kind),
        ("Serial", device.serial),
        ("Model", device.model),
        ("SoC", device.soc),
        ("Processor", _join(device.cpu_model, device.cores and f"{device.cores} cores")),
        ("Instruction sets", ", ".join(device.cpu_features)),
        ("Clusters", clusters),
        ("Memory", q.size(device.ram_bytes) if device.ram_bytes else None),
        ("System", _join(device.os, device.kernel and f"kernel {device.kernel}")),
        ("Android API", str(device.android_api) if device.android_api else None),
        ("ABI", _join(device.abi, device.libc)),
        ("Python", device.python),
        ("Governor", device.governor),
        ("Shares the host's processor", "yes" if device.shares_host_cpu else "no"),
        ("Fingerprint", device.fingerprint()[:16]),
    ]
    known = tuple((name, value) for name, value in pairs if value)
    return Facts(title=device.spec, pairs=known, emulated=device.emulated, note=device.emulation)


def _join(*parts: str | int | None) -> str:
    return ", ".join(str(p) for p in parts if p) or q.MISSING


# ---- pictures


def png_data_uri(worst: WorstInput) -> str | None:
    """`data:` address of the picture; None where there is none or it is not a PNG."""
    if not worst.image_png_base64:
        return None
    try:
        data = base64.b64decode(worst.image_png_base64, validate=True)
    except (binascii.Error, ValueError):
        return None
    if not data.startswith(PNG_MAGIC):
        return None
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def proportion_text(p: Proportion | None) -> str:
    """`91.2 % (90.6–91.7, 9,120 of 10,000)`."""
    if p is None:
        return q.MISSING
    of = f"{q.grouped_count(p.hits)} of {q.grouped_count(p.total)}"
    return f"{q.percent(p.value)} % ({q.percent(p.low)}–{q.percent(p.high)}; {of})"
