"""The architectures of virtual boards: what each runs on, what it needs of the host, and what its times are worth."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ARCHES", "Arch", "arch_unavailable_reason"]

_BINFMT = Path("/proc/sys/fs/binfmt_misc")


_CORTEX_A72 = """BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """One architecture, under Debian's name."""

    name: str
    machine: str
    """As `uname -m` says it."""
    interpreter: str | None = None
    """The kernel's handler (binfmt_misc) that runs its programs on an x86_64 host."""
    processor: str | None = None
    """What qemu emulates (`-cpu`); the board's /proc/cpuinfo describes the same one."""

    @property
    def emulation(self) -> str:
        """What the board is, for every page its numbers are on."""
        if self.is_native:
            return "a Debian container on this host's processor at native speed, not a separate board"
        return f"{self.machine} programs under qemu's emulation on this host: answers count, times mean nothing"

    def cpuinfo(self, cores: int) -> str:
        """/proc/cpuinfo of the emulated processor (Linux' format for a Cortex-A72)."""
        return "".join(f"processor\t: {n}\n{_CORTEX_A72}\n" for n in range(cores))

    @property
    def is_native(self) -> bool:
        """Whether this host's processor runs it itself."""
        return platform.machine() == self.machine


ARCHES = {
    "amd64": Arch(name="amd64", machine="x86_64"),
    "arm64": Arch(name="arm64", machine="aarch64", interpreter="qemu-aarch64", processor="cortex-a72"),
}

_NOT_OFFERED = {
    "armhf": "there is no armhf board: Debian 13, the first release with adbd, has Python 3.13, and of the runtimes "
    "only tflite-runtime is published for 32-bit ARM, for Python 3.11 at most (onnxruntime, executorch and "
    "ai-edge-litert are not)",
}


def arch_unavailable_reason(name: str) -> str | None:
    """Why programs of the architecture `name` do not run here, in one sentence with what to install, or None."""
    arch = ARCHES.get(name)
    if arch is None:
        said = _NOT_OFFERED.get(name, f"there is no {name[:40]} board")
        return f"{said}; there are {', '.join(f'board:{known}' for known in ARCHES)}"
    if platform.system() != "Linux":
        return f"board:{name} needs Linux on x86_64 or {arch.machine}, this is {platform.system()}"
    if arch.is_native:
        return None
    if platform.machine() != "x86_64" or arch.interpreter is None:
        return f"board:{name} needs a processor of its kind ({arch.machine}), this is {platform.machine()}"
    return _handler_problem(arch.interpreter)


def _handler_problem(interpreter: str) -> str | None:
    """Why the kernel does not start programs through `interpreter`."""
    package = "qemu-user-static"
    try:
        lines = (_BINFMT / interpreter).read_text().splitlines()
    except OSError:
        return (
            f"the kernel has no handler {interpreter} (binfmt_misc): scripts/install_system_packages.sh sets it up, or "
            f"enable binfmt_misc and: apt install {package}"
        )
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags:")), "")
    if "enabled" not in lines:
        return f"the kernel's handler {interpreter} is switched off: echo 1 > {_BINFMT / interpreter}"
    if "F" not in flags:  # else the interpreter would be looked for inside the board
        return f"the handler {interpreter} is not a static one (flag F): apt install {package}"
    return None
