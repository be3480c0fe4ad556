"""A job whose name was used before: what that one left behind is not taken for the new one's."""

from pathlib import Path

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.local import LocalDevice


def test_an_exit_status_left_by_an_earlier_job_does_not_stop_a_new_one(local_device: LocalDevice) -> None:
    """Its wrapper may write `exit` after the folder was emptied; the next start once took it for its own."""
    folder = Path(local_device.job_dir("0123456789abcdef.1"))
    folder.mkdir(parents=True)
    (folder / "exit").write_text("0\n")
    assert local_device.start("0123456789abcdef.1", ["sh", "-c", "sleep 5"], Deadline.after(20))
    assert local_device.is_alive("0123456789abcdef.1", Deadline.after(20))
    local_device.kill("0123456789abcdef.1", Deadline.after(20))
