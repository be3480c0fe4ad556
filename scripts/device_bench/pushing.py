"""Push speed against the plain adb client on a virtual board, and what a second deployment sends."""

from __future__ import annotations

import ipaddress
import random
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from device_bench.part import Part, Target
from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.board import BoardDevice

MEGABYTES = (8, 32, 64)
ROOT = PurePosixPath("/tmp/edgekit")  # noqa: S108  on the board
"""The board's memory: what is compared is the link, not this host's disk."""
USB2_MBIT = 320
"""40 MB/s, what a USB 2 cable carries at best."""
METHODS = ("edgekit put", "adb push", "adb push -Z")


def push(rounds: int, folder: Path) -> Part:
    """Each method pushes new random bytes each time (weights do not shrink), in an order drawn for each round."""
    found: dict[str, dict[str, Any]] = {}
    with BoardDevice("amd64", root=ROOT) as device:
        for megabytes in MEGABYTES:
            found[f"{megabytes} MB"] = _compared(device, megabytes * 1_000_000, rounds, folder)
        with limited(device):
            for megabytes in MEGABYTES[:2]:
                name = f"{megabytes} MB at {USB2_MBIT // 8} MB/s"
                found[name] = _compared(device, megabytes * 1_000_000, rounds, folder)
    return _part(found, rounds)


def interface(device: BoardDevice) -> str:
    """The network interface of this host that leads to the board."""
    board = ipaddress.ip_address(device.adb[1].rpartition(":")[0])
    listed = subprocess.run(["ip", "-4", "-o", "addr", "show"], capture_output=True, check=True, text=True).stdout
    for name, address in re.findall(r"^\d+:\s+(\S+)\s+inet ([0-9./]+)", listed, re.MULTILINE):
        if board in ipaddress.ip_interface(address).network:
            return str(name)
    raise RuntimeError(f"no interface leads to {board}")


def sent_bytes(device: BoardDevice) -> int:
    """Bytes that left this host for the board, frames and all, by its network interface's own counter."""
    return int(Path(f"/sys/class/net/{interface(device)}/statistics/tx_bytes").read_text())


@contextmanager
def limited(device: BoardDevice) -> Iterator[None]:
    """The link to the board no faster than USB 2 meanwhile (a token bucket of the kernel's)."""
    rule = ["dev", interface(device), "root", "tbf", "rate", f"{USB2_MBIT}mbit", "burst", "1mb", "latency", "100ms"]
    subprocess.run(["tc", "qdisc", "add", *rule], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["tc", "qdisc", "del", *rule[:3]], check=False, capture_output=True)


def _compared(device: BoardDevice, size: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of each method by rounds, and what a second put of one file sent."""
    client, serial = device.adb
    draw = random.Random(0)  # noqa: S311  an order, no secret
    noise = np.random.default_rng(0)

    def plain(source: Path, *options: str) -> None:
        target = f"/tmp/{source.name}"  # noqa: S108  on the board
        argv = client.argv("-s", serial, "push", *options, str(source), target)
        subprocess.run(argv, check=True, capture_output=True)

    methods: dict[str, Callable[[Path], object]] = {
        "edgekit put": lambda source: device.put(source, Deadline.after(120)),
        "adb push": plain,
        "adb push -Z": lambda source: plain(source, "-Z"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    second = []
    for _ in range(rounds):
        for name in draw.sample(METHODS, len(METHODS)):
            source = folder / "push-me"
            source.write_bytes(noise.bytes(size))
            began = time.perf_counter()
            methods[name](source)
            seconds[name].append(time.perf_counter() - began)
            if name == "edgekit put":
                before = sent_bytes(device)
                device.put(source, Deadline.after(120))
                second.append(sent_bytes(device) - before)
            device.run(["sh", "-c", "rm -f /tmp/push-me /tmp/edgekit/cas/*"], Deadline.after(60))
    return {"size": size, "seconds": seconds, "second_put_bytes": second}


def _part(found: dict[str, dict[str, Any]], rounds: int) -> Part:
    table = [["file", "edgekit put, MB/s", "adb push", "adb push -Z", "share of the faster", "bytes of a second put"]]
    targets = []
    for name, values in found.items():
        size = values["size"] / 1e6
        speed = {method: size / statistics.median(values["seconds"][method]) for method in METHODS}
        best = {method: size / min(values["seconds"][method]) for method in METHODS}
        share, by_best = (s["edgekit put"] / max(s["adb push"], s["adb push -Z"]) for s in (speed, best))
        second = max(values["second_put_bytes"])
        cells = [f"{speed[m]:.0f} (best {best[m]:.0f})" for m in METHODS]
        table.append([name, *cells, f"{share:.0%} (best {by_best:.0%})", f"{second:,}"])
        targets += [
            Target(
                asked=f"{name}: at least 80 % of the plain client's faster form",
                found=f"{share:.0%} by medians, {by_best:.0%} by the best",
                met=share >= 0.8,
            ),
            Target(
                asked=f"{name}: a second deployment pushes nothing",
                found=f"{second:,} bytes on the wire (the question whether it is there), of {values['size']:,}",
                met=second < 20_000,
            ),
        ]
    return Part(
        title="Push",
        method=f"`put` (hash here, push, hash there, rename) against `adb push` (compressed, its default) and "
        f"`adb push -Z`, on board:amd64, {rounds} rounds, files of new random bytes, each round in a drawn order; "
        "medians, best in brackets. Bytes are counted by the network interface that leads to the board. The link to "
        "the board is this host's memory, far quicker than any cable: there the two hashes, which the plain client "
        f"does without, weigh as much as the transfer. The last rows are on a link held to {USB2_MBIT // 8} MB/s by "
        "the kernel (`tc`), what USB 2 carries at best.",
        table=table,
        targets=targets,
        raw=found,
    )
