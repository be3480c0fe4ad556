"""Every model of the zoo in every backend and scheme: converted, run on this host, judged; or the reason why not.

    make conversion-matrix
    python scripts/conversion_matrix.py --models resnet18,bert --backends onnx --schemes fp32,static_w8a8

Writes docs/conversion-matrix.md. Each cell is kept as JSON under ~/.cache/edgekit/matrix, named by what it was made
from (the model's source, the converters' source, tool versions, scheme, seeds), so that a killed run goes on and an
unchanged cell costs nothing. A cell that ends in anything but an artifact or an EdgekitError is a BUG: exit status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import host_timing
from support.zoo import ZOO

from edgekit.artifact import Artifact, Scheme
from edgekit.converters.conversion import ConversionOptions, convert_model
from edgekit.converters.registry import CONVERTERS
from edgekit.errors import EdgekitError
from edgekit.pipeline.facts import host_facts, tool_versions

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path("~/.cache/edgekit/matrix").expanduser()
BACKENDS = ("tflite", "executorch", "onnx", "onnx-tf", "tflite-micro")
UNTIMED = ("tflite-micro", "onnx-tf")
"""Their files run elsewhere, or are another backend's second opinion."""
CALIBRATION, VERIFICATION, SEEDS = 32, 32, (1, 2)
TIMEOUT_SECONDS = 900
SLOWER = 1.05
INTERNAL = ("NameError:", "UnboundLocalError:", "ModuleNotFoundError:", "missing 1 required")
"""Errors in edgekit's own code, whatever they are wrapped in."""
Cell = dict[str, Any]


def source_hash(paths: Iterable[Path]) -> str:
    """sha256 over names and contents of these files."""
    hashed = hashlib.sha256()
    for path in sorted(paths):
        hashed.update(path.name.encode() + path.read_bytes())
    return hashed.hexdigest()


def cell_path(model: str, backend: str, scheme: Scheme, source: str) -> Path:
    """Where the cell's JSON lies."""
    made_from = json.dumps([source, tool_versions(), CALIBRATION, VERIFICATION, SEEDS], sort_keys=True)
    key = hashlib.sha256(made_from.encode()).hexdigest()[:12]
    return CACHE / f"{model}.{backend}.{scheme}.{key}.json"


def fill(model: str, backend: str, schemes: Sequence[Scheme], source: str) -> None:
    """Convert one model by one backend to these schemes, and write a cell for each."""
    zoo = ZOO[model]
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        try:
            outcome = convert_model(
                zoo.build(),
                zoo.example_inputs,
                name=model,
                targets=[backend],
                schemes=schemes,
                output_dir=Path(folder),
                calibration=zoo.samples(CALIBRATION, SEEDS[0]),
                verification=zoo.samples(VERIFICATION, SEEDS[1]),
                options=ConversionOptions(input_layouts=zoo.input_layouts, timeout_seconds=TIMEOUT_SECONDS),
            )
            cells = {a.passport.scheme: converted_cell(a) for a in outcome.artifacts}
            cells.update({f.scheme: refused_cell(f.error) for f in outcome.failures})
            if backend not in UNTIMED:
                add_times({s: cells[s] for s in cells}, outcome.artifacts, zoo.samples(1, SEEDS[1])[0])
        except EdgekitError as e:
            cells = {scheme: refused_cell(e) for scheme in schemes}
        except Exception:  # noqa: BLE001 - what should not be is shown, and the run goes on
            cells = {scheme: {"kind": "bug", "reason": traceback.format_exc()[-1500:]} for scheme in schemes}
    for scheme in schemes:
        write_cell(cell_path(model, backend, scheme, source), cells.get(scheme) or lost_cell(scheme))


def lost_cell(scheme: Scheme) -> Cell:
    return {"kind": "bug", "reason": f"neither an artifact nor a failure for {scheme}"}


def write_cell(path: Path, cell: Cell) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_text(json.dumps(cell, indent=1))
    partial.replace(path)


