"""Which cores of a device are alike, from what `/sys/devices/system/cpu` says of each.

Cores of one cluster have the same `cpu_capacity` and maximum clock, and where the kernel scales the clocks of several
cores together (`related_cpus`), or tells which lie together (`core_siblings_list`), the same group. A processor that
scales every core by itself (x86) is grouped by clock alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from edgekit.benchmarks.values import Cluster

__all__ = ["clusters_of"]

_NAMED_APART = 0.9
"""Clocks are called little and big only below this ratio: x86 has favoured cores a few percent faster."""


def clusters_of(
    *,
    max_khz: Mapping[int, str],
    capacity: Mapping[int, str],
    related: Mapping[int, str],
    siblings: Mapping[int, str],
) -> tuple[Cluster, ...]:
    """The clusters, the slowest first; each mapping is from a CPU's number to the text of one file of `/sys`."""
    groups: dict[tuple[int, int, str], list[int]] = {}
    for core in sorted({*max_khz, *capacity}):
        clock, power = _number(max_khz.get(core)), _number(capacity.get(core))
        if clock is not None or power is not None:
            group = _group(core, related, siblings)
            groups.setdefault((power or 0, clock or 0, group), []).append(core)
    ordered = sorted(groups.items(), key=lambda item: (item[0][:2], item[1]))
    levels = sorted({key[:2] for key in groups})
    return tuple(
        Cluster(cores=tuple(cores), max_khz=clock or None, capacity=power or None, name=_name((power, clock), levels))
        for (power, clock, _), cores in ordered
    )


def _group(core: int, related: Mapping[int, str], siblings: Mapping[int, str]) -> str:
    """Text that is the same for the cores that lie together, empty where nothing tells."""
    together = related.get(core, "")
    if re.fullmatch(r"[0-9]+(?: [0-9]+)+", together):
        return together
    return siblings.get(core, "") if core not in related else ""


def _name(level: tuple[int, int], levels: list[tuple[int, int]]) -> Literal["little", "mid", "big"] | None:
    """What a cluster of this (capacity, clock) is called beside the others."""
    (least, slowest), (most, fastest) = levels[0], levels[-1]
    is_apart = least < most * _NAMED_APART if least and most else 0 < slowest < fastest * _NAMED_APART
    if not is_apart:
        return None
    if level == levels[0]:
        return "little"
    return "big" if level == levels[-1] else "mid"


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,11}", text) and int(text) else None
