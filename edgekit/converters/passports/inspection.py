"""The passport of a file that has none: read in a child process, so that a hostile or broken file harms nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgekit.artifact import Format, Passport
from edgekit.converters.passports.facts import FileFacts, InspectionAnswer, InspectionRequest, infer_scheme
from edgekit.errors import ArtifactError, MissingDependencyError
from edgekit.isolation import run_child
from edgekit.schema import read_record, sha256_of, write_atomically

__all__ = ["inspect_file"]

INSPECTION_SECONDS = 120
INSPECTION_MEMORY_BYTES = 16 * 1024**3
"""Of address space, which torch alone reserves gigabytes of; a bomb ends here rather than in the machine's swap."""


def inspect_file(path: Path) -> Passport:
    """The passport of a `.tflite`, `.pte` or `.onnx` file, from its bytes alone.

    Raises ArtifactError when it is missing, of another kind, corrupt or truncated, MissingDependencyError when the
    reader's package is not installed.
    """
    kind = Format.of(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    facts = _facts_from_child(path, kind)
    return Passport(
        name=path.name,
        format=kind,
        scheme=(scheme := infer_scheme(facts)),
        file=path.name,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        inputs=facts.inputs,
        outputs=facts.outputs,
        ops=facts.ops,
        unquantized_ops=facts.float_ops if scheme is not None and scheme.is_static else (),
        delegates=facts.delegates,
        minimum_runtime=facts.minimum_runtime,
        warnings=facts.warnings,
        transposes=facts.transposes,
        boundaries=facts.boundaries,
        peak_activation_bytes=facts.peak_activation_bytes,
        signatures=facts.signatures,
    )


def _facts_from_child(path: Path, kind: Format) -> FileFacts:
    with tempfile.TemporaryDirectory(prefix="edgekit-inspect-") as name:
        folder = Path(name)
        request = InspectionRequest(path=str(path.resolve()), format=kind)
        write_atomically(folder / "request.json", request.model_dump_json())
        ended = run_child(
            "edgekit.converters.passports.reader",
            folder,
            timeout_seconds=INSPECTION_SECONDS,
            memory_bytes=INSPECTION_MEMORY_BYTES,
        )
        answer_file = folder / "answer.json"
        if ended.returncode != 0 or not answer_file.is_file():
            how = "did not finish" if ended.timed_out else f"died (signal {ended.signal})" if ended.signal else "failed"
            last = ended.stderr_tail.splitlines()[-1:] or [""]
            raise ArtifactError(f"{path}: its reader {how}: the file is corrupt, or hostile {last[0][:200]}".rstrip())
        answer = read_record(InspectionAnswer, answer_file)
    if answer.missing_package is not None:
        raise MissingDependencyError(f"reading {path.suffix} files", extra=kind.value, package=answer.missing_package)
    if answer.facts is None:
        raise ArtifactError(answer.error or f"{path}: cannot be read", hint=answer.hint)
    return answer.facts
