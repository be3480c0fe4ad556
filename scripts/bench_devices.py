"""What devices cost: push, overhead of a job, the runner's own time, four boards at once, repeatability.

    make bench-devices                                # every part
    make bench-devices PARTS=push,overhead ROUNDS=3   # some, few rounds

Writes docs/benchmarks/devices.md and, beside it, devices.json with every raw sample. A part that was not run keeps
what the files say of it, with the date and machine of then. A figure that is missed is in the page as missed; the
exit status is 1 then. Parts on the board need root and the board's packages.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from device_bench import here, jobs, pushing  # noqa: E402
from device_bench.part import Part  # noqa: E402

from edgekit.pipeline.facts import host_facts  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks" / "devices.md"
PARTS: dict[str, tuple[Callable[[int, Path], Part], int]] = {
    "push": (pushing.push, 9),
    "overhead": (jobs.overhead, 9),
    "runner": (here.runner_cost, 9),
    "fleet": (jobs.fleet, 4),
    "repeat": (here.repeatability, 10),
}
"""Name to what measures it and in how many rounds."""

HEAD = """\
# Devices: what measuring costs

Made by `make bench-devices`; raw samples are in [devices.json](devices.json). Each part says when and on which machine
it was made, and the load it started under: on a machine with other work the best and the 10 % point tell more than the
median.
"""


def main() -> int:
    """Run the parts asked for; 1 when one missed a figure or could not be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; all when left out")
    parser.add_argument("--rounds", type=int, help="rounds of each part, instead of its own number")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page; the samples go beside it")
    arguments = parser.parse_args()
    wanted = arguments.parts.split(",")
    if unknown := [name for name in wanted if name not in PARTS]:
        parser.error(f"no part '{unknown[0]}'; there are {', '.join(PARTS)}")
    if arguments.rounds is not None and arguments.rounds < 2:
        parser.error("--rounds: at least 2")
    samples = arguments.output.with_suffix(".json")
    record: dict[str, Any] = json.loads(samples.read_text()) if samples.exists() else {}
    is_good = True
    for name in wanted:
        print(f"{name} …", file=sys.stderr, flush=True)
        record[name] = _measured(name, arguments.rounds)
        is_good &= record[name]["met"]
        samples.parent.mkdir(parents=True, exist_ok=True)
        samples.write_text(json.dumps(record) + "\n")
        sections = [record[known]["text"] for known in PARTS if known in record]
        arguments.output.write_text("\n".join([HEAD, *sections]))
        print(record[name]["text"], flush=True)
    return 0 if is_good else 1


def _measured(name: str, rounds: int | None) -> dict[str, Any]:
    facts = host_facts()
    where = (
        f"{datetime.date.today().isoformat()}, {facts.cpu_model}, {facts.cores} cores, {facts.os}, "
        f"Python {facts.python}, load {facts.load_average_1m} at the start."
    )
    measure, usual = PARTS[name]
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as folder:
        try:
            part = measure(rounds or usual, Path(folder))
        except Exception as e:  # noqa: BLE001  a part that cannot be run is in the page as such; the others go on
            traceback.print_exc()
            text = f"## {name}\n\n**Not measured**: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}\n"
            return {"text": f"{text}\n{where}\n", "met": False, "raw": {}}
    return {"text": f"{part.markdown()}\n{where}\n", "met": all(t.met for t in part.targets), "raw": part.raw}


if __name__ == "__main__":
    sys.exit(main())
