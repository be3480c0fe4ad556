"""The runner as one file: a zip of its sources that Python starts directly.

The same sources give the same bytes (fixed times, order and modes), so the file's sha256 names the runner's
version in a job's key and it is pushed once.
"""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

from edgekit.schema import sha256_of, write_atomically

__all__ = ["pack_runner", "runner_bytes"]

_MAIN = "import sys\n\nfrom edgekit_runner.__main__ import main\n\nsys.exit(main(sys.argv[1:]))\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@cache
def runner_bytes() -> bytes:
    """The packed runner."""
    source = Path(__file__).parent / "runner"
    files = {f"edgekit_runner/{p.relative_to(source).as_posix()}": p.read_bytes() for p in source.rglob("*.py")}
    files["__main__.py"] = _MAIN.encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.external_attr = 0o644 << 16
            member.create_system = 3
            archive.writestr(member, files[name])
    return buffer.getvalue()


def pack_runner(folder: Path) -> tuple[Path, str]:
    """Write `runner.pyz` into `folder`; its path and sha256."""
    path = folder / "runner.pyz"
    write_atomically(path, runner_bytes())
    return path, sha256_of(path)
