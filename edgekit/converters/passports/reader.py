"""The child of `inspect_file`: `python -m edgekit.converters.passports.reader FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from edgekit.artifact import Format
from edgekit.converters.passports.facts import FileFacts, InspectionAnswer, InspectionRequest
from edgekit.errors import ArtifactError, MissingDependencyError
from edgekit.isolation import enter_child
from edgekit.schema import read_record, write_atomically

__all__ = ["main", "read_facts"]


def read_facts(path: Path, kind: Format) -> FileFacts:
    """What the file says of itself; raises ArtifactError. For child processes only."""
    if kind is Format.TFLITE:
        from edgekit.converters.passports.tflite import read_tflite

        return read_tflite(path)
    if kind is Format.EXECUTORCH:
        from edgekit.converters.passports.executorch import read_executorch

        return read_executorch(path)
    from edgekit.converters.passports.onnx import read_onnx

    return read_onnx(path)


def main(folder: Path) -> None:
    """Answer the request in `folder`."""
    enter_child()
    request = read_record(InspectionRequest, folder / "request.json")
    try:
        answer = InspectionAnswer(facts=read_facts(Path(request.path), request.format))
    except ArtifactError as e:
        answer = InspectionAnswer(error=e.message, hint=e.hint)
    except MissingDependencyError as e:
        answer = InspectionAnswer(missing_package=e.package)
    write_atomically(folder / "answer.json", answer.model_dump_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
