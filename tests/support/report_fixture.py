"""A report for tests of the views. TEST DATA: every number is drawn from a seeded generator, none was measured.

`example_report()` has what a full demo run has: seven artifacts on two devices (one emulated), a row that
failed, flags, warnings, a skipped device, gates of each verdict, worst inputs with pictures.
"""

from __future__ import annotations

import base64
import hashlib
import random
import struct
import zlib
from statistics import fmean, median, pstdev
from typing import Any

from edgekit.artifact import (
    Delegate,
    Effect,
    Fidelity,
    Format,
    LineageStep,
    OpCount,
    OutputFidelity,
    Passport,
    QuantizationParams,
    Scheme,
    TensorSpec,
    UnquantizedOp,
)
from edgekit.benchmarks.values import (
    ColdStart,
    Conditions,
    DeviceInfo,
    Memory,
    Plan,
    Run,
    RunStatus,
    RuntimeFacts,
)
from edgekit.report.model import (
    Baseline,
    DataFacts,
    GateResult,
    HostFacts,
    LatencySummary,
    Proportion,
    Report,
    Row,
    SkippedDevice,
    StageFacts,
    Verdict,
    Warned,
    WorstInput,
)

__all__ = ["example_report", "png_picture", "with_every_text"]

EVALUATED = 10_000
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot")

# name, format, scheme, bytes, latency in µs on the host, correct of EVALUATED, SQNR in dB (None: equal to the bit)
_ARTIFACTS = (
    ("teacher.fp32.tflite", Format.TFLITE, Scheme.FP32, 1_741_392, 921.0, 9268, 118.4),
    ("student.fp32.tflite", Format.TFLITE, Scheme.FP32, 418_344, 243.0, 9203, 121.0),
    ("student.static_w8a8.tflite", Format.TFLITE, Scheme.STATIC_W8A8, 118_104, 94.0, 9187, 31.2),
    ("student.fp32.pte", Format.EXECUTORCH, Scheme.FP32, 420_880, 231.0, 9203, None),
    ("student.static_w8a8.pte", Format.EXECUTORCH, Scheme.STATIC_W8A8, 121_472, 88.0, 9171, 29.4),
    ("student.fp32.onnx", Format.ONNX, Scheme.FP32, 417_021, 262.0, 9203, 119.7),
    ("student.static_w8a8.onnx", Format.ONNX, Scheme.STATIC_W8A8, 129_311, 129.0, 9132, 27.8),
)

_HOST = DeviceInfo(
    spec="local",
    kind="local",
    serial="a3f1c0de5b7e4d0f",
    model="KVM",
    cpu_model="Intel(R) Xeon(R) Processor @ 2.60GHz",
    cpu_features=("avx2", "avx512f", "avx512_vnni"),
    cores=2,
    ram_bytes=8 << 30,
    os="Debian GNU/Linux 12 (bookworm)",
    kernel="6.1.0-18-amd64",
    abi="x86_64",
    libc="glibc 2.36",
    python="3.11.2",
    shares_host_cpu=True,
)
_BOARD = DeviceInfo(
    spec="board:arm64",
    kind="adb",
    serial="EDGEKITARM64",
    model="virtual board",
    cpu_model="Cortex-A76",
    cpu_features=("asimd", "asimddp"),
    cores=2,
    ram_bytes=8 << 30,
    os="Debian GNU/Linux 13 (trixie)",
    abi="aarch64",
    libc="glibc 2.41",
    python="3.13.5",
    emulated=True,
    emulation="arm64 code translated by qemu-user on an x86_64 host",
)


def png_picture(seed: int, side: int = 28) -> str:
    """Base64 of a small grey PNG, a different pattern for each seed."""
    rng = random.Random(seed)
    a, b = rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5)
    lines = b"".join(
        b"\0" + bytes(int(127 + 120 * ((a * x * y + b * (x - y)) % 2 - 1)) for x in range(side)) for y in range(side)
    )

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


def _wilson(hits: int, total: int) -> Proportion:
    z, p = 1.959964, hits / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (p * (1 - p) / total + z * z / (4 * total * total)) ** 0.5
    return Proportion(hits=hits, total=total, value=p, low=middle - half, high=middle + half)


def _latencies(rng: random.Random, base_us: float, samples: int) -> tuple[int, ...]:
    """Log-normal with a second mode and a slow drift, nanoseconds."""
    found = []
    for i in range(samples):
        drift = 1 + 0.06 * i / samples
        mode = 1.35 if rng.random() < 0.06 else 1.0
        found.append(int(base_us * 1000 * drift * mode * rng.lognormvariate(0, 0.04)))
    return tuple(found)


