"""Compression, measured on real data: what each method reached beside what it should.

    make bench-compression [DATA=FOLDER]
    python scripts/bench_compression.py --parts lenet,sensing --data ../shared/data

Each part is a module of scripts/compression_bench with `TITLE`, `cells(settings)` and `table(cells)`. A cell is one
measurement (one method, one seed); it is written as soon as it is there, so a killed run goes on where it was, and
`--again` measures anew. Writes docs/benchmarks/compression.md, and every raw number to compression.d/ beside it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent))

from edgekit.pipeline.facts import host_facts, tool_versions

ROOT = Path(__file__).resolve().parents[1]
PARTS = tuple(sorted(p.stem for p in (Path(__file__).parent / "compression_bench").glob("[a-z]*.py")))
Raw = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a part may use."""

    data: Path | None
    """Folder with `cifar10/` and `fsdd/`; None where it was not given: a part then skips those cells and says so."""
    models: Path | None
    """Folder with pretrained weights."""
    cache: Path
    """Survives: trained networks go here."""


class Part(Protocol):
    """A module of scripts/compression_bench."""

    TITLE: str

    def cells(self, settings: Settings) -> Iterator[tuple[str, Callable[[], Raw]]]:
        """Each cell's key and the function that measures it; a cell may read what an earlier one left in the cache."""
        ...

    def table(self, cells: Mapping[str, Raw]) -> list[str]:
        """Markdown lines of the cells measured so far: goals, what was reached, verdicts."""
        ...


def part_of(name: str) -> Part:
    module: Any = importlib.import_module(f"compression_bench.{name}")
    return module


def page(raw: Mapping[str, Raw]) -> str:
    """The Markdown page of everything measured so far."""
    lines = [
        "# Compression, measured\n",
        "Written by scripts/bench_compression.py; raw numbers, seeds and machine facts of every cell in "
        "compression.d/.",
    ]
    for name in PARTS:
        part, cells = part_of(name), raw.get(name, {})
        lines.append(f"\n## {part.TITLE}\n")
        if not cells:
            lines.append("Not measured.")
            continue
        seconds = sum(cell["seconds"] for cell in cells.values())
        last = max(cells.values(), key=lambda cell: cell["when"])
        lines.append(
            f"`python scripts/bench_compression.py --parts {name}`: {len(cells)} cells in {seconds:.0f} s, last on "
            f"{last['when']}, {last['machine']}.\n"
        )
        lines += part.table({key: cell["value"] for key, cell in cells.items()})
    versions = next((cell["tools"] for cells in raw.values() for cell in cells.values()), {})
    lines.append("\n" + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    return "\n".join(lines) + "\n"


def measured(part: str, measure: Callable[[], Raw]) -> Raw:
    """One cell with the facts of its making."""
    began = time.monotonic()
    value = measure()
    machine = host_facts()
    return {
        "value": value,
        "seconds": round(time.monotonic() - began, 1),
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{machine.cpu_model}, {machine.cores} cores, {machine.os}, Python {machine.python}",
        "load": machine.load_average_1m,
        "command": f"python scripts/bench_compression.py --parts {part} --data FOLDER --models FOLDER",
        "tools": tool_versions(),
    }


def main() -> None:
    """Measure the cells that are missing, part by part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--cells", default="", help="only keys that contain this")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--data", type=Path, help="folder with cifar10/ and fsdd/ (parquet)")
    parser.add_argument("--models", type=Path, help="folder with cifar10_resnet56.safetensors")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks" / "compression.md")
    arguments = parser.parse_args()
    cache = Path("~/.cache/edgekit/bench-compression").expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    settings = Settings(data=arguments.data, models=arguments.models, cache=cache)
    unknown = set(arguments.parts.split(",")) - set(PARTS)
    if unknown:
        sys.exit(f"unknown part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    if arguments.data is None:
        print("no --data: parts that need CIFAR-10 or spoken digits leave them out", file=sys.stderr)
    store = arguments.output.with_suffix(".d")
    store.mkdir(parents=True, exist_ok=True)
    for name in arguments.parts.split(","):
        path = store / f"{name}.json"  # a file a part: two may be measured at a time
        raw: Raw = json.loads(path.read_text()) if path.is_file() else {}
        for key, measure in part_of(name).cells(settings):
            if arguments.cells not in key or (key in raw and not arguments.again):
                continue
            print(f"{name} {key} …", file=sys.stderr, flush=True)
            raw[key] = measured(name, measure)
            path.write_text(json.dumps(raw, indent=1) + "\n")
            print(f"{name} {key}: {raw[key]['seconds']} s", file=sys.stderr, flush=True)
    found = {
        name: json.loads((store / f"{name}.json").read_text()) for name in PARTS if (store / f"{name}.json").is_file()
    }
    arguments.output.write_text(page(found))
    print(arguments.output)


if __name__ == "__main__":
    main()
