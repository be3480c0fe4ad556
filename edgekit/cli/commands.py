"""Imports every command module, which registers its commands in the order `edgekit --help` lists them."""

from edgekit.cli import (  # noqa: F401, I001  (the order is the order of the help)
    running,
    converting,
    checking,
    inspecting,
    why,
    tuning,
    packing,
    benchmarking,
    devices,
    board,
    comparing,
    reporting,
    scaffolding,
    doctor,
)
