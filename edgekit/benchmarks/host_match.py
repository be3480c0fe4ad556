"""A device's outputs against this host's of the same artifact: equal to the bit where they should be, else near enough.

Equal is asked for where the same code ran on the same instructions: runtime and its version, delegate, threads,
processor architecture and its features are the same. Elsewhere another kernel may sum in another order, or round a
requantization the other way, and a bound takes its place. Were the device exactly as far from PyTorch as the host
is, the two could differ by twice that distance and no more (the triangle inequality), so that is the bound: a device
beyond it answers worse than this host does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.benchmarks.values import DeviceInfo, Run
from edgekit.report.model import Verdict

__all__ = ["HostMatch", "match_host", "why_not_exact"]

ROUNDING = 2.0**-20
"""Of the reference's norm, and always allowed: sixteen roundings of float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMatch:
    """`is_equal` to the bit; `max_abs_difference` is None where a value is not finite."""

    is_equal: bool
    max_abs_difference: float | None
    verdict: Verdict
    reason: str


def why_not_exact(host: Run, device: Run, host_info: DeviceInfo, device_info: DeviceInfo) -> str | None:
    """What lets the outputs differ, both values named; None where they must be equal to the bit."""
    if host.runtime is None or device.runtime is None:
        return "the runtime did not tell its version"
    pairs: list[tuple[str, object, object]] = [
        ("runtime", host.runtime.name, device.runtime.name),
        ("runtime version", host.runtime.version, device.runtime.version),
        ("delegate", host.runtime.delegate, device.runtime.delegate),
        ("threads", host.runtime.threads, device.runtime.threads),
        ("architecture", host_info.abi, device_info.abi),
        ("processor features", sorted(host_info.cpu_features), sorted(device_info.cpu_features)),
    ]
    return next((f"{what}: {x} here and {y} there" for what, x, y in pairs if x != y), None)


def match_host(
    host: Sequence[np.ndarray],
    device: Sequence[np.ndarray],
    *,
    reference: np.ndarray | None,
    excuse: str | None,
) -> HostMatch:
    """The judgement of all outputs `[N, …]`, dequantized; `excuse` is what `why_not_exact` said.

    `reference` is what PyTorch gave for output 0, which the bound is taken from; without it, or with values that are
    not finite, unequal outputs with an excuse are NOT_GATED. NaN equals NaN in the same place.
    """
    is_equal = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(host, device, strict=True))
    is_finite = all(bool(np.isfinite(x).all()) for x in (*host, *device))
    largest = None
    if is_finite:
        largest = max(
            float(np.max(np.abs(a.astype(np.float64) - b), initial=0.0)) for a, b in zip(host, device, strict=True)
        )

    def told(verdict: Verdict, reason: str) -> HostMatch:
        return HostMatch(is_equal=is_equal, max_abs_difference=largest, verdict=verdict, reason=reason)

    if is_equal:
        return told(Verdict.PASS, "equal to the bit")
    shown = "some are not finite" if largest is None else f"by up to {largest:.3g}"
    if excuse is None:
        return told(Verdict.FAIL, f"not equal ({shown}) although runtime, version and processor are this host's")
    if reference is None or largest is None or not np.isfinite(reference).all() or reference.shape != host[0].shape:
        return told(Verdict.NOT_GATED, f"not equal ({shown}), and there is nothing to bound it by; {excuse}")
    ref = reference.astype(np.float64)
    apart = float(np.linalg.norm(device[0].astype(np.float64) - host[0]))
    own = float(np.linalg.norm(host[0] - ref))
    bound = max(2 * own, ROUNDING * float(np.linalg.norm(ref)))
    rule = (
        f"not equal ({shown}), as may be ({excuse}): apart by {apart:.3g} in norm, "
        f"twice the host's own distance from PyTorch is {bound:.3g}"
    )
    return told(Verdict.PASS if apart <= bound else Verdict.FAIL, rule)
