"""What became of the device while it measured, from its state at several moments."""

from typing import Any, Optional

from .job import Plan

_WALL_NS = 500_000_000
"""A wall clock that is slewed by a time server moves by at most 0.5 ms a second; more than this was set, or slept."""
_CLOCK = 0.05


def changes(before: dict[str, Any], sampled: list[dict[str, Any]], after: dict[str, Any], plan: Plan) -> list[str]:
    """Flags, from CONDITIONS in the order of time: clock limits lowered, clocks moved, heat, a wall clock that jumped.

    `sampled` are those of the blocks of samples.
    The clocks are the fastest of the cores the plan pins to (of all cores where it pins to none) at each moment:
    cores without work rest at their lowest, which is no change.
    """
    moments = [before, *sampled, after]
    found = [_limited(moments), _moved(sampled, plan.cores), _heated(moments, plan.max_temperature_c), _jumped(moments)]
    return [flag for flag in found if flag is not None]


def _limited(moments: list[dict[str, Any]]) -> Optional[str]:
    """The kernel's upper bound of a clock was lowered: that is how a hot or badly fed device is slowed."""
    for cpu, first in sorted(moments[0]["cpu_limit_khz"].items()):
        least = min(m["cpu_limit_khz"].get(cpu, first) for m in moments)
        if least < first:
            return f"throttled while it measured: the limit of {cpu} fell from {_mhz(first)} to {_mhz(least)}"
    return None


def _moved(sampled: list[dict[str, Any]], cores: Optional[list[int]]) -> Optional[str]:
    wanted = None if cores is None else {f"cpu{n}" for n in cores}
    fastest = []
    for moment in sampled:
        clocks = [khz for cpu, khz in moment["cpu_khz"].items() if wanted is None or cpu in wanted]
        if clocks:
            fastest.append(max(clocks))
    if not fastest or min(fastest) >= max(fastest) * (1 - _CLOCK):
        return None
    return f"clocks between {_mhz(min(fastest))} and {_mhz(max(fastest))} while it was sampled"


def _heated(moments: list[dict[str, Any]], limit: Optional[float]) -> Optional[str]:
    if limit is None:
        return None
    highest = max(((t, zone) for m in moments for zone, t in m["temperature_milli_c"].items()), default=None)
    if highest is None or highest[0] <= limit * 1000:
        return None
    return f"{highest[1]} reached {highest[0] / 1000:.1f} °C while it measured, over {limit:g} °C"


def _jumped(moments: list[dict[str, Any]]) -> Optional[str]:
    for earlier, later in zip(moments, moments[1:]):
        passed = later["monotonic_ns"] - earlier["monotonic_ns"]
        jump = later["wall_ns"] - earlier["wall_ns"] - passed
        if abs(jump) > _WALL_NS:
            return (
                f"the device's wall clock moved by {jump / 1e9:+.1f} s while it measured: it was set, or the device "
                "slept (times here are of its monotonic clock)"
            )
    return None


def _mhz(khz: int) -> str:
    return f"{khz / 1000:.0f} MHz"