def converted_cell(artifact: Artifact) -> Cell:
    """What the passport says that the table shows."""
    passport = artifact.passport
    fidelity = passport.fidelity
    outputs = fidelity.outputs if fidelity else ()
    scores = [output.sqnr_db for output in outputs if output.sqnr_db is not None]
    agreements = [o.agreement for o in outputs if o.sqnr_db is None and not o.exact and o.agreement is not None]
    return {
        "kind": "converted",
        "sqnr_db": min(scores) if scores else None,
        "exact": bool(outputs) and all(output.exact for output in outputs),
        "agreement": min(agreements) if agreements else None,
        "size_bytes": passport.size_bytes,
        "left_float": len(passport.unquantized_ops),
        "transposes": passport.transposes,
        "boundaries": passport.boundaries,
        "warnings": list(passport.warnings),
        "arena_bytes": passport.micro.arena_bytes if passport.micro else None,
        "seconds": passport.conversion_seconds,
    }


def refused_cell(error: EdgekitError) -> Cell:
    """The kind of error and its message; a ConversionError is a toolchain's failure, not edgekit's refusal."""
    problems = getattr(error, "problems", ())
    reason = "; ".join(str(problem) for problem in problems) or str(error)
    if any(name in reason for name in INTERNAL):
        return {"kind": "bug", "reason": reason}
    return {"kind": "refused", "code": type(error).__name__, "reason": reason, "hint": error.hint}


def add_times(cells: dict[Scheme, Cell], artifacts: Sequence[Artifact], sample: tuple[Any, ...]) -> None:
    """Latency into each cell, and its ratio to fp32's, all artifacts taken in turns."""
    if not artifacts:
        return
    times = host_timing.measure([artifact.folder for artifact in artifacts], sample)
    by_scheme = {a.passport.scheme: times[str(a.folder)] for a in artifacts}
    for scheme, raw in by_scheme.items():
        cells[scheme].update(host_timing.summary({"": raw})[""])
        if Scheme.FP32 in by_scheme:
            cells[scheme]["of_fp32"] = host_timing.disagreement(raw, by_scheme[Scheme.FP32])


def shown(cell: Cell) -> str:
    """One cell of the table."""
    if cell["kind"] == "bug":
        return f"**BUG** {cell['reason'].strip().splitlines()[-1][:120]}"
    if cell["kind"] == "refused":
        return "—"
    parts = ["exact" if cell["exact"] else told(cell), f"{cell['size_bytes'] / 1024:.1f} KB"]
    if "median_ms" in cell:
        parts.append(f"{cell['median_ms']:.3f} ms")
    if "of_fp32" in cell:
        medians, least, is_noisy = cell["of_fp32"]
        if min(medians, least) > SLOWER:
            parts.append(f"**slower than fp32: {medians:.1f}x**")
        elif is_noisy:
            parts.append("(noisy)")
    if cell["arena_bytes"]:
        parts.append(f"arena {cell['arena_bytes'] / 1024:.1f} KB")
    if cell["left_float"]:
        parts.append(f"{cell['left_float']} float")
    if cell["transposes"]:
        parts.append(f"{cell['transposes']} transposes")
    return ", ".join(parts)


def told(cell: Cell) -> str:
    if cell["sqnr_db"] is not None:
        return f"{cell['sqnr_db']:.1f} dB"
    return f"{cell['agreement']:.0%} agree" if cell["agreement"] is not None else "not judged"


def one_line(text: str, limit: int = 260) -> str:
    line = " ".join(text.split()).replace("|", "\\|").replace(str(ROOT) + "/", "")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def table(backend: str, models: Sequence[str], schemes: Sequence[Scheme], source: str) -> list[str]:
    """The lines of one backend: its table, and the reasons below it."""
    cells = {(m, s): json.loads(cell_path(m, backend, s, source).read_text()) for m in models for s in schemes}
    everywhere = [s for s in schemes if len({cells[m, s].get("reason") for m in models} - {None}) == 1]
    refused = [s for s in everywhere if all(cells[m, s]["kind"] == "refused" for m in models)]
    kept = [s for s in schemes if s not in refused or len(models) == 1]
    lines = [f"\n## {backend}\n", f"| model | {' | '.join(kept)} |", "|---" * (len(kept) + 1) + "|"]
    lines += [f"| {m} | {' | '.join(shown(cells[m, s]) for s in kept)} |" for m in models]
    reasons: dict[tuple[str, str], list[str]] = {}
    for (model, scheme), cell in cells.items():
        if cell["kind"] == "refused" and scheme in kept:
            reasons.setdefault((model, f"{cell['code']}: {cell['reason']}"), []).append(scheme)
    lines += ["", *(f"- every model, {s}: {one_line(cells[models[0], s]['reason'])}" for s in refused if s not in kept)]
    lines += [f"- {model}, {', '.join(which)}: {one_line(why)}" for (model, why), which in reasons.items()]
    return lines


