"""The one family of errors a user of edgekit can see.

Every public failure is an `EdgekitError`. It carries a stable `code`, whose fault it is (`blame`), whether
doing the same thing again could help (`retryable`), and a `hint` that names the next thing to try; where the
place that raises knows none, it is its class's own (`usual_hint`). The
command line turns `blame` into the exit status (`exit_status`), so a script can tell a typing mistake from
an unplugged cable. Anything else that reaches a user is a bug in edgekit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

__all__ = [
    "ArtifactError",
    "Blame",
    "CommandError",
    "ConversionError",
    "DeviceBatteryLow",
    "DeviceBusy",
    "DeviceDiskFull",
    "DeviceError",
    "DeviceFileMissing",
    "DeviceFlapping",
    "DeviceLost",
    "DeviceNoPython",
    "DeviceRebooted",
    "DeviceTimeout",
    "DeviceTooHot",
    "DeviceUnauthorized",
    "DeviceUnusable",
    "EdgekitError",
    "ExportError",
    "HostError",
    "HostKeyChanged",
    "HostKeyUnknown",
    "HungCommand",
    "IntegrityError",
    "Interrupted",
    "InvalidResultError",
    "LeaseLost",
    "MeasurementError",
    "MissingDependencyError",
    "ModelCrashError",
    "OutOfMemory",
    "OutputLimitError",
    "Problem",
    "RecipeError",
    "StoreError",
    "UnsupportedError",
    "UserError",
    "WorkloadError",
    "exit_status",
]


class Blame(StrEnum):
    """Whose move it is."""

    USER = "user"
    DEVICE = "device"
    LINK = "link"
    HOST = "host"
    MODEL = "model"
    BUG = "bug"


_EXIT_STATUS = {
    Blame.USER: 2,
    Blame.DEVICE: 3,
    Blame.LINK: 4,
    Blame.HOST: 5,
    Blame.MODEL: 6,
    Blame.BUG: 70,
}


def exit_status(error: EdgekitError) -> int:
    """The process exit status for `error`: 2 user, 3 device, 4 link, 5 host, 6 model, 70 bug, 130 interrupted."""
    if isinstance(error, Interrupted):
        return 130
    return _EXIT_STATUS[error.blame]


class EdgekitError(Exception):
    """Base of every failure edgekit reports; `str(error)` is the sentence a user reads."""

    code: ClassVar[str] = "EDGEKIT"
    blame: ClassVar[Blame] = Blame.BUG
    retryable: ClassVar[bool] = False

    usual_hint: ClassVar[str] = "run the same command with `--debug` and report what it prints"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint


class UserError(EdgekitError):
    """What was asked for cannot be: a wrong name, path, type or value."""

    code = "USER"
    blame = Blame.USER
    usual_hint = "`edgekit COMMAND --help` shows what can be asked for"


class RecipeError(UserError):
    """The recipe file is not one edgekit can run."""

    code = "RECIPE"
    usual_hint = "correct the recipe, then `edgekit run RECIPE`; `edgekit init` writes one that works"


class WorkloadError(UserError):
    """The user's workload cannot be found, loaded, or does not give what a workload gives."""

    code = "WORKLOAD"
    usual_hint = "correct the workload, then `edgekit check WORKLOAD`"


class ArtifactError(EdgekitError):
    """A model file or its passport is missing, corrupt, truncated or of an unknown kind."""

    code = "ARTIFACT"
    blame = Blame.MODEL
    usual_hint = "`edgekit inspect FILE` shows what it is; `edgekit convert` makes it again"


class MissingDependencyError(UserError):
    """A part of edgekit needs packages that are not installed; `extra` names what brings them."""

    code = "MISSING_DEPENDENCY"

    def __init__(self, what: str, *, extra: str, package: str) -> None:
        super().__init__(
            f"{what} needs the package '{package}', which is not installed.",
            hint=f"pip install 'edgekit[{extra}]'",
        )
        self.extra = extra
        self.package = package


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One obstacle to a conversion, said so that the user can act on it."""

    backend: str
    message: str
    op: str | None = None
    module: str | None = None
    """Dotted path of the user's submodule the op came from (`features.3.conv`)."""
    source: str | None = None
    """`file.py:line` in the user's code, where it could be told."""
    available_in: tuple[str, ...] = ()
    """Backends that do have the op."""
    hint: str | None = None

    def __str__(self) -> str:
        parts = [f"{self.backend}: {self.message}"]
        if self.module:
            parts.append(f"in {self.module}")
        if self.source:
            parts.append(f"at {self.source}")
        if self.available_in:
            parts.append(f"(available in {', '.join(self.available_in)})")
        return " ".join(parts) + (f"; {self.hint}" if self.hint else "")