def _summary(samples: tuple[int, ...]) -> LatencySummary:
    ordered = sorted(samples)

    def at(p: float) -> int:
        return ordered[min(len(ordered) - 1, int(p * len(ordered)))]

    return LatencySummary(
        samples=len(ordered),
        min_ns=ordered[0],
        p10_ns=at(0.10),
        p50_ns=int(median(ordered)),
        p90_ns=at(0.90),
        p99_ns=at(0.99),
        mean_ns=int(fmean(ordered)),
        stdev_ns=int(pstdev(ordered)),
        p50_low_ns=at(0.49),
        p50_high_ns=at(0.51),
    )


def _passport(index: int) -> Passport:
    name, kind, scheme, size, _, _, sqnr = _ARTIFACTS[index]
    is_int8 = scheme is Scheme.STATIC_W8A8
    quantization = QuantizationParams(scale=(0.0156863,), zero_point=(-1,)) if is_int8 else None
    dtype = "int8" if is_int8 and kind is Format.TFLITE else "float32"
    compute = "int8" if is_int8 else "float32"
    ops = [OpCount(name=n, dtype=compute, count=c, version=3) for n, c in (("CONV_2D", 9), ("ADD", 3), ("MEAN", 1))]
    is_onnx_int8 = is_int8 and kind is Format.ONNX
    if is_onnx_int8:
        ops += [
            OpCount(name="QuantizeLinear", dtype="mixed", count=14),
            OpCount(name="Softmax", dtype="float32", count=1),
        ]
    return Passport(
        name=name,
        format=kind,
        scheme=scheme,
        file=f"model{kind.suffix}",
        sha256=hashlib.sha256(name.encode()).hexdigest(),
        size_bytes=size,
        inputs=(TensorSpec(name="image", shape=(1, 1, 28, 28), dtype=dtype, layout="NCHW", quantization=quantization),),
        outputs=(TensorSpec(name="logits", shape=(1, 10), dtype=dtype, quantization=quantization),),
        ops=tuple(ops),
        unquantized_ops=(UnquantizedOp(op="Softmax", where="node_softmax", reason="no QDQ kernel for it"),)
        if is_onnx_int8
        else (),
        delegates=(Delegate(name="XNNPACK", nodes=12, total=13),) if kind is not Format.ONNX else (),
        parameters=431_080 if index == 0 else 102_346,
        macs=14_812_160 if index == 0 else 3_204_096,
        fidelity=Fidelity(
            samples=64,
            source="held-out",
            outputs=(
                OutputFidelity(
                    name="logits", sqnr_db=sqnr, exact=sqnr is None, cosine=0.99987, max_abs_error=0.0412, non_finite=0
                ),
            ),
            top1_agreement=0.984,
            runtime="litert 2.3.0",
        ),
        minimum_runtime={"litert": "1.0"},
        tool_versions={"torch": "2.13.0", "litert-torch": "0.10.0"},
        warnings=("BatchNorm was folded before conversion",) if index == 2 else (),
        conversion_seconds=8.2 + index,
        conversion_peak_rss_bytes=1_204_000_000,
    )


def _run(rng: random.Random, index: int, device: DeviceInfo, samples: int) -> Run:
    name, kind, _, size, base, _, _ = _ARTIFACTS[index]
    slow = 21.0 if device.emulated else 1.0
    runtime = {Format.TFLITE: "litert", Format.ONNX: "onnxruntime", Format.EXECUTORCH: "executorch"}[kind]
    baseline = 41 << 20
    return Run(
        job_key=hashlib.sha256(f"{name}{device.spec}".encode()).hexdigest(),
        attempt=1,
        status=RunStatus.OK,
        artifact_sha256=hashlib.sha256(name.encode()).hexdigest(),
        device_fingerprint=device.fingerprint(),
        plan=Plan(),
        runner_sha256="5" * 64,
        inputs_sha256="6" * 64,
        runtime=RuntimeFacts(
            name=runtime,
            version="2.3.0",
            threads=1,
            delegate="XNNPACK",
            delegate_nodes=12,
            total_nodes=13,
            python="3.11.2",
        ),
        cold_starts=tuple(
            ColdStart(import_ns=61_000_000, load_ns=2_100_000, first_inference_ns=900_000, process_ns=140_000_000)
            for _ in range(5)
        ),
        warmup_ns=_latencies(rng, base * slow * 1.3, 20),
        latency_ns=_latencies(rng, base * slow, samples),
        stopped_by="minimum reached",
        memory=Memory(
            baseline_rss_bytes=baseline,
            loaded_rss_bytes=baseline + size,
            peak_rss_bytes=baseline + 3 * size,
            pss_bytes=baseline + 2 * size,
        ),
        before=Conditions(monotonic_ns=1, load_average_1m=0.4),
        after=Conditions(monotonic_ns=2, load_average_1m=0.9),
        evaluated=EVALUATED,
        outputs_sha256="7" * 64,
        flags=("p90 is 1.3 times the median: something else ran on this machine",) if index == 5 else (),
    )


