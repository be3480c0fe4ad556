"""`model.cc` and `model.h`: the model as C++ source, the same bytes for the same model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["MicroSource", "identifier"]

_LICENCE = """\
// SPDX-License-Identifier: Apache-2.0
// Written by edgekit. The licence above is of this source file; the weights in it have that of the model."""
_BYTES_PER_LINE = 16


def identifier(name: str) -> str:
    """`name` as a C++ identifier: `kws-net.v2` is `kws_net_v2`."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower() or "model"
    return plain if plain[0].isalpha() else f"model_{plain}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroSource:
    """What the two files say."""

    name: str
    """Shown name of the artifact."""
    content: bytes
    sha256: str
    kernels: tuple[str, ...]
    arena_bytes: int
    runtime: str
    """Where the arena was measured, `tflite-micro 0.dev…` style."""
    inputs: tuple[str, ...]
    """Each as it is shown: `x: int8 [1, 3, 32, 32]`."""
    outputs: tuple[str, ...]

    @property
    def symbol(self) -> str:
        return f"g_{identifier(self.name)}"

    def header(self) -> str:
        """`model.h`: the declarations, and which kernels and how large an arena the application is to give."""
        guard = f"EDGEKIT_{identifier(self.name).upper()}_H_"
        registered = "\n".join(f"//   resolver.{kernel}();" for kernel in self.kernels)
        borders = "\n".join(
            f"//   {kind} {text}"
            for kind, texts in (("input ", self.inputs), ("output", self.outputs))
            for text in texts
        )
        return f"""{_LICENCE}
//
// {self.name}, sha256 {self.sha256}
{borders}
//
// Kernels:
//   tflite::MicroMutableOpResolver<{len(self.kernels)}> resolver;
{registered}

#ifndef {guard}
#define {guard}

#include <cstddef>
#include <cstdint>

// The model, a TensorFlow Lite flatbuffer; aligned to 16 bytes, as its tensors are within it.
extern const unsigned char {self.symbol}[];
constexpr std::size_t {self.symbol}_len = {len(self.content)};

// The smallest tensor arena it ran in, measured with {self.runtime}
// on a 64-bit host with the reference kernels. A 32-bit target needs less; optimised kernels may ask for more scratch.
constexpr std::size_t {self.symbol}_arena_bytes = {self.arena_bytes};

#endif  // {guard}
"""

    def source(self) -> str:
        """`model.cc`: the bytes."""
        return f"""{_LICENCE}
//
// {self.name}, sha256 {self.sha256}

#include "model.h"

alignas(16) const unsigned char {self.symbol}[{self.symbol}_len] = {{
{chr(10).join(self._lines())}
}};
"""

    def _lines(self) -> Iterator[str]:
        for start in range(0, len(self.content), _BYTES_PER_LINE):
            row = self.content[start : start + _BYTES_PER_LINE]
            yield "    " + " ".join(f"0x{byte:02x}," for byte in row)