class UnsupportedError(EdgekitError):
    """The backend cannot do this; `problems` lists every reason at once."""

    code = "UNSUPPORTED"
    blame = Blame.MODEL
    usual_hint = "`edgekit converters` lists what each backend can do"

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems) or "not supported", hint=hint)


class ExportError(EdgekitError):
    """`torch.export` refused the user's model; names the user's own line where it can be told."""

    code = "EXPORT"
    blame = Blame.MODEL
    usual_hint = "`edgekit check WORKLOAD` names every line that torch.export refuses"

    def __init__(self, message: str, *, source: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.source = source


class ConversionError(EdgekitError):
    """A converter failed or died; `stderr` holds the last lines it wrote."""

    code = "CONVERSION"
    blame = Blame.MODEL
    usual_hint = (
        "`edgekit why ARTIFACT WORKLOAD` looks layer by layer; `edgekit check WORKLOAD` names ops that stand in the way"
    )

    def __init__(
        self,
        message: str,
        *,
        backend: str,
        stage: str,
        op: str | None = None,
        stderr: str = "",
        hint: str | None = None,
    ) -> None:
        super().__init__(f"{backend}: {stage}: {message}", hint=hint)
        self.backend = backend
        self.stage = stage
        self.op = op
        self.stderr = stderr


class HostError(EdgekitError):
    """This machine cannot do it: disk full, no permission, a missing program."""

    code = "HOST"
    blame = Blame.HOST
    usual_hint = "`edgekit doctor` looks through this host"


class StoreError(HostError):
    """The results database cannot be read or written."""

    code = "STORE"
    usual_hint = "`edgekit doctor`; then check the disk and the rights of the workspace's folder"


class LeaseLost(HostError):
    """This process stood still past its lease on a device, which another process uses now; it gives up."""

    code = "LEASE_LOST"


class DeviceError(EdgekitError):
    """Something went wrong on or with a device."""

    code = "DEVICE"
    blame = Blame.DEVICE
    usual_hint = "`edgekit devices` shows the state of every device"

    def __init__(self, message: str, *, device: str, hint: str | None = None) -> None:
        super().__init__(f"{device}: {message}", hint=hint)
        self.device = device


class DeviceUnusable(DeviceError):
    """The device is there but cannot be measured on; the message says why."""

    code = "DEVICE_UNUSABLE"
    usual_hint = "`edgekit devices` says why and what to do"


class DeviceUnauthorized(DeviceUnusable):
    """The device does not let this computer in yet: adb's dialog was not accepted, or no ssh key."""

    code = "DEVICE_UNAUTHORIZED"
    usual_hint = "unlock the device and accept the question, or put an ssh key there; then `edgekit devices`"


class DeviceNoPython(DeviceUnusable):
    """Nothing on the device can run edgekit's runner: no Python, or one that is too old."""

    code = "DEVICE_NO_PYTHON"


class HostKeyUnknown(DeviceUnusable):
    """An ssh host whose key nobody has confirmed; the message has its fingerprint."""

    code = "HOST_KEY_UNKNOWN"
    usual_hint = "compare the fingerprint, then `edgekit devices ssh:HOST --accept-host-key FINGERPRINT`"


class HostKeyChanged(DeviceUnusable):
    """An ssh host that shows another key than the known one; never gone on with."""

    code = "HOST_KEY_CHANGED"
    usual_hint = (
        "find out why; if it is right, `ssh-keygen -R HOST`, then `edgekit devices ssh:HOST "
        "--accept-host-key FINGERPRINT`"
    )


class DeviceBusy(DeviceError):
    """Another process is measuring on this device."""

    code = "DEVICE_BUSY"
    usual_hint = "wait for the other measurement to end, or end it; then run the same command again"


class DeviceDiskFull(DeviceError):
    """No space left on the device."""

    code = "DEVICE_DISK_FULL"
    usual_hint = "free some space there (`edgekit devices` names the folder), then run the same command again"


class DeviceBatteryLow(DeviceError):
    """The battery is below the floor for measuring; it will charge."""

    code = "DEVICE_BATTERY_LOW"
    retryable = True


class DeviceTooHot(DeviceError):
    """The device is hotter than it may be, or slows itself down for heat; it will cool."""

    code = "DEVICE_TOO_HOT"
    retryable = True


class DeviceFileMissing(DeviceError):
    """The file asked for is not on the device (or is not a regular file)."""

    code = "DEVICE_FILE_MISSING"
    usual_hint = "run the same command again: what is missing is sent again"


class DeviceLost(DeviceError):
    """The link to the device broke; what the device did since is unknown until it is back."""

    code = "DEVICE_LOST"
    blame = Blame.LINK
    retryable = True
    usual_hint = (
        "check the cable or the network; `edgekit devices` shows whether the device is back; then run "
        "the same command again"
    )


class DeviceTimeout(DeviceError):
    """The device did not answer before the deadline."""

    code = "DEVICE_TIMEOUT"
    blame = Blame.LINK
    retryable = True
    usual_hint = "`edgekit devices` shows whether the device answers; then run the same command again"


class HungCommand(DeviceTimeout):
    """A command outlived its deadline while the device answered; it and what it started were killed there."""

    code = "HUNG_COMMAND"
    blame = Blame.DEVICE
    retryable = False
    usual_hint = "`edgekit devices` shows whether the device is well; if it goes on, restart the device"


class DeviceRebooted(DeviceError):
    """The device was restarted while a job ran on it (its boot id changed); that attempt is void."""

    code = "DEVICE_REBOOTED"
    retryable = True
    usual_hint = "run the same command again for a new attempt; if it restarts again, look at its power supply and heat"


class DeviceFlapping(DeviceError):
    """The link broke and came back again and again: nothing is measured on the device for a while."""

    code = "DEVICE_FLAPPING"
    blame = Blame.LINK
    usual_hint = (
        "power-cycle its USB port or hub (`uhubctl -a cycle -l HUB -p PORT`), try another cable or port, "
        "then `edgekit devices`"
    )


class CommandError(DeviceError):
    """A command on the device ended with a non-zero status."""

    code = "COMMAND"
    usual_hint = "`edgekit devices` shows whether the device is well; run with `--debug` for the whole command"

    def __init__(
        self, *, device: str, argv: Sequence[str], returncode: int, stdout: str, stderr: str, hint: str | None = None
    ) -> None:
        tail = (stderr.strip() or stdout.strip()).splitlines()[-5:]
        said = ": " + " | ".join(tail) if tail else ""
        super().__init__(f"`{' '.join(argv)[:200]}` ended with {returncode}{said}", device=device, hint=hint)
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


class OutputLimitError(DeviceError):
    """A device sent more than it may."""

    code = "OUTPUT_LIMIT"
    usual_hint = "`edgekit devices` shows which device it is; do not trust it before you know why"


class IntegrityError(DeviceError):
    """What arrived is not what was sent (sha256 differs)."""

    code = "INTEGRITY"
    usual_hint = "run the same command again; if it happens again, the device's storage or the cable is faulty"


class MeasurementError(DeviceError):
    """A measurement could not be made or cannot be trusted."""

    code = "MEASUREMENT"
    usual_hint = "run the same command again; `--debug` shows each step"


class InvalidResultError(MeasurementError):
    """What a device sent back as a result breaks the wire format; `field` names the place."""

    code = "INVALID_RESULT"
    usual_hint = "run with `--fresh`; if it happens again, do not trust the device"

    def __init__(self, message: str, *, device: str, field: str) -> None:
        super().__init__(f"result field '{field}': {message}", device=device)
        self.field = field


class ModelCrashError(MeasurementError):
    """The model's runtime died (signal) or was killed for memory while running on the device."""

    code = "MODEL_CRASH"
    blame = Blame.MODEL
    usual_hint = (
        "`edgekit inspect ARTIFACT` shows its ops; convert it for another runtime or scheme with `edgekit convert`"
    )

    def __init__(self, message: str, *, device: str, signal: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, device=device, hint=hint)
        self.signal = signal


class OutOfMemory(ModelCrashError):
    """The model did not fit into the device's memory: the system ended its process, or an allocation failed."""

    code = "OUT_OF_MEMORY"
    usual_hint = (
        "end what else runs there, or make the model smaller: a quantized scheme (`edgekit convert`) or a smaller batch"
    )


class Interrupted(EdgekitError):
    """The user pressed Ctrl-C; everything finished so far is kept."""

    code = "INTERRUPTED"
    blame = Blame.USER
    usual_hint = "run the same command again to go on"