def _gates(verdict: Verdict) -> tuple[GateResult, ...]:
    return (
        GateResult(gate="accuracy_drop <= 1.0 pp", verdict=verdict, detail="drop 0.81 pp, 95 % interval 0.52 to 1.10"),
        GateResult(gate="size <= 200 KiB", verdict=Verdict.PASS, detail="115.3 KiB"),
    )


def _verdict(index: int) -> Verdict:
    return {0: Verdict.NOT_GATED, 5: Verdict.NOISY, 6: Verdict.FAIL}.get(index, Verdict.PASS)


def _worst(index: int) -> tuple[WorstInput, ...]:
    if index not in {2, 6}:
        return ()
    return tuple(
        WorstInput(
            index=317 * (i + index),
            label=CLASSES[i],
            teacher=CLASSES[i],
            artifact=CLASSES[(i + 3) % 10],
            kl=1.9 - 0.2 * i,
            image_png_base64=png_picture(i + index),
        )
        for i in range(5)
    )


def _row(rng: random.Random, index: int, device: DeviceInfo, samples: int) -> Row:
    name, kind, scheme, size, _, hits, sqnr = _ARTIFACTS[index]
    run = _run(rng, index, device, samples)
    memory = run.memory
    assert memory is not None
    cold = 64_000_000 * (14 if device.emulated else 1) + size * 4
    verdict = _verdict(index)
    return Row(
        id=f"{name}@{device.spec}",
        artifact=name,
        device=device.spec,
        is_baseline=index == 0,
        format=kind.value,
        scheme=scheme.value,
        size_bytes=size,
        status="ok",
        latency=_summary(run.latency_ns),
        cold_load_ns=cold,
        cold_process_ns=cold + 70_000_000,
        peak_rss_bytes=memory.peak_rss_bytes,
        model_rss_bytes=3 * size,
        accuracy=_wilson(hits, EVALUATED),
        agreement=_wilson(hits + 430 if index else EVALUATED, EVALUATED),
        sqnr_db=sqnr,
        sqnr_exact=sqnr is None,
        kl_to_teacher=0.0 if index == 0 else 0.021 + 0.004 * index,
        non_finite=0,
        matches_host=None if not device.emulated else index != 2,
        host_max_abs_difference=0.0 if not device.emulated or index != 2 else 0.0157,
        speedup=_ARTIFACTS[0][4] / _ARTIFACTS[index][4],
        verdict=verdict,
        gates=() if index == 0 else _gates(verdict),
        pareto=index in {0, 1, 2, 4},
        emulated=device.emulated,
        flags=run.flags,
        worst=_worst(index),
        run=run,
    )


def _failed_row(row: Row) -> Row:
    """`row` as it is when its process died on the device."""
    assert row.run is not None
    error = "killed by SIGSEGV while loading the model"
    gone = dict.fromkeys(
        (
            "latency",
            "cold_load_ns",
            "cold_process_ns",
            "peak_rss_bytes",
            "model_rss_bytes",
            "accuracy",
            "agreement",
            "sqnr_db",
            "kl_to_teacher",
            "non_finite",
            "matches_host",
            "host_max_abs_difference",
            "speedup",
        )
    )
    run = row.run.model_copy(
        update={
            "status": RunStatus.CRASHED,
            "error": error,
            "latency_ns": (),
            "warmup_ns": (),
            "cold_starts": (),
            "memory": None,
            "evaluated": None,
            "outputs_sha256": None,
            "stopped_by": None,
            "unmeasured": {"latency_ns": "the process died"},
        }
    )
    return row.model_copy(
        update=gone
        | {
            "status": "crashed",
            "error": error,
            "verdict": Verdict.FAIL,
            "pareto": False,
            "worst": (),
            "flags": (),
            "run": run,
        }
    )


def _lineage() -> tuple[LineageStep, ...]:
    teacher = Effect(parameters=431_080, macs=14_812_160, size_bytes=1_724_320, accuracy=0.9268, agreement=1.0)
    pruned = Effect(parameters=102_346, macs=3_204_096, size_bytes=409_384, accuracy=0.7114, agreement=0.7302)
    student = Effect(parameters=102_346, macs=3_204_096, size_bytes=409_384, accuracy=0.9203, agreement=0.9633)
    return (
        LineageStep(step="teacher", summary="Trained 3 epochs", seed=0, after=teacher, seconds=71.4),
        LineageStep(
            step="prune",
            summary="Half of the channels of every layer, by group L2 norm",
            options={"ratio": 0.5, "importance": "group_norm", "round_to": 8},
            seed=0,
            before=teacher,
            after=pruned,
            seconds=1.9,
        ),
        LineageStep(
            step="distil",
            summary="Response distillation, temperature 4, 2 epochs",
            options={"temperature": 4.0, "alpha": 0.9, "epochs": 2},
            seed=0,
            before=pruned,
            after=student,
            seconds=58.2,
        ),
    )


