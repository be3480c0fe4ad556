"""What `ssh:` takes for a host, and how the command line treats the flag for host keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.benchmarks.devices.listing import list_devices
from edgekit.benchmarks.devices.registry import open_device
from edgekit.benchmarks.devices.ssh_target import own_known_hosts, parse_target
from edgekit.cli.app import run_command_line
from edgekit.errors import UserError


@pytest.mark.parametrize(
    ("argument", "user", "host", "port"),
    [
        ("pi", None, "pi", None),
        ("pi@raspberrypi.local", "pi", "raspberrypi.local", None),
        ("pi@192.168.1.7:2222", "pi", "192.168.1.7", 2222),
        ("[fe80::1%eth0]:22", None, "fe80::1%eth0", 22),
        ("my_alias", None, "my_alias", None),
    ],
)
def test_a_host_is_read_as_it_is_written(argument: str, user: str | None, host: str, port: int | None) -> None:
    """Host, user@host, port, IPv6 in brackets, aliases; the spec stays what was typed."""
    target = parse_target(argument)
    assert (target.user, target.host, target.port, target.spec) == (user, host, port, f"ssh:{argument}")


@pytest.mark.parametrize(
    "argument",
    [
        *("-oProxyCommand=touch CANARY", "a b", "$(id)", "x;y", "x" * 300, "pi@", "@host", "host:", "host:0"),
        *("host:65536", "host:x", "-pi@host", "a@b@c", "::1", "host\n", "ho\0st", "../x"),
    ],
)
def test_what_cannot_be_a_host_is_refused(argument: str) -> None:
    """Nothing that another program could take for an option, a command or a path is gone on with."""
    with pytest.raises(UserError):
        open_device(f"ssh:{argument}")
    with pytest.raises(UserError):
        open_device("ssh")


def test_listing_connects_to_no_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`edgekit devices` asks no host behind ssh that it was not given."""
    config = tmp_path / "config"
    config.write_text("Host board\n  HostName 192.0.2.1\n")
    monkeypatch.setenv("EDGEKIT_SSH_CONFIG", str(config))
    monkeypatch.setenv("EDGEKIT_ADB", "/no/adb")
    assert not [status for status in list_devices(probe=False) if status.spec.startswith("ssh")]


@pytest.mark.parametrize("devices", [[], ["local"], ["ssh:a", "ssh:b"]])
def test_the_flag_for_a_host_key_is_for_one_host(devices: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A fingerprint is one host's: with none or two named it is the user's to say which."""
    assert run_command_line(["devices", *devices, "--accept-host-key", f"SHA256:{'A' * 43}"]) == 2
    assert "one ssh device" in capsys.readouterr().err


def test_own_known_hosts_lie_in_the_configuration_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Beside the user's other settings, or where EDGEKIT_KNOWN_HOSTS says; never in ~/.ssh."""
    monkeypatch.delenv("EDGEKIT_KNOWN_HOSTS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert own_known_hosts() == tmp_path / "edgekit" / "known_hosts"
    monkeypatch.setenv("EDGEKIT_KNOWN_HOSTS", str(tmp_path / "k"))
    assert own_known_hosts() == tmp_path / "k"
