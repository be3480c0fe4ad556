"""The facts of a device, read by one portable shell script and believed only after cleaning.

Everything here was said by the device: values are cut to 200 characters, control characters are dropped, and a
number that is not one is None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from edgekit.benchmarks.devices.clusters import clusters_of
from edgekit.benchmarks.values import DeviceInfo

__all__ = ["PROBE_SCRIPT", "device_info", "parse_facts"]

_MAX_VALUE = 200
_MAX_FACTS = 2000
_MAX_CORES = 1024
# The instruction sets XNNPACK, oneDNN and MLAS choose kernels by, under the kernel's names: x86, then ARM.
_KERNEL_FEATURES = """
sse4_1 sse4_2 avx avx2 f16c fma avx512f avx512bw avx512vl avx512_vnni avx_vnni avx512_fp16 avx512_bf16
avx_vnni_int8 amx_int8 amx_bf16 amx_tile
neon vfpv4 asimd asimdhp asimddp asimdrdm i8mm bf16 sve sve2 sme fphp
"""

# `key=value` a line; `key` may come more than once. Nothing here fails the script: an absent fact is absent.
# R goes before /sys (a tree of a test's own).
PROBE_SCRIPT = r"""
R=
say() { [ -n "$2" ] && printf '%s=%s\n' "$1" "$2"; }
first() { { read -r x < "$2"; } 2>/dev/null && say "$1" "$x"; }
say abi "$(uname -m)"
say kernel "$(uname -sr)"
first boot_id /proc/sys/kernel/random/boot_id
if [ -r /proc/cpuinfo ]; then
  while IFS= read -r l; do
    case $l in "model name"*|Hardware*|Model*|Features*|flags*) say cpuinfo "$l" ;; esac
  done < /proc/cpuinfo | sort -u -r | head -n 40
  say cores "$(grep -c '^processor' /proc/cpuinfo)"
