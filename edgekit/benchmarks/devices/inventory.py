"""The inventory: one YAML file that names devices, so that a lab's phones are known by more than their serials.

    schema_version: 1
    devices:
      pixel:
        device: adb:R5CT30ABCDE
        tags: [phone, arm64]
        floors: {battery_percent: 40, temperature_c: 38}
        power_cycle: [uhubctl, -l, 1-1, -p, "2", -a, cycle]
        adb_server: 10.0.0.7:5037
        runtime: [litert]
        notes: rack 2, shelf 1

Found at `$EDGEKIT_INVENTORY` (which `--inventory` sets), `./devices.yaml`, then `~/.config/edgekit/devices.yaml`; the
first there is the only one read. Reading it runs nothing: `power_cycle` is a command that only
`edgekit devices --power-cycle NAME` runs.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from edgekit.benchmarks.devices.adb_attached import parse_choice
from edgekit.benchmarks.devices.adb_server import checked_server
from edgekit.benchmarks.devices.health import Floors
from edgekit.benchmarks.devices.ssh_target import parse_target
from edgekit.benchmarks.values import Plan
from edgekit.errors import UserError
from edgekit.schema import Record, near_miss
from edgekit.yaml_file import YamlError, read_yaml, record_of

__all__ = [
    "FILE_VARIABLE",
    "Inventory",
    "InventoryEntry",
    "entry_of",
    "floors_for",
    "inventory_path",
    "load_inventory",
    "read_inventory",
    "remember_entry",
    "require_runtime",
    "with_floors_of",
]

FILE_VARIABLE = "EDGEKIT_INVENTORY"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = frozenset({"adb", "board", "local", "ssh", "tag"})


class InventoryEntry(Record):
    """One device of the inventory."""

    device: Annotated[str, Field(min_length=1, max_length=256)]
    """`adb:SERIAL`, `adb:model:NAME`, `ssh:HOST`, `board:amd64`, `local`."""
    tags: tuple[str, ...] = ()
    runtime: tuple[str, ...] = ()
    """The runtimes that may be measured on it, by name; empty allows all."""
    floors: Floors = Floors()
    power_cycle: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """The words of a command; no shell reads them."""
    adb_server: str | None = None
    """`HOST:PORT`."""
    notes: Annotated[str, Field(max_length=1000)] | None = None

    @field_validator("runtime", "tags", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("tags", "runtime")
    @classmethod
    def _plain_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            if not _NAME.fullmatch(word):
                raise ValueError(f"{word[:80]!r} must be letters, digits, '.', '_' or '-', at most 64")
        return value

    @field_validator("power_cycle")
    @classmethod
    def _a_command(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value and (not value[0] or any("\0" in word or len(word) > 4096 for word in value)):
            raise ValueError("must be the words of a command, the program first")
        return value

    @field_validator("adb_server")
    @classmethod
    def _a_server(cls, value: str | None) -> str | None:
        try:
            return checked_server(value) if value is not None else None
        except UserError as e:
            raise ValueError(e.message) from e

    @field_validator("runtime")
    @classmethod
    def _known_runtimes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from edgekit.runtimes.catalog import RUNTIMES

        for name in value:
            if name not in RUNTIMES.names():
                raise ValueError(f"unknown runtime '{name}'; {near_miss(name, RUNTIMES.names())}")
        return value

    @field_validator("device")
    @classmethod
    def _a_spec(cls, value: str) -> str:
        """A device that could be there; whether it is, is not asked when the file is read."""
        from edgekit.benchmarks.devices.registry import DEVICES

        kind, _, argument = value.partition(":")
        if kind == "tag" or value.startswith("adb:tag:"):
            raise ValueError("a tag names what an inventory has; give the device itself")
        if kind not in DEVICES.names():
            raise ValueError(f"unknown device {kind[:80]!r}; {near_miss(kind, DEVICES.names())}")
        try:
            if kind == "adb":
                parse_choice(argument or None)
            elif kind == "ssh":
                parse_target(argument)
        except UserError as e:
            raise ValueError(e.message) from e
        if not value.isprintable():
            raise ValueError("holds characters that cannot be shown")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        kind = self.device.partition(":")[0]
        if self.adb_server is not None and (kind != "adb" or "@" in self.device):
            raise ValueError("adb_server: goes with `adb:SERIAL` or `adb:model:NAME` only, and once")
        return self

    @property
    def spec(self) -> str:
        """What opens it."""
        if self.adb_server is None:
            return self.device
        return f"{self.device}{'' if ':' in self.device else ':'}@{self.adb_server}"


class Inventory(Record):
    """All devices that the file names."""

    schema_version: Literal[1] = 1
    devices: dict[str, InventoryEntry] = Field(default_factory=dict)

    @field_validator("devices")
    @classmethod
    def _plain_names(cls, value: dict[str, InventoryEntry]) -> dict[str, InventoryEntry]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name[:80]!r} must be letters, digits, '.', '_' or '-', at most 64")
            if name in _RESERVED:
                raise ValueError(f"'{name}' is a kind of device; give the device another name")
        return value

    def tagged(self, tag: str, *, kind: str | None = None) -> str:
        """The name of the one device with this tag (of this kind). Raises UserError for none, or several."""
        chosen = {n: e for n, e in self.devices.items() if kind is None or e.device.partition(":")[0] == kind}
        names = [name for name, entry in chosen.items() if tag in entry.tags]
        if len(names) == 1:
            return names[0]
        if names:
            raise UserError(f"{len(names)} devices have the tag '{tag}': {', '.join(names)}", hint="name one of them")
        known = sorted({t for entry in chosen.values() for t in entry.tags})
        if not known:
            raise UserError(
                f"no device has the tag '{tag}'", hint="tags are given in devices.yaml; see docs/devices.md"
            )
        raise UserError(f"no device has the tag '{tag}'; {near_miss(tag, known)}")


def inventory_path() -> Path | None:
    """The inventory to read, or None where there is none. Raises UserError where the one asked for is not there."""
    chosen = os.environ.get(FILE_VARIABLE)
    if chosen:
        path = Path(chosen).expanduser()
        if not path.is_file():
            raise UserError(f"there is no inventory {path}", hint=f"--inventory and {FILE_VARIABLE} name a YAML file")
        return path
    base = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return next((p for p in (Path("devices.yaml"), base / "edgekit" / "devices.yaml") if p.is_file()), None)


def load_inventory() -> Inventory:
    """The inventory there is, empty where there is no file. Raises UserError with the lines that are wrong."""
    path = inventory_path()
    if path is None:
        return Inventory()
    return _read_once(path.absolute(), path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read_once(path: Path, changed: int) -> Inventory:
    """`changed` keys the cache."""
    return read_inventory(path)


def read_inventory(path: Path) -> Inventory:
    """The inventory in the file `path`. Raises UserError naming every wrong line."""
    try:
        document = read_yaml(path)
        if document.value is None:
            return Inventory()
        if not isinstance(document.value, dict):
            raise UserError(f"{path}: an inventory is a mapping of keys, not {type(document.value).__name__}")
        return record_of(Inventory, document, path)
    except YamlError as e:
        text = str(e)
        raise UserError(text if text.startswith(f"{path}:") else f"{path}: {text}") from e
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}") from e


_names: dict[str, str] = {}
"""What was opened by an inventory's name in this process: its spec there, to the name."""


