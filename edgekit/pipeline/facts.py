"""The facts of the machine edgekit runs on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import edgekit
from edgekit.report.model import HostFacts

__all__ = ["TOOLKITS", "host_facts", "tool_versions"]

TOOLKITS = {
    "train": ("torch", "pytorch-lightning", "torch-pruning", "safetensors"),
    "tflite": ("litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
    "executorch": ("executorch", "torchao"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}
"""Extra to the distributions it brings."""


def tool_versions() -> dict[str, str]:
    """Distribution to installed version, for every toolkit edgekit drives; absent ones are left out."""
    found = {}
    for name in sorted({n for names in TOOLKITS.values() for n in names} | {"numpy"}):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def host_facts() -> HostFacts:
    """This machine, as the report shows it."""
    return HostFacts(
        hostname=platform.node(),
        os=_os_name(),
        cpu_model=_cpu_model(),
        cores=os.cpu_count(),
        ram_bytes=_ram_bytes(),
        python=platform.python_version(),
        edgekit=edgekit.__version__,
        tool_versions=tool_versions(),
        load_average_1m=round(os.getloadavg()[0], 2),
    )


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME") or platform.platform()
    except OSError:
        return platform.platform()


def _cpu_model() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            for line in f:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _ram_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
