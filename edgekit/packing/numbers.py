"""Numbers as a pack writes them."""

from __future__ import annotations

__all__ = ["varint"]


def varint(value: int) -> bytes:
    """`value` in 7 bits a byte, low ones first, the last byte below 128; raises ValueError for a negative one."""
    if value < 0:
        raise ValueError(f"{value} is negative")
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    result.append(value)
    return bytes(result)