def remember_entry(spec: str, name: str) -> None:
    """Keep that the device `spec` was opened as the inventory's `name`."""
    _names[spec] = name


def entry_of(spec: str) -> tuple[str, InventoryEntry] | None:
    """The name and entry of what `spec` names: a name, a device written as in the file, or one opened by its name."""
    devices = load_inventory().devices
    name = spec if spec in devices else _names.get(spec)
    if name is None:
        name = next((n for n, entry in devices.items() if spec in (entry.device, entry.spec)), None)
    return (name, devices[name]) if name in devices else None


def floors_for(spec: str) -> Floors:
    """The floors to keep on the device `spec`: the inventory's, or the defaults."""
    found = entry_of(spec)
    return found[1].floors if found else Floors()


def with_floors_of(spec: str, plan: Plan) -> Plan:
    """`plan` with the inventory's floors for the device `spec` where the plan itself does not set them."""
    floors = floors_for(spec)
    given = {
        "max_temperature_c": floors.temperature_c,
        "min_battery_percent": floors.battery_percent if "battery_percent" in floors.model_fields_set else None,
    }
    return plan.model_copy(
        update={name: v for name, v in given.items() if v is not None and getattr(plan, name) is None}
    )


def require_runtime(spec: str, runtime: str) -> None:
    """Raise UserError when the inventory does not allow this runtime on the device `spec`."""
    found = entry_of(spec)
    if found is not None and found[1].runtime and runtime not in found[1].runtime:
        raise UserError(
            f"the inventory allows {', '.join(found[1].runtime)} on {found[0]}, not {runtime}",
            hint=f"add {runtime} to `runtime` of {found[0]} in {inventory_path()}, or measure another format",
        )