def _stages() -> tuple[StageFacts, ...]:
    names = ("data", "teacher", "prune", "distil", "convert student.static_w8a8.tflite", "benchmark local")
    done = [
        StageFacts(
            name=name,
            key=hashlib.sha256(name.encode()).hexdigest(),
            status="cached" if i < 2 else "done",
            seconds=0.02 if i < 2 else 17.3 + i,
        )
        for i, name in enumerate(names)
    ]
    key = hashlib.sha256(b"board").hexdigest()
    done.append(
        StageFacts(name="benchmark board:arm64", key=key, status="failed", seconds=92.1, error="one of 7 rows crashed")
    )
    return tuple(done)


def example_report(*, samples: int = 800, seed: int = 7) -> Report:
    """The report described in the module docstring, with `samples` latencies a row."""
    rng = random.Random(seed)
    rows = [_row(rng, i, device, samples) for device in (_HOST, _BOARD) for i in range(len(_ARTIFACTS))]
    rows[-1] = _failed_row(rows[-1])
    return Report(
        run_id="2026-11-23T21-40-05-demo",
        title="Fashion-MNIST, pruned and distilled CNN",
        created="2026-11-23T21:46:17Z",
        edgekit_version="0.1.0",
        recipe={
            "schema_version": 1,
            "workload": "examples/vision/workload.py:workload",
            "seed": 0,
            "targets": ["tflite"],
        },
        task="classification",
        data=DataFacts(
            name="Fashion-MNIST",
            source="Debian package dataset-fashion-mnist 0.0~git20200523.55506a9-1",
            train=60_000,
            calibration=256,
            evaluation=EVALUATED,
            classes=CLASSES,
        ),
        host=HostFacts(
            hostname="buildbox",
            os="Debian GNU/Linux 12 (bookworm)",
            cpu_model="Intel(R) Xeon(R) Processor @ 2.60GHz",
            cores=2,
            ram_bytes=8 << 30,
            python="3.11.2",
            edgekit="0.1.0",
            tool_versions={"torch": "2.13.0", "executorch": "1.5.1", "onnxruntime": "1.32.0"},
            load_average_1m=0.62,
        ),
        devices=(_HOST, _BOARD),
        skipped_devices=(
            SkippedDevice(spec="adb:R58M12ABCDE", reason="unauthorized", hint="accept the key on the phone's screen"),
        ),
        baseline=Baseline(
            name="teacher", accuracy=_wilson(9268, EVALUATED), parameters=431_080, macs=14_812_160, size_bytes=1_724_320
        ),
        lineage=_lineage(),
        artifacts=tuple(_passport(i) for i in range(len(_ARTIFACTS))),
        rows=tuple(rows),
        stages=_stages(),
        warnings=(
            Warned(where="convert student.static_w8a8.onnx", text="1 op stayed float: Softmax"),
            Warned(where="board:arm64", text="latencies are emulated"),
        ),
        verdict=Verdict.FAIL,
        verdict_reasons=(
            "student.static_w8a8.onnx on local: accuracy_drop <= 1.0 pp failed (1.36 pp)",
            "student.static_w8a8.onnx on board:arm64: crashed",
        ),
        command="edgekit run examples/vision/recipe.yaml --device local --device board:arm64",
        seconds=274.0,
    )


_CLOSED = frozenset(
    {
        "format",
        "scheme",
        "verdict",
        "schema_version",
        "delegate",
        "image_png_base64",
        "artifact",
        "device",
        "name",
        "spec",
    }
)
"""Keys whose text is from a closed set, or by which parts of a report find each other."""


def with_every_text(report: Report, text: str) -> Report:
    """`report` with `text` in every field that may hold any; names that tie parts together have it added."""
    return Report.model_validate(_with_text(report.model_dump(mode="json"), text, key="", path=()))


def _with_text(value: Any, text: str, key: str, path: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {k: _with_text(v, text, k, (*path, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_text(v, text, key, path) for v in value]
    if not isinstance(value, str):
        return value
    if key in {"artifact", "device", "name", "spec"}:
        return f"{value} {text}"
    if key in _CLOSED or (key == "status" and ("run" in path or value == "ok")):
        return value
    return text
