"""Reaching a host by ssh: host keys, logins, configuration, and what each refusal says."""

from __future__ import annotations

import json
import os
import pwd
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest
from support.proxy import Proxy
from support.sshd import ClientFiles, Sshd, fingerprint, make_key

from edgekit.benchmarks.devices.base import Deadline
from edgekit.benchmarks.devices.local import LocalDevice
from edgekit.benchmarks.devices.registry import open_device
from edgekit.benchmarks.devices.ssh import SshDevice, SshTransport, accept_host_key, parse_target
from edgekit.cli.app import run_command_line
from edgekit.errors import (
    DeviceLost,
    DeviceUnauthorized,
    DeviceUnusable,
    HostError,
    HostKeyChanged,
    HostKeyUnknown,
    UserError,
    exit_status,
)


def _soon(seconds: float = 30.0) -> Deadline:
    return Deadline.after(seconds)


def _use(files: ClientFiles, monkeypatch: pytest.MonkeyPatch) -> ClientFiles:
    for name, value in files.environment().items():
        monkeypatch.setenv(name, value)
    return files


@pytest.fixture
def client(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClientFiles:
    """A client that knows the session's sshd."""
    return _use(sshd.client(tmp_path / "client"), monkeypatch)


def _device(tmp_path: Path, argument: str = "testboard") -> SshDevice:
    return SshDevice(SshTransport(parse_target(argument)), root=PurePosixPath(tmp_path / "device"))


def _refused(argument: str = "testboard") -> Exception:
    """What connecting raises."""
    transport = SshTransport(parse_target(argument))
    try:
        transport.open(_soon())
    except Exception as e:
        return e
    finally:
        transport.close()
    raise AssertionError("connected")


def test_an_unknown_host_is_refused_with_its_fingerprint(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No trust on first use: the error has the fingerprint and the flag, and nothing is stored by asking."""
    files = _use(sshd.client(tmp_path / "client", known=False), monkeypatch)
    error = _refused()
    assert isinstance(error, HostKeyUnknown)
    shown = fingerprint(sshd.host_key)
    assert shown in error.message
    assert error.hint is not None
    assert f"edgekit devices ssh:testboard --accept-host-key {shown}" in error.hint
    assert (error.code, exit_status(error), error.retryable) == ("HOST_KEY_UNKNOWN", 3, False)
    assert not files.known_hosts.exists()


def test_a_compared_fingerprint_is_stored_and_known_from_then_on(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--accept-host-key stores the key in edgekit's own file, for its owner only; later commands need no flag."""
    files = _use(sshd.client(tmp_path / "client", known=False), monkeypatch)
    shown = fingerprint(sshd.host_key)
    argv = ["devices", "ssh:testboard", "--json"]
    assert run_command_line(argv) == 3
    assert shown in json.loads(capsys.readouterr().out)[0]["reason"]
    assert run_command_line([*argv, "--accept-host-key", shown]) == 0
    assert json.loads(capsys.readouterr().out)[0]["info"]["kind"] == "ssh"
    assert files.known_hosts.read_text() == sshd.known_hosts_line()
    assert stat.S_IMODE(files.known_hosts.stat().st_mode) == 0o600
    assert run_command_line(argv) == 0
    assert run_command_line([*argv, "--accept-host-key", shown]) == 0
    assert files.known_hosts.read_text() == sshd.known_hosts_line()  # once
    assert not (files.config.parent / "user_known_hosts").exists()


def test_another_fingerprint_than_the_hosts_is_not_accepted(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flag is a fingerprint, not a yes: a host that shows another key stays unknown."""
    files = _use(sshd.client(tmp_path / "client", known=False), monkeypatch)
    with pytest.raises(HostKeyUnknown, match="not the one accepted"):
        accept_host_key("ssh:testboard", f"SHA256:{'A' * 43}", _soon())
    for wrong in ("yes", "SHA256:short", f"MD5:{'a' * 43}", ""):
        with pytest.raises(UserError):
            accept_host_key("ssh:testboard", wrong, _soon())
    with pytest.raises(UserError):
        accept_host_key("local", fingerprint(sshd.host_key), _soon())
    assert not files.known_hosts.exists()


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
@pytest.mark.parametrize("where", ["own", "user"])
def test_a_changed_key_is_always_refused(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str
) -> None:
    """Another key than the known one, of the same kind or another, in either file: refused, accepted or not."""
    files = _use(sshd.client(tmp_path / "client", known=False), monkeypatch)
    other = make_key(tmp_path / "other", kind=kind).with_suffix(".pub").read_text().split()
    file = files.known_hosts if where == "own" else files.config.parent / "user_known_hosts"
    line = f"[127.0.0.1]:{sshd.port} {other[0]} {other[1]}\n"
    file.write_text(line)
    error = _refused()
    assert isinstance(error, HostKeyChanged)
    assert fingerprint(sshd.host_key) in error.message
    assert fingerprint(tmp_path / "other") in error.message
    assert error.hint is not None
    assert f"ssh-keygen -R '[127.0.0.1]:{sshd.port}' -f {file}" in error.hint
    with pytest.raises(HostKeyChanged):
        accept_host_key("ssh:testboard", fingerprint(sshd.host_key), _soon())
    assert file.read_text() == line


def test_a_key_that_changes_while_connected_is_refused(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is lost, and another machine answers in the device's place: no command goes to it."""
    with Sshd(tmp_path / "other") as other, Proxy(("127.0.0.1", sshd.port)) as proxy:
        _use(sshd.client(tmp_path / "client", port=proxy.port), monkeypatch)
        other.authorized.write_text(sshd.authorized.read_text())  # it would let anyone in
        with _device(tmp_path) as device:
            proxy._target = ("127.0.0.1", other.port)
            proxy.cut()
            with pytest.raises(HostKeyChanged):
                device.run(["touch", str(tmp_path / "canary")], _soon())
    assert not (tmp_path / "canary").exists()


def test_a_revoked_key_is_refused(sshd: Sshd, client: ClientFiles) -> None:
    """@revoked in known_hosts counts, even beside a line that knows the key."""
    client.known_hosts.write_text(f"{sshd.known_hosts_line()}@revoked {sshd.known_hosts_line()}")
    error = _refused()
    assert isinstance(error, HostKeyChanged)
    assert "revoked" in error.message


def test_hashed_names_and_the_users_file_are_known(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that the user's own known_hosts knows needs no accepting, hashed as Debian writes it."""
    files = _use(sshd.client(tmp_path / "client", known=False), monkeypatch)
    file = files.config.parent / "user_known_hosts"
    file.write_text(sshd.known_hosts_line())
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    assert "127.0.0.1" not in file.read_text()
    with _device(tmp_path) as device:
        assert device.run(["echo", "in"], _soon()).stdout == "in\n"


def test_a_host_key_that_differs_only_by_port_is_unknown_not_changed(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server of the same machine, on another port, is no sign of an attack."""
    files = _use(sshd.client(tmp_path / "client", known=False), monkeypatch)
    kind, data = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()[:2]
    files.known_hosts.write_text(f"127.0.0.1 {kind} {data}\n")
    assert isinstance(_refused(), HostKeyUnknown)


def test_a_certificate_of_a_known_authority_is_enough(
    tmp_path: Path, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """@cert-authority, as fleets use it: no line per host; a certificate for another name is refused."""
    authority = make_key(tmp_path / "authority")
    line = " ".join(authority.with_suffix(".pub").read_text().split()[:2])
    for principal, is_good in (("127.0.0.1", True), ("other.example", False)):
        folder = tmp_path / principal
        server = Sshd(folder, settings=f"HostCertificate {folder}/host_key-cert.pub")
        sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "t", "-h", "-n", principal, f"{folder}/host_key.pub"]
        subprocess.run(sign, check=True)
        with server:
            files = _use(server.client(folder / "client", known=False), monkeypatch)
            files.known_hosts.write_text(f"@cert-authority * {line}\n")
            if is_good:
                with _device(tmp_path) as device:
                    assert device.run(["echo", "in"], _soon()).stdout == "in\n"
            else:
                assert isinstance(_refused(), DeviceUnusable)


def test_an_unreadable_known_hosts_is_said(client: ClientFiles) -> None:
    """A broken line is not passed over: it may be the one that matters."""
    client.known_hosts.write_text("nonsense\n")
    error = _refused()
    assert isinstance(error, HostError)
    assert str(client.known_hosts) in error.message


def test_no_accepted_key_is_unauthorized_and_nothing_is_asked(sshd: Sshd, client: ClientFiles, tmp_path: Path) -> None:
    """A key the host does not know, one with a passphrase, or none: DEVICE_UNAUTHORIZED with what to do, no prompt."""
    text = client.config.read_text()
    stranger, locked = make_key(tmp_path / "stranger"), make_key(tmp_path / "locked", passphrase="secret words")
    with sshd.authorized.open("a") as authorized:
        authorized.write(locked.with_suffix(".pub").read_text())
    for line in (f"IdentityFile {stranger}", f"IdentityFile {locked}"):
        client.config.write_text(text.replace(f"IdentityFile {sshd.key}", line))
        error = _refused()
        assert isinstance(error, DeviceUnauthorized), (line, error)
        assert error.hint is not None
        assert "ssh-copy-id" in error.hint
        assert "passphrase" in error.hint
        assert not error.retryable


def test_a_key_file_that_is_not_there_is_passed_over_and_said(
    sshd: Sshd, client: ClientFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As `ssh` does: an absent IdentityFile is named, and the others are used."""
    text = client.config.read_text()
    client.config.write_text(f"IdentityFile {tmp_path}/nosuch\n{text}")
    with _device(tmp_path) as device:
        assert device.run(["echo", "in"], _soon()).stdout == "in\n"
    assert f"no such identity: {tmp_path}/nosuch" in caplog.text


def test_a_key_in_the_agent_is_used(sshd: Sshd, client: ClientFiles, tmp_path: Path) -> None:
    """A key with a passphrase, opened for the user's agent, logs in."""
    agent = tmp_path / "agent"
    server = subprocess.Popen(["ssh-agent", "-D", "-a", str(agent)], stdout=subprocess.DEVNULL)
    try:
        deadline = _soon(10)
        while not agent.exists():
            assert deadline.remaining
        environment = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
        subprocess.run(["ssh-add", "-q", str(sshd.key)], check=True, env=environment, capture_output=True)
        text = client.config.read_text().replace(f"IdentityFile {sshd.key}", "IdentityFile none")
        text = text.replace("IdentityAgent none", f"IdentityAgent {agent}").replace("IdentitiesOnly yes", "")
        client.config.write_text(text)
        with _device(tmp_path) as device:
            assert device.run(["echo", "in"], _soon()).stdout == "in\n"
    finally:
        server.terminate()
        server.wait()


def test_refused_and_unreachable_may_go_away(client: ClientFiles, tmp_path: Path) -> None:
    """Nobody listens, or what listens hangs up: the link's fault, to be tried again, with the place in the message."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = _refused(f"127.0.0.1:{port}")
    assert isinstance(error, DeviceLost)
    assert f"127.0.0.1 port {port} refuses" in error.message
    assert (error.retryable, exit_status(error)) == (True, 4)
    with _Answer(b"") as server:
        assert isinstance(_refused(f"127.0.0.1:{server.port}"), DeviceLost)


def test_what_is_no_ssh_server_is_said(client: ClientFiles) -> None:
    """Something else on the port: unusable, not a lost link that would be tried for long."""
    with _Answer(b"SSH-2.0-other\r\n" + b"something else" * 200) as server:
        error = _refused(f"127.0.0.1:{server.port}")
    assert isinstance(error, DeviceUnusable)
    assert f"127.0.0.1 port {server.port} is not a usable ssh server" in error.message


def test_a_name_that_is_none_is_said(client: ClientFiles) -> None:
    """A name nobody has: said with the name."""
    error = _refused("no-such-host.invalid")
    assert isinstance(error, (DeviceUnusable, DeviceLost))
    assert "no-such-host.invalid" in str(error)


class _Answer:
    """A listener that says `text` to whoever comes, and hangs up."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.sendall(self._text)


@pytest.fixture
def serve(tmp_path: Path, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Sshd]]:
    """Starts an sshd with settings of its own, and a client that knows it."""
    started: list[Sshd] = []

    def start(settings: str) -> Sshd:
        server = Sshd(tmp_path / f"server{len(started)}", settings=settings)
        server.start()
        started.append(server)
        _use(server.client(tmp_path / f"client{len(started)}"), monkeypatch)
        return server

    yield start
    for server in started:
        server.stop()


def test_an_account_without_a_shell_is_unusable(serve: Callable[[str], Sshd], tmp_path: Path) -> None:
    """A forced command, or a login that only says no: unusable with what it said, not a lost link."""
    serve('ForceCommand echo "This account is currently not available."; exit 1')
    with pytest.raises(DeviceUnusable, match="currently not available"), _device(tmp_path):
        pass


def test_a_login_that_prints_does_not_spoil_answers(serve: Callable[[str], Sshd], tmp_path: Path) -> None:
    """What a login shell prints by itself is not taken for output; SFTP, which it breaks, says so."""
    noise = tmp_path / "noise"
    noise.write_text("echo welcome; echo beware >&2\n")
    serve(f"SetEnv SHLVL=2 BASH_ENV={noise}")
    with _device(tmp_path) as device:
        done = device.run(["sh", "-c", "printf out; printf err >&2"], _soon())
        assert (done.stdout, done.stderr) == ("out", "err")
        if pwd.getpwuid(os.getuid()).pw_shell.endswith("bash"):
            with pytest.raises(DeviceUnusable, match="SFTP") as caught:
                device.write(device.root / "jobs" / "x", b"x", _soon())
            assert caught.value.hint is not None
            assert ".bashrc" in caught.value.hint


def test_crowded_logins_are_waited_for(serve: Callable[[str], Sshd]) -> None:
    """Ten at once at an sshd that turns half of them away: all get in."""
    serve("MaxStartups 3:50:20")
    outcomes: list[object] = []

    def enter() -> None:
        transport = SshTransport(parse_target("testboard"))
        try:
            transport.open(_soon(60))
            outcomes.append(None)
        except Exception as e:
            outcomes.append(e)
        finally:
            transport.close()

    threads = [threading.Thread(target=enter) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [None] * 10


def test_a_jump_host_is_gone_through_and_checked(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ProxyJump of the user's configuration works, and the jump host's key is checked as the device's is."""
    settings = (
        f"Host inner\n  HostName 127.0.0.1\n  Port {sshd.port}\n  ProxyJump testboard\n  HostKeyAlias the-inner\n"
    )
    files = _use(sshd.client(tmp_path / "client", settings=settings), monkeypatch)
    kind, data = sshd.known_hosts_line().split()[1:]
    port = f"[the-inner]:{sshd.port}"
    jump = files.known_hosts.read_text()
    files.known_hosts.write_text(f"{jump}{port} {kind} {data}\n")
    with _device(tmp_path, "inner") as device:
        assert device.run(["echo", "in"], _soon()).stdout == "in\n"
    files.known_hosts.write_text(f"{port} {kind} {data}\n")
    error = _refused("inner")
    assert isinstance(error, HostKeyUnknown)
    assert error.device == "ssh:testboard"


def test_one_device_under_two_addresses_is_one(sshd: Sshd, client: ClientFiles, tmp_path: Path) -> None:
    """Alias and address, and this host without ssh: one identity, so one lock; and it is said to be this host."""
    with (
        _device(tmp_path) as first,
        _device(tmp_path, f"127.0.0.1:{sshd.port}") as second,
        LocalDevice(root=tmp_path / "local") as local,
    ):
        infos = [device.probe(_soon()) for device in (first, second, local)]
    assert len({info.serial for info in infos}) == 1
    assert [info.spec for info in infos] == ["ssh:testboard", f"ssh:127.0.0.1:{sshd.port}", "local"]
    assert all(info.shares_host_cpu for info in infos)


def test_a_device_without_an_identity_has_its_host_keys(
    sshd: Sshd, client: ClientFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No machine id and no serial number: the host key tells it, not the address."""
    monkeypatch.setattr("edgekit.benchmarks.devices.ssh.PROBE_SCRIPT", 'say() { printf \'%s=%s\\n\' "$1" "$2"; }')
    with _device(tmp_path) as device:
        assert device.probe(_soon()).serial == f"ssh-{fingerprint(sshd.host_key)}"


def test_the_folder_is_below_the_home(sshd: Sshd, client: ClientFiles) -> None:
    """Without a root of its own the device uses the account's cache folder, and knows it once it is connected."""
    with open_device("ssh:testboard") as device:
        assert device.root == PurePosixPath(sshd.folder) / ".cache/edgekit/devices/ssh"
        assert device.run(["ls", str(device.root)], _soon()).stdout.split() == ["cas", "jobs", "site"]


def test_the_configuration_that_is_named_has_to_be_there(client: ClientFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """EDGEKIT_SSH_CONFIG names a file that is read instead of ~/.ssh/config; absent or broken is the user's to fix."""
    client.config.write_text("Port nonsense\n")
    broken = _refused()
    assert isinstance(broken, UserError)
    assert "nonsense" in broken.message
    monkeypatch.setenv("EDGEKIT_SSH_CONFIG", "/no/such/file")
    absent = _refused()
    assert isinstance(absent, UserError)
    assert "/no/such/file" in absent.message