fi
[ -r /proc/meminfo ] && say mem "$(grep '^MemTotal' /proc/meminfo)"
for c in "$R"/sys/devices/system/cpu/cpu[0-9]*; do
  n=${c##*/cpu}
  first "max_khz.$n" "$c/cpufreq/cpuinfo_max_freq"
  first "governor.$n" "$c/cpufreq/scaling_governor"
  first "capacity.$n" "$c/cpu_capacity"
  first "related.$n" "$c/cpufreq/related_cpus"
  first "siblings.$n" "$c/topology/core_siblings_list"
done
say uid "$(id -u)"
[ -r /proc/device-tree/model ] && say dt_model "$(tr -d '\000' < /proc/device-tree/model)"
[ -r /proc/device-tree/serial-number ] && say dt_serial "$(tr -d '\000' < /proc/device-tree/serial-number)"
if command -v getprop >/dev/null 2>&1; then
  for p in ro.serialno ro.product.manufacturer ro.product.model ro.soc.model ro.soc.manufacturer ro.board.platform \
      ro.build.version.release ro.build.version.sdk ro.boot.qemu ro.product.cpu.abilist ro.build.fingerprint \
      ro.build.version.security_patch; do say "prop.$p" "$(getprop $p)"; done
  say su "$(command -v su)"
fi
[ -r /etc/os-release ] && say os "$(. /etc/os-release 2>/dev/null; echo "$PRETTY_NAME")"
first machine_id /etc/machine-id
first edgekit_board /etc/edgekit-board
first product /sys/class/dmi/id/product_name
if command -v getconf >/dev/null 2>&1; then say libc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"; fi
say ldd "$(ldd --version 2>&1 | head -n 1)"
"""


@dataclass(slots=True)
class _Facts:
    """The lines a device printed, by key, in order."""

    values: dict[str, list[str]] = field(default_factory=dict)

    def one(self, key: str) -> str | None:
        return self.values[key][0] if key in self.values else None

    def number(self, key: str) -> int | None:
        text = self.one(key)
        return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None

    def indexed(self, prefix: str) -> dict[int, str]:
        """`{3: "1800000"}` for lines `prefix.3=1800000`."""
        found = {}
        for key, values in self.values.items():
            name, _, index = key.partition(".")
            if name == prefix and re.fullmatch(r"[0-9]{1,4}", index):
                found[int(index)] = values[0]
        return found


def _clean(text: str, limit: int = _MAX_VALUE) -> str:
    return "".join(c for c in text if c.isprintable())[:limit].strip()


def parse_facts(text: str) -> _Facts:
    """The facts in what PROBE_SCRIPT printed; anything that is not `key=value` is ignored."""
    facts = _Facts()
    for line in text.split("\n")[:_MAX_FACTS]:
        key, separator, value = line.partition("=")
        if separator and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", key):
            # The flags line of a processor is long and is picked apart below; it is not kept.
            facts.values.setdefault(key, []).append(_clean(value, 8192 if key == "cpuinfo" else _MAX_VALUE))
    return facts


def device_info(text: str, *, spec: str, kind: str) -> DeviceInfo:
    """DeviceInfo from what PROBE_SCRIPT printed; `serial` is the machine's own identity where it has one."""
    facts = parse_facts(text)
    cpuinfo = _cpuinfo(facts.values.get("cpuinfo", []))
    cores = facts.number("cores")
    governors = sorted(set(facts.indexed("governor").values()))
    maker, model = facts.one("prop.ro.product.manufacturer"), facts.one("prop.ro.product.model")
    android = facts.one("prop.ro.build.version.release")
    is_emulator = facts.one("prop.ro.boot.qemu") == "1"
    virtual_board = facts.one("edgekit_board")  # over whatever link it was asked
    return DeviceInfo(
        spec=spec,
        kind=kind,
        serial=facts.one("prop.ro.serialno") or _board_serial(facts) or facts.one("machine_id") or spec,
        model=" ".join(p for p in (maker, model) if p) or facts.one("dt_model") or facts.one("product"),
        soc=facts.one("prop.ro.soc.model") or facts.one("prop.ro.board.platform") or cpuinfo.get("Hardware"),
        cpu_model=cpuinfo.get("model name") or cpuinfo.get("Model"),
        cpu_features=_features(cpuinfo.get("flags", "") + " " + cpuinfo.get("Features", "")),
        cores=min(cores, _MAX_CORES) if cores else None,
        clusters=clusters_of(
            max_khz=facts.indexed("max_khz"),
            capacity=facts.indexed("capacity"),
            related=facts.indexed("related"),
            siblings=facts.indexed("siblings"),
        ),
        ram_bytes=_mem_bytes(facts.one("mem")),
        os=f"Android {android}" if android else facts.one("os"),
        kernel=facts.one("kernel"),
        abi=facts.one("abi"),
        abis=_abis(facts),
        libc=_libc(facts, is_android=android is not None),
        python=_python(facts.one("python")),
        governor=", ".join(governors) or None,
        android_api=facts.number("prop.ro.build.version.sdk"),
        build_fingerprint=facts.one("prop.ro.build.fingerprint"),
        security_patch=_patch(facts.one("prop.ro.build.version.security_patch")),
        is_rooted=_is_rooted(facts, is_android=android is not None),
        emulated=is_emulator or virtual_board is not None,
        emulation="an Android emulator" if is_emulator else virtual_board,
        shares_host_cpu=virtual_board is not None,
        boot_id=facts.one("boot_id"),
    )


def _cpuinfo(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return {k: v if k in ("flags", "Features") else v[:_MAX_VALUE] for k, v in found.items()}


def _board_serial(facts: _Facts) -> str | None:
    """The board's own number. Cards copied from one image share a machine id; boards do not share this."""
    serial = facts.one("dt_serial") or ""
    return serial if serial.strip("0") else None  # some boards have zeros for it


def _python(said: str | None) -> str | None:
    match = re.match(r"[0-9]{1,2}\.[0-9]{1,3}\.[0-9]{1,3}", said or "")
    return match[0] if match else None


def _features(words: str) -> tuple[str, ...]:
    return tuple(sorted(set(_KERNEL_FEATURES.split()) & set(words.split())))


def _abis(facts: _Facts) -> tuple[str, ...]:
    names = (facts.one("prop.ro.product.cpu.abilist") or "").split(",")
    return tuple(name for name in names if re.fullmatch(r"[A-Za-z0-9_-]{1,32}", name))[:8]


def _patch(said: str | None) -> str | None:
    return said if said and re.fullmatch(r"20[0-9]{2}-[01][0-9](?:-[0-3][0-9])?", said) else None


def _is_rooted(facts: _Facts, *, is_android: bool) -> bool | None:
    """A Linux's `su` asks for a password and proves nothing; an Android's is there on rooted ones only."""
    uid = facts.number("uid")
    if uid is None:
        return None
    return uid == 0 or (is_android and facts.one("su") is not None)


def _mem_bytes(line: str | None) -> int | None:
    match = re.search(r"([0-9]{1,15}) kB", line or "")
    return int(match[1]) * 1024 if match else None


def _libc(facts: _Facts, *, is_android: bool) -> str | None:
    """`glibc 2.41`, `musl`, `bionic`, or None."""
    if is_android:
        return "bionic"
    named = re.fullmatch(r"glibc ([0-9.]+)", facts.one("libc") or "")
    said = facts.one("ldd") or ""
    tail = re.search(r"(?:GLIBC|GNU libc)\D*([0-9]+\.[0-9]+)|\) ([0-9]+\.[0-9]+)$", said)
    if named:
        return f"glibc {named[1]}"
    if "musl" in said:
        return "musl"
    return f"glibc {tail[1] or tail[2]}" if tail else None
