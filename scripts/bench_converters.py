"""Conversions against the backends' own APIs: what edgekit costs on top, and what its files are worth.

    make bench-converters [DATA=FOLDER]
    python scripts/bench_converters.py --parts overhead,quality,parallel --networks resnet18 --backends onnx

Networks are trained for a few hundred steps on real images (bench_networks.py) and kept in the cache. Writes
docs/benchmarks/converters.md, and every raw number to converters.json beside it, after each step: a part that is not
asked for keeps its last figures. Linux.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_networks
import host_timing
import numpy as np
import plain_routes
import torch
from child_cost import run_measured

from edgekit.artifact import Scheme
from edgekit.converters.conversion import ConversionOptions, convert_model
from edgekit.pipeline.facts import host_facts, tool_versions

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("tflite", "executorch", "onnx")
CALIBRATION, VERIFICATION, HELD_OUT = 64, 64, 500
OURS = ("fp32", "edgekit")
SPEED_UP_GOALS = {"resnet18": 3.8, "mobilenet_v2": 2.1}
Raw = dict[str, Any]


class Bench:
    """What was asked for, and the figures so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.networks: list[str] = arguments.networks.split(",")
        self.backends: list[str] = arguments.backends.split(",")
        self.runs: int = arguments.runs
        self.data: Path | None = arguments.data
        self.output: Path = arguments.output
        self.images = bench_networks.load_images(self.data)
        self._json = self.output.with_suffix(".json")
        self.raw: Raw = json.loads(self._json.read_text()) if self._json.is_file() else {}

    def record(self, part: str, key: str, value: Any) -> None:
        """Keep figures under `part`, write both files."""
        machine = host_facts()
        section = self.raw.setdefault(part, {"cells": {}})
        section["cells"][f"{self.images.name} {key}"] = value
        section["command"] = "python scripts/bench_converters.py " + " ".join(sys.argv[1:])
        section["when"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        section["machine"] = f"{machine.cpu_model}, {machine.cores} cores, {machine.os}, Python {machine.python}"
        section["load"] = machine.load_average_1m
        section["tools"] = tool_versions()
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._json.write_text(json.dumps(self.raw, indent=1) + "\n")
        self.output.write_text(page(self.raw))
        print(part, key, file=sys.stderr, flush=True)

    def parameters(self) -> list[str]:
        return ["--data", str(self.data)] if self.data else []

    def edgekit(self, network: str, backends: str, schemes: str, folder: str, jobs: int) -> list[str]:
        """The command line of `edgekit convert` on one network."""
        data = ["--param", f"data={self.data}"] if self.data else []
        return [
            *(sys.executable, "-m", "edgekit", "convert", str(ROOT / "scripts" / "bench_workload.py") + ":workload"),
            *("--param", f"network={network}", *data, "--to", backends, "--scheme", schemes, "--ranges", "minmax"),
            *("--calibration", str(CALIBRATION), "--verification", str(VERIFICATION), "--jobs", str(jobs)),
            *("-o", folder),
        ]


def overhead(bench: Bench) -> None:
    """`edgekit convert` and the plain script, in turns: one network to int8 with min/max ranges, checked afterwards."""
    for network in bench.networks:
        for backend in bench.backends:
            plain: list[dict[str, float]] = []
            ours: list[dict[str, float]] = []
            for run in range(bench.runs):
                with tempfile.TemporaryDirectory() as folder:
                    script = [
                        *(sys.executable, str(ROOT / "scripts" / "plain_routes.py"), "--network", network),
                        *("--backend", backend, "--output", f"{folder}/model{plain_routes.SUFFIX[backend]}"),
                        *("--calibration", str(CALIBRATION), "--verification", str(VERIFICATION), *bench.parameters()),
                    ]
                    command = bench.edgekit(network, backend, "static_w8a8", folder, 1)
                    pair = [(plain, script), (ours, command)]
                    for results, argv in pair if run % 2 == 0 else pair[::-1]:
                        results.append(run_measured(argv).as_dict())
            bench.record("overhead", f"{network} {backend}", {"plain": plain, "edgekit": ours})


def parallel(bench: Bench) -> None:
    """Three formats, fp32 and int8, by `--jobs 2` and by `--jobs 1`, in turns."""
    for network in bench.networks:
        times: dict[str, list[dict[str, float]]] = {"1": [], "2": []}
        for run in range(bench.runs):
            for jobs in (1, 2) if run % 2 == 0 else (2, 1):
                with tempfile.TemporaryDirectory() as folder:
                    command = bench.edgekit(network, ",".join(BACKENDS), "fp32,static_w8a8", folder, jobs)
                    times[str(jobs)].append(run_measured(command).as_dict())
        bench.record("parallel", network, times)


def quality(bench: Bench) -> None:
    """SQNR, size and latency of our files and of every known route's, and int8 against fp32."""
    for network in bench.networks:
        model = bench_networks.trained(network, bench.images)
        held_out = bench.images.samples(0, HELD_OUT, held_out=True)
        with torch.no_grad():
            reference = np.concatenate([model(torch.from_numpy(sample[0])).numpy() for sample in held_out])
        for backend in bench.backends:
            with tempfile.TemporaryDirectory() as folder:
                files, refused = _files(bench, network, model, backend, Path(folder))
                times = host_timing.measure(list(files.values()), held_out[0])
                cell = {
                    name: {
                        "sqnr_db": plain_routes.sqnr(reference, plain_routes.answers(_model_of(path), held_out)),
                        "size_bytes": _model_of(path).stat().st_size,
                        "times_ns": times[str(path)],
                    }
                    for name, path in files.items()
                }
            bench.record("quality", f"{network} {backend}", {"files": cell, "refused": refused})


def _files(
    bench: Bench, network: str, model: torch.nn.Module, backend: str, folder: Path
) -> tuple[dict[str, Path], dict[str, str]]:
    """Ours (`fp32`, `edgekit`) and every route's file by name, and what failed with its reason."""
    example, samples = (torch.zeros(1, 3, 32, 32),), bench.images.samples(0, CALIBRATION)
    outcome = convert_model(
        model,
        example,
        name=network,
        targets=[backend],
        schemes=[Scheme.FP32, Scheme.STATIC_W8A8],
        output_dir=folder / "edgekit",
        calibration=samples,
        verification=bench.images.samples(HELD_OUT, VERIFICATION, held_out=True),
        options=ConversionOptions(input_layouts=("NCHW",)),
    )
    outcome.raise_failures()
    ours = {"fp32": Scheme.FP32, "edgekit": Scheme.STATIC_W8A8}
    by_scheme = {artifact.passport.scheme: artifact.folder for artifact in outcome.artifacts}
    files, refused = {name: by_scheme[scheme] for name, scheme in ours.items()}, {}
    for route, write in plain_routes.ROUTES[backend].items():
        path = folder / f"{route}{plain_routes.SUFFIX[backend]}"
        try:
            write(model, example, samples, path)
            files[route] = path
        except Exception as e:  # noqa: BLE001 - another tool's failure is a result here, shown in the table
            refused[route] = f"{type(e).__name__}: {str(e)[:200]}"
    return files, refused


def _model_of(path: Path) -> Path:
    return next(path.glob("model.*")) if path.is_dir() else path


def page(raw: Mapping[str, Raw]) -> str:
    """The Markdown page of all figures."""
    sections: dict[str, tuple[str, Callable[[Mapping[str, Any]], list[str]]]] = {
        "overhead": ("What edgekit adds to a plain script", overhead_table),
        "quality": ("What the files are worth, against every known route", quality_table),
        "speed": ("int8 over fp32, one thread, this host", speed_table),
        "parallel": ("Three formats by two jobs", parallel_table),
    }
    lines = ["# Converters, measured\n", "Written by scripts/bench_converters.py; raw numbers in converters.json.\n"]
    data = sorted({key.split()[0] for part in raw.values() for key in part["cells"]})
    lines.append(f"Images: {', '.join(data)}. {'' if 'cifar10' in data else 'CIFAR-10 was not given (--data FOLDER).'}")
    for name, (title, table) in sections.items():
        part = raw.get("quality" if name == "speed" else name)
        lines.append(f"\n## {title}\n")
        if part is None:
            lines.append("Not measured.")
            continue
        lines.append(f"`{part['command']}`, {part['when']}, {part['machine']}, load {part['load']} at the end.\n")
        lines += table(part["cells"])
    versions = next((part["tools"] for part in raw.values()), {})
    lines.append("\n" + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    return "\n".join(lines) + "\n"


def _medians(runs: Sequence[Mapping[str, float]], field: str) -> tuple[float, float]:
    values = [run[field] for run in runs]
    return statistics.median(values), min(values)


def _verdict(holds: bool, is_noisy: bool = False) -> str:
    return "noisy: median and least disagree by more than 10 %" if is_noisy else "reached" if holds else "**missed**"


def overhead_table(cells: Mapping[str, Any]) -> list[str]:
    """Goal: 1.10 times the script's time and 1 s, and 1.10 times its memory."""
    lines = [
        "Same work in both: load the network, export, lower, calibrate min/max on "
        f"{CALIBRATION} images, quantize, write, run {VERIFICATION} held-out images in the runtime and in PyTorch. "
        "Goal: time at most 1.10x + 1 s, memory of the largest process at most 1.10x. Median (least).\n",
        "| network, backend | script s | edgekit s | over 1.10x + 1 s | time | largest process | whole tree (PSS) | "
        "memory |",
        "|---" * 8 + "|",
    ]
    for key, cell in cells.items():
        (plain, plain_least), (ours, ours_least) = (_medians(cell[who], "seconds") for who in ("plain", "edgekit"))
        memory = {
            field: _medians(cell["edgekit"], field)[0] / _medians(cell["plain"], field)[0]
            for field in ("largest_rss_bytes", "tree_pss_bytes")
        }
        excess = ours - (1.1 * plain + 1)
        is_noisy = abs((ours / plain) / (ours_least / plain_least) - 1) > 0.10
        lines.append(
            f"| {key} | {plain:.1f} ({plain_least:.1f}) | {ours:.1f} ({ours_least:.1f}) | {excess:+.1f} s | "
            f"{_verdict(excess <= 0, is_noisy)} | {memory['largest_rss_bytes']:.2f}x | "
            f"{memory['tree_pss_bytes']:.2f}x | {_verdict(memory['largest_rss_bytes'] <= 1.1)} |"
        )
    return lines


def quality_table(cells: Mapping[str, Any]) -> list[str]:
    """Goal: the best route's SQNR, size within 1 %, latency within 3 %."""
    lines = [
        f"SQNR against PyTorch on {HELD_OUT} held-out images, the same {CALIBRATION} images calibrated each file. "
        "Latency: all files of a row group in turns, one thread, pinned; median (least) ms. Ours against the route "
        "with the best SQNR: no lower, size within 1 %, latency within 3 %.\n",
        "| network, backend | file | SQNR dB | bytes | ms | against the best route |",
        "|---" * 6 + "|",
    ]
    for key, cell in cells.items():
        files = cell["files"]
        peers = {name: file for name, file in files.items() if name not in OURS}
        best = max(peers, key=lambda name: peers[name]["sqnr_db"], default=None)
        for name, file in files.items():
            raw = file["times_ns"]
            told = _against(files["edgekit"], peers[best], best) if name == "edgekit" and best else ""
            lines.append(
                f"| {key} | {name} | {file['sqnr_db']:.2f} | {file['size_bytes']:,} | "
                f"{statistics.median(raw) / 1e6:.3f} ({min(raw) / 1e6:.3f}) | {told} |"
            )
        lines += [f"| {key} | {name} | — | | | {why} |" for name, why in cell["refused"].items()]
    return lines


def _against(ours: Mapping[str, Any], best: Mapping[str, Any], name: str) -> str:
    gain = ours["sqnr_db"] - best["sqnr_db"]
    size = ours["size_bytes"] / best["size_bytes"]
    medians, _, is_noisy = host_timing.disagreement(ours["times_ns"], best["times_ns"])
    return (
        f"{name}: {gain:+.2f} dB {_verdict(gain >= 0)}; size {size:.3f}x {_verdict(size <= 1.01)}; "
        f"latency {medians:.3f}x {_verdict(medians <= 1.03, is_noisy)}"
    )


def speed_table(cells: Mapping[str, Any]) -> list[str]:
    """Goal: 3.8 times (ResNet-18-type) and 2.1 times (MobileNetV2-type) as fast as fp32, as peers were on a Zen 4
    core; what they reach on this one is beside it."""
    lines = [
        "The goals are what the backends' own int8 files reached on a Zen 4 core (VNNI: four times fp32's rate). "
        "Kernels are the runtimes'; on another processor the peers' column is what there is to reach.\n",
        "| network, backend | ratio of medians | of least | fastest peer's file | goal | |",
        "|---" * 6 + "|",
    ]
    for key, cell in cells.items():
        times = {name: file["times_ns"] for name, file in cell["files"].items()}
        medians, least, is_noisy = host_timing.disagreement(times["fp32"], times["edgekit"])
        peers = [host_timing.disagreement(times["fp32"], raw)[0] for name, raw in times.items() if name not in OURS]
        goal = SPEED_UP_GOALS.get(key.split()[1])
        told = _verdict(medians >= goal, is_noisy) if goal else ""
        if goal and medians < goal and peers and max(peers) < goal:
            told += "; no peer reaches it on this core either"
        told += " **slower than fp32**" if max(medians, least) < 1 else ""
        peer = f"{max(peers):.2f}x" if peers else "—"
        lines.append(f"| {key} | {medians:.2f}x | {least:.2f}x | {peer} | {f'{goal}x' if goal else ''} | {told} |")
    return lines


def parallel_table(cells: Mapping[str, Any]) -> list[str]:
    """Goal: less time than in sequence."""
    lines = ["| network | --jobs 1, s | --jobs 2, s | ratio | |", "|---" * 5 + "|"]
    for key, times in cells.items():
        (one, one_least), (two, two_least) = (_medians(times[jobs], "seconds") for jobs in ("1", "2"))
        is_noisy = abs((two / one) / (two_least / one_least) - 1) > 0.10
        lines.append(
            f"| {key} | {one:.1f} ({one_least:.1f}) | {two:.1f} ({two_least:.1f}) | {two / one:.2f}x | "
            f"{_verdict(two < one, is_noisy)} |"
        )
    return lines


PARTS: dict[str, Callable[[Bench], None]] = {"quality": quality, "overhead": overhead, "parallel": parallel}


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--networks", default=",".join(bench_networks.NETWORKS))
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs of overhead and parallel")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 as train.parquet and test.parquet")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks" / "converters.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.data is None:
        print("no --data: MNIST-5k only", file=sys.stderr)
    bench = Bench(arguments)
    for network in bench.networks:
        bench_networks.trained(network, bench.images)  # before anything is timed
    for part in arguments.parts.split(","):
        PARTS[part](bench)
    print(arguments.output)


if __name__ == "__main__":
    main()
