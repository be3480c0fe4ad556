"""On this host: what the runner adds to the runtime's own call, and how well a measurement repeats."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from support.onnx_stack import onnx_stack
from support.tiny_models import make_tiny_models

from device_bench.part import Part, Target
from edgekit.api.files import open_artifact
from edgekit.artifact import Artifact, Format
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.registry import device_lock, open_device
from edgekit.benchmarks.harness import measure
from edgekit.benchmarks.inputs import InputSet, random_inputs
from edgekit.benchmarks.journal import MemoryStore
from edgekit.benchmarks.stability import judge_stability
from edgekit.benchmarks.stats import summarize
from edgekit.benchmarks.values import Plan, Run

QUIET = Plan(cold_starts=0, min_samples=500, min_seconds=1.0, memory=False, accuracy=False)
LIMITS_NS = {Format.TFLITE: 1000, Format.ONNX: 1500}
NAMES = {Format.TFLITE: "LiteRT", Format.ONNX: "ONNX Runtime"}
SPREAD = 0.05

# One inference as an app would have it: input set, run, output read, nothing else; a sample is 100 of them timed
# together, so that the clock's own cost is a hundredth.
BARE = r"""
import json, sys, time
import numpy as np
kind, model, inputs, seconds = sys.argv[1:]
data = [np.ascontiguousarray(x[None]) for x in np.load(inputs)]
if kind == "tflite":
    from ai_edge_litert.interpreter import Interpreter
    it = Interpreter(model_path=model, num_threads=1)
    it.allocate_tensors()
    i, o = it.get_input_details()[0]["index"], it.get_output_details()[0]["index"]
    def call(x):
        it.set_tensor(i, x)
        it.invoke()
        return it.get_tensor(o)
else:
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    out = [x.name for x in session.get_outputs()]
    name = session.get_inputs()[0].name
    bound = []
    for x in data:
        b = session.io_binding()
        b.bind_cpu_input(name, x)
        for n in out:
            b.bind_output(n)
        bound.append(b)
    data = bound
    call = session.run_with_iobinding
now = time.perf_counter_ns
end = now() + int(float(seconds) * 1e9)
samples, n = [], len(data)
for x in data * 20:
    call(x)
while now() < end:
    began = now()
    for k in range(100):
        call(data[k % n])
    samples.append((now() - began) // 100)
print(json.dumps(samples))
"""


def runner_cost(rounds: int, folder: Path) -> Part:
    """p10 as the runner reports it less p10 of the bare call, by turns, in fresh processes."""
    models = make_tiny_models(folder)
    data = folder / "inputs.npy"
    np.save(data, models.inputs.arrays[0])
    table = [
        ["runtime", "bare call, p10 µs", "runner, p10 µs", "runner's own, µs (median of rounds)", "lowest to highest"]
    ]
    raw: dict[str, Any] = {}
    targets = []
    for format, limit in LIMITS_NS.items():
        artifact = models.artifacts[format]
        bare, ours = [], []
        for number in range(rounds):
            for is_bare in (True, False) if number % 2 == 0 else (False, True):
                if is_bare:
                    bare.append(_bare(artifact, data))
                else:
                    ours.append(summarize(_measured(artifact, models.inputs, QUIET, folder).latency_ns).p10_ns)
        own = [o - b for o, b in zip(ours, bare, strict=True)]
        middle = statistics.median(own)
        raw[format.value] = {"bare_p10_ns": bare, "runner_p10_ns": ours}
        shown = [f"{statistics.median(v) / 1e3:.2f}" for v in (bare, ours)]
        table.append([NAMES[format], *shown, f"{middle / 1e3:.2f}", f"{min(own) / 1e3:.2f} to {max(own) / 1e3:.2f}"])
        asked = f"{NAMES[format]}: at most {limit / 1e3:g} µs"
        targets.append(Target(asked=asked, found=f"{middle / 1e3:.2f} µs", met=middle <= limit))
    return Part(
        title="The runner's own cost",
        method=f"A network of four layers; each of {rounds} rounds measures it by `measure` on local and by a bare "
        "loop (input set, run, output read; ONNX Runtime by I/O binding), each in a fresh process, by turns. Both at "
        "their 10 % point, which load moves least; the runner's own is the median of the rounds' differences.",
        table=table,
        targets=targets,
        raw=raw,
    )


def _bare(artifact: Artifact, data: Path) -> int:
    argv = [sys.executable, "-c", BARE, artifact.passport.format.value, str(artifact.path), str(data), "1.0"]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return summarize(json.loads(said.splitlines()[-1])).p10_ns


def _measured(artifact: Artifact, inputs: InputSet, plan: Plan, folder: Path) -> Run:
    store, work = MemoryStore(folder / "outputs"), folder / "work"
    with open_device("local") as device:
        info = device.probe(Deadline.after(30))
        with device_lock(info, Deadline.after(60)):
            run = measure(device, info, artifact, inputs, plan, store=store, work_dir=work, fresh=True)
    if run.status != "ok":
        raise RuntimeError(f"local: {run.status}: {run.error}")
    return run


def repeatability(rounds: int, folder: Path) -> Part:
    """The same artifact measured again and again on this host by the default plan's warm pass."""
    artifact = open_artifact(onnx_stack(folder / "stack.onnx", layers=24, width=512))
    inputs = random_inputs(artifact.passport, seed=0)
    plan = Plan(cold_starts=0, memory=False, accuracy=False)
    runs = [_measured(artifact, inputs, plan, folder) for _ in range(rounds)]
    summaries = [summarize(run.latency_ns) for run in runs]
    noisy = sum(judge_stability(run).verdict == "NOISY" for run in runs)
    table = [["", "lowest, µs", "highest, µs", "spread", "verdict"]]
    spreads = {}
    for name in ("min", "p10", "p50", "p90"):
        values = [getattr(s, f"{name}_ns") for s in summaries]
        spreads[name] = max(values) / min(values) - 1
        verdict = "NOISY" if spreads[name] > SPREAD else "steady"
        table.append([name, f"{min(values) / 1e3:.1f}", f"{max(values) / 1e3:.1f}", f"{spreads[name]:.1%}", verdict])
    found = ", ".join(f"{name} {value:.1%}" for name, value in spreads.items())
    return Part(
        title="Repeatability",
        method=f"One ONNX file (24 products of 512 by 512), {rounds} times on local by the default warm pass; the "
        f"spread is highest over lowest less one, NOISY over {SPREAD:.0%}.",
        table=table,
        targets=[Target(asked="a spread of p50 within 5 %", found=found, met=spreads["p50"] <= SPREAD)],
        raw={"summaries": [s.model_dump() for s in summaries], "latency_ns": [list(r.latency_ns) for r in runs]},
        notes=[f"{noisy} of {rounds} runs are NOISY by themselves; loads {_loads(runs)}"],
    )


def _loads(runs: list[Run]) -> str:
    found = [r.before.load_average_1m for r in runs if r.before and r.before.load_average_1m is not None]
    return f"{min(found):.1f} to {max(found):.1f}" if found else "not told"
