"""Resident memory of this process, as the Linux kernel counts it."""

from typing import Optional

from .files import read_text

_KIB = 1024


def resident() -> dict[str, Optional[int]]:
    """`{"rss": bytes, "peak": bytes}` (VmRSS, VmHWM); None where the kernel does not tell."""
    return {"rss": _field("/proc/self/status", "VmRSS"), "peak": _field("/proc/self/status", "VmHWM")}


def proportional() -> Optional[int]:
    """Proportional set size in bytes (smaps_rollup, Linux 4.14), or None."""
    return _field("/proc/self/smaps_rollup", "Pss")


def reset_peak() -> bool:
    """Whether VmHWM could be set back to the present resident size (`5` into clear_refs, Linux 4.0)."""
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    except OSError:
        return False
    return True


def _field(path: str, name: str) -> Optional[int]:
    for line in (read_text(path) or "").splitlines():
        key, _, rest = line.partition(":")
        if key == name:
            return int(rest.split()[0]) * _KIB
    return None
