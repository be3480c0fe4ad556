"""The architectures of virtual boards: what each runs on, what it needs of the host, and what its times are worth."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ARCHES", "Arch", "arch_unavailable_reason"]

_BINFMT = Path("/proc/sys/fs/binfmt_misc")


# Linux' format, one block a core; the features are those of the processor, not of qemu's host.
_CPUINFO = {
    "cortex-a72": """BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
""",
    "cortex-a15": """model name\t: ARMv7 Processor rev 1 (v7l)
BogoMIPS\t: 48.00
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm
CPU implementer\t: 0x41
CPU architecture: 7
CPU variant\t: 0x2
CPU part\t: 0xc0f
CPU revision\t: 1
""",
}


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

    python_suite: str | None = None
    """The Debian release its Python and numpy come from, where those of the board's own have no runtime."""
    packages: tuple[str, ...] = ()
    """Besides those of every board."""

    @property
    def emulation(self) -> str:
        """What the board is, for every page its numbers are on."""
        if self.is_native:
            return "a Debian container on this host's processor at native speed, not a separate board"
        return f"{self.machine} programs under qemu's emulation on this host: answers count, times mean nothing"

    def cpuinfo(self, cores: int) -> str:
        """/proc/cpuinfo of the emulated processor, with so many cores."""
        return "".join(f"processor\t: {n}\n{_CPUINFO[self.processor or '']}\n" for n in range(cores))

    @property
    def is_native(self) -> bool:
        """Whether this host's processor runs it itself."""
        return platform.machine() == self.machine


ARCHES = {
    "amd64": Arch(name="amd64", machine="x86_64"),
    "arm64": Arch(name="arm64", machine="aarch64", interpreter="qemu-aarch64", processor="cortex-a72"),
    # Of the runtimes only tflite-runtime is published for 32-bit ARM, up to Python 3.11, and numpy on PyPI is not:
    # Debian 12 has both. Its Python runs on Debian 13's libraries, whose adbd the board needs.
    "armhf": Arch(
        name="armhf",
        machine="armv7l",
        interpreter="qemu-arm",
        processor="cortex-a15",
        python_suite="bookworm",
        packages=("libblas3", "liblapack3", "libstdc++6"),
    ),
}


def arch_unavailable_reason(name: str) -> str | None:
    """Why programs of the architecture `name` do not run here, in one sentence with what to install, or None."""
    arch = ARCHES.get(name)
    if arch is None:
        return f"there is no {name[:40]} board; there are {', '.join(f'board:{known}' for known in ARCHES)}"
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
