"""Which cores a plan means: `big`, `little` and `all` as the device has them, `0-3,6` as written."""

from __future__ import annotations

import re
from typing import Literal

from edgekit.benchmarks.values import DeviceInfo, Plan
from edgekit.errors import UserError

__all__ = ["parse_cores", "with_cores_of"]

_HIGHEST = 1023
_HINT = "write big, little, all, or CPU numbers: 0-3, 0,2 or 4-7,9"
_NAMES: tuple[Literal["big", "little", "all"], ...] = ("big", "little", "all")


def parse_cores(text: str) -> tuple[int, ...] | Literal["big", "little", "all"]:
    """What `--cores TEXT` means: a cluster's name, or CPU numbers in order. Raises UserError."""
    for name in _NAMES:
        if text.strip() == name:
            return name
    cores: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        if match is None:
            raise UserError(f"--cores {text[:80]}: '{part[:40]}' is no core", hint=_HINT)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > _HIGHEST:
            raise UserError(f"--cores {text[:80]}: {first}-{last} is no range up to {_HIGHEST}", hint=_HINT)
        cores.update(range(first, last + 1))
    return tuple(sorted(cores))


def with_cores_of(info: DeviceInfo, plan: Plan) -> Plan:
    """`plan` with CPU numbers for the cluster it names. Raises UserError where the device has none of that name."""
    if not isinstance(plan.cores, str):
        return plan
    everything = tuple(range(info.cores)) if info.cores else ()
    cores = everything if plan.cores == "all" else _cluster(info, plan.cores)
    if not cores:
        clusters = "; ".join(",".join(map(str, c.cores)) for c in info.clusters) or "none told"
        raise UserError(
            f"{info.spec} has no {plan.cores} cores that can be told from others (clusters: {clusters})",
            hint="give CPU numbers, for example cores 0-1, or leave the cores to the scheduler",
        )
    return plan.model_copy(update={"cores": cores})


def _cluster(info: DeviceInfo, name: str) -> tuple[int, ...]:
    """The cores of the clusters called so; empty where all cores are alike."""
    return tuple(sorted(core for cluster in info.clusters if cluster.name == name for core in cluster.cores))