def header(arguments: argparse.Namespace) -> list[str]:
    facts = host_facts()
    versions = ", ".join(f"{name} {version}" for name, version in tool_versions().items())
    return [
        "# What converts, how well, and what does not\n",
        f"`{' '.join(['python', 'scripts/conversion_matrix.py', *sys.argv[1:]])}` on "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {facts.cpu_model}, {facts.cores} cores, {facts.os}, Python "
        f"{facts.python}, load {facts.load_average_1m} at the end.",
        f"{versions}.\n",
        "The models are those of tests/support/zoo.py: one of every kind, small, seeded random weights. A cell: the "
        f"lowest SQNR over the outputs against PyTorch on {VERIFICATION} held-out inputs (seed {SEEDS[1]}; "
        f"{CALIBRATION} others, seed {SEEDS[0]}, calibrated it), file size, median latency on this host with one "
        "thread, ops left in float, transposes. Schemes of a model were timed in turns. Latency is of this host's "
        "processor, and of networks so small that calling the runtime is most of it; it is no phone's. `—` is an "
        "error that says why, listed below each table.",
    ]


def missing_cells(
    models: Sequence[str], backends: Sequence[str], schemes: Sequence[Scheme], source: str
) -> list[tuple[str, str]]:
    """(model, backend) with a cell that has to be made. One cell missing makes them all again: they are timed
    together."""
    return [(m, b) for b in backends for m in models if not all(cell_path(m, b, s, source).is_file() for s in schemes)]


def chosen(text: str | None, known: Sequence[str], what: str) -> list[str]:
    names = text.split(",") if text else list(known)
    unknown = sorted(set(names) - set(known))
    if unknown:
        sys.exit(f"unknown {what} {', '.join(unknown)}; known: {', '.join(known)}")
    return names


def main() -> int:
    """Fill the missing cells, write the page; the exit status says whether a cell is a bug."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="comma-separated; all without it")
    parser.add_argument("--backends", help="comma-separated; all that are registered without it")
    parser.add_argument("--schemes", help="comma-separated; all without it")
    parser.add_argument("--jobs", type=int, default=1, help="more spoil the latencies")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "conversion-matrix.md")
    arguments = parser.parse_args()
    models = chosen(arguments.models, list(ZOO), "model")
    backends = chosen(arguments.backends, [b for b in BACKENDS if b in CONVERTERS.names()], "backend")
    schemes = [Scheme(name) for name in chosen(arguments.schemes, [s.value for s in Scheme], "scheme")]
    converters = ROOT / "edgekit" / "converters"
    source = source_hash([*converters.rglob("*.py"), *(ROOT / "tests" / "support").glob("zoo*.py")])
    waiting = missing_cells(models, backends, schemes, source)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = [(m, b, pool.submit(fill, m, b, schemes, source)) for m, b in waiting]
        for index, (model, backend, future) in enumerate(futures, 1):
            future.result()
            print(f"{index}/{len(futures)} {model} {backend}", file=sys.stderr, flush=True)
    lines = header(arguments)
    for backend in backends:
        lines += table(backend, models, schemes, source)
    arguments.output.write_text("\n".join(lines) + "\n")
    print(arguments.output)
    bugs = [
        (m, b, s.value)
        for m in models
        for b in backends
        for s in schemes
        if json.loads(cell_path(m, b, s, source).read_text())["kind"] == "bug"
    ]
    for bug in bugs:
        print("BUG", *bug, file=sys.stderr)
    return 1 if bugs else 0


if __name__ == "__main__":
    sys.exit(main())
