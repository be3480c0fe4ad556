"""Provisioning: right wheels for the device, offline the second time, nothing unpacked outside its folder."""

import errno
import os
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path, PurePosixPath
from typing import cast

import pytest

from edgekit.benchmarks.devices.base import Completed, Deadline, Device
from edgekit.benchmarks.values import DeviceInfo
from edgekit.errors import DeviceDiskFull, DeviceUnusable, HostError, MissingDependencyError
from edgekit.runtimes import provision as provision_module
from edgekit.runtimes import wheels
from edgekit.runtimes.catalog import EXECUTORCH, LITERT, ONNXRUNTIME, RUNTIMES, RuntimeSpec, Wheel
from edgekit.runtimes.device_scripts import install_wheels
from edgekit.runtimes.provision import runtime_identity
from edgekit.runtimes.wheels import resolve_wheels, target_of

BOARD = DeviceInfo(spec="board", kind="adb", serial="s", abi="aarch64", libc="glibc 2.36", python="3.13.5")


def wheel(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize(
    "name", ["../evil.py", "/evil.py", "a/../../evil.py", "..\\evil.py", "a/../evil.py"], ids=lambda n: n
)
def test_a_wheel_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    """Zip slip: no member is written, not even the honest ones before it."""
    site = tmp_path / "deep" / "site"
    site.mkdir(parents=True)
    bad = wheel(tmp_path / "bad", {"ok.py": "", name: "evil"})
    with pytest.raises(install_wheels.RefusedError):
        install_wheels.unpack(str(bad), str(site / "x"))
    assert list(site.iterdir()) == []
    assert not list(tmp_path.rglob("evil.py"))


def test_a_wheel_with_a_link_is_refused(tmp_path: Path) -> None:
    """A symbolic link could lead a later member out."""
    with zipfile.ZipFile(tmp_path / "bad", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system = 3
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(install_wheels.RefusedError, match="plain"):
        install_wheels.unpack(str(tmp_path / "bad"), str(tmp_path / "x"))


def test_a_wheel_that_is_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says it will unfold to is looked at before a byte is written."""
    monkeypatch.setattr(install_wheels, "MAX_BYTES", 1000)
    bomb = wheel(tmp_path / "bomb", {"a": "0" * 600, "b": "0" * 600})
    with pytest.raises(install_wheels.RefusedError, match="bytes"):
        install_wheels.unpack(str(bomb), str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def install(tmp_path: Path, check: str, *shas: str) -> "subprocess.CompletedProcess[str]":
    folders = [str(tmp_path / "site"), str(tmp_path / "cas")]
    argv = [sys.executable, install_wheels.__file__, *folders, check, "ready", *shas]
    return subprocess.run(argv, capture_output=True, text=True)


def test_the_installer_asks_unpacks_and_proves(tmp_path: Path) -> None:
    """Missing wheels are asked for; with them the check runs, once; the answer is the path to use."""
    (tmp_path / "cas").mkdir()
    check = f"import there; open({str(tmp_path / 'checks')!r}, 'a').write('x')"
    assert '"missing": ["aa"]' in install(tmp_path, check, "aa").stdout
    wheel(tmp_path / "cas" / "aa", {"there/__init__.py": ""})
    for _ in range(2):
        done = install(tmp_path, check, "aa")
        assert f'"paths": ["{tmp_path}/site/aa"]' in done.stdout, done.stderr
    assert (tmp_path / "checks").read_text() == "x"
    assert (tmp_path / "site" / "ready").is_file()


def test_the_installer_says_what_does_not_import(tmp_path: Path) -> None:
    """A wheel that cannot be imported on the device fails here, with the reason, and not in the first measurement."""
    (tmp_path / "cas").mkdir()
    wheel(tmp_path / "cas" / "aa", {"there.py": "import libthatisnot"})
    for _ in range(2):
        done = install(tmp_path, "import there", "aa")
        assert done.returncode == install_wheels.BROKEN
        assert "libthatisnot" in done.stderr
        assert not (tmp_path / "site" / "ready").exists()


def test_the_installer_refuses_by_exit_status(tmp_path: Path) -> None:
    """A hostile wheel in the device's store is an error the host can tell from others."""
    (tmp_path / "cas").mkdir()
    wheel(tmp_path / "cas" / "aa", {"../../evil": ""})
    assert install(tmp_path, "pass", "aa").returncode == install_wheels.REFUSED
    (tmp_path / "cas" / "bb").write_text("no zip")
    assert install(tmp_path, "pass", "bb").returncode == install_wheels.REFUSED


def test_platform_tags_go_down_from_the_devices_glibc() -> None:
    """A wheel built for a newer glibc than the device's must not be offered."""
    tags = target_of(BOARD).platforms()
    assert tags[0] == "manylinux_2_36_aarch64"
    assert "manylinux2014_aarch64" in tags
    assert not any("2_37" in tag or "x86" in tag for tag in tags)


@pytest.mark.parametrize(
    ("facts", "said"),
    [({"python": None}, "no python3"), ({"libc": "musl 1.2"}, "glibc"), ({"abi": None}, "ABI")],
)
def test_devices_that_cannot_take_wheels_are_told_why(facts: dict[str, str | None], said: str) -> None:
    """No Python, no glibc or an unknown machine: one sentence, before anything is fetched."""
    with pytest.raises(DeviceUnusable, match=said):
        target_of(BOARD.model_copy(update=facts))


def test_a_python_too_old_for_the_runtime_is_told(tmp_path: Path) -> None:
    """The executorch wheel starts at Python 3.12; 3.11 is refused naming it."""
    with pytest.raises(DeviceUnusable, match=r"3\.11") as caught:
        resolve_wheels(EXECUTORCH, BOARD.model_copy(update={"python": "3.11.2"}), tmp_path)
    assert "3.12" in (caught.value.hint or "")


@pytest.mark.parametrize("runtime", [ONNXRUNTIME, EXECUTORCH], ids=lambda r: r.name)
def test_a_runtime_that_is_not_made_for_32_bits_is_told(tmp_path: Path, runtime: RuntimeSpec) -> None:
    """One sentence before anything is fetched, and what does run there."""
    with pytest.raises(DeviceUnusable, match=rf"{runtime.name} is not published .*armv7l") as caught:
        resolve_wheels(runtime, BOARD.model_copy(update={"abi": "armv7l", "python": "3.11.2"}), tmp_path)
    assert "tflite" in (caught.value.hint or "")


def test_32_bit_arm_has_the_last_tflite_runtime(tmp_path: Path) -> None:
    """It is the one wheel, numpy is the system's; a Python past its last one is refused with the range that serves."""
    board = BOARD.model_copy(update={"abi": "armv7l", "python": "3.11.2"})
    assert runtime_identity(LITERT, board) == "tflite-runtime==2.14.0"
    assert runtime_identity(LITERT, BOARD).endswith("ai-edge-litert==2.3.0")
    with pytest.raises(DeviceUnusable, match=r"3\.13") as caught:
        resolve_wheels(LITERT, board.model_copy(update={"python": "3.13.5"}), tmp_path)
    assert "before 3.12" in (caught.value.hint or "")


TOY = RuntimeSpec(
    name="toy", formats=(), imports=(("edgekit_no_such", "edgekit-no-such"),), check="pass", extra="toy",
    wheels=(Wheel(name="toy", version="1"),),
)  # fmt: skip


def test_wheels_are_fetched_once_and_again_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second request asks no index; a file that changed in the cache is fetched anew."""
    calls = []

    def pip(arguments: list[str], what: str, target: object) -> None:
        calls.append(arguments)
        folder = Path(arguments[arguments.index("--dest") + 1])
        folder.mkdir()
        wheel(folder / "toy-1-py3-none-any.whl", {"toy.py": ""})

    monkeypatch.setattr(wheels, "_pip", pip)
    ((path, sha),) = resolve_wheels(TOY, BOARD, tmp_path)
    assert resolve_wheels(TOY, BOARD, tmp_path) == ((path, sha),)
    assert len(calls) == 1
    assert calls[0][-1] == "toy==1"
    path.write_bytes(b"rotten")
    assert resolve_wheels(TOY, BOARD, tmp_path)[0][0].read_bytes() != b"rotten"
    assert len(calls) == 2


def test_without_index_and_cache_the_host_is_to_blame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that cannot be reached is a HostError with a hint, and leaves no half-filled cache."""
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(HostError, match="toy") as caught:
        resolve_wheels(TOY, BOARD, tmp_path)
    assert "index" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_an_absent_runtime_on_this_host_names_its_extra() -> None:
    """`local` uses what is installed; what is not is one sentence with the extra to install."""
    with pytest.raises(MissingDependencyError) as caught:
        runtime_identity(TOY, BOARD.model_copy(update={"kind": "local"}))
    assert caught.value.extra == "toy"


def test_every_format_has_its_runtime() -> None:
    """The table of runtimes and the runner's table of backends name the same."""
    from edgekit.runtimes.runner.backends import BACKENDS

    assert set(RUNTIMES.names()) >= set(BACKENDS)
    for spec in (LITERT, ONNXRUNTIME, EXECUTORCH):
        assert spec.name in BACKENDS
        assert all(w.version for w in spec.wheels)


def _unpacked(site: Path, name: str, days: float, size: int = 10) -> Path:
    """An unpacked wheel in `site` that was last asked for so many days ago."""
    folder = site / (name * 64)
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(b"0" * size)
    then = time.time() - days * 24 * 3600
    os.utime(folder, (then, then))
    return folder


def test_a_sweep_removes_what_is_old_and_what_is_too_much(tmp_path: Path) -> None:
    """By age, then the oldest by size; never what is asked for, was just asked for, or is no wheel's folder."""
    old, asked, recent, older, younger = (
        _unpacked(tmp_path, name, days, 100) for name, days in (("a", 40), ("b", 40), ("c", 0), ("d", 3), ("e", 2))
    )
    (tmp_path / "ready-x").touch()
    assert install_wheels.sweep(str(tmp_path), [asked.name]) == 1
    assert not old.exists()
    assert install_wheels.sweep(str(tmp_path), [asked.name], size=150) == 1
    assert not older.exists()
    assert all(path.exists() for path in (asked, recent, younger, tmp_path / "ready-x"))
    assert install_wheels.sweep(str(tmp_path), [asked.name], seconds=-1, size=0) == 1
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["b", "c", "r"]


def test_a_sweep_leaves_what_a_process_runs_from(tmp_path: Path) -> None:
    """A runtime on the path of a running process stays, however old; once that ended, it goes."""
    used = _unpacked(tmp_path, "a", 400)
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "PYTHONPATH": str(used)}) as job:
        assert install_wheels.sweep(str(tmp_path), [], seconds=-1, size=0) == 0
        job.kill()
    assert install_wheels.sweep(str(tmp_path), [], seconds=-1, size=0) == 1


def test_a_full_device_is_swept_once_and_then_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space while unpacking: what is idle goes and it is tried again; with nothing to remove it is the error."""
    site, cas = tmp_path / "site", tmp_path / "cas"
    cas.mkdir()
    wheel(cas / "aa", {"there.py": ""})
    idle = _unpacked(site, "a", 1)
    plain = install_wheels.unpack

    def unpack(source: str, target: str) -> None:
        if idle.exists() or not cas.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(source, target)

    monkeypatch.setattr(install_wheels, "unpack", unpack)
    assert install_wheels.main(str(site), str(cas), "pass", "ready", ["aa"]) == 0
    assert not idle.exists()
    assert not (cas / "aa").exists()  # unpacked, it is needed no more
    idle.mkdir()  # recent: it stays
    wheel(cas / "bb", {"more.py": ""})
    assert install_wheels.main(str(site), str(cas), "pass", "ready", ["bb"]) == install_wheels.FULL


class FullOnce:
    """A device that has no room for a wheel until it was told to free some."""

    spec, root, python = "full", PurePosixPath("/edgekit"), "python3"

    def __init__(self) -> None:
        self.said: list[list[str]] = []
        self.sent = 0

    def put(self, source: Path, deadline: Deadline) -> PurePosixPath:
        if not self.said:
            raise DeviceDiskFull("no space left", device=self.spec)
        self.sent += 1
        return self.root / "cas" / source.name

    def run(self, argv: list[str], deadline: Deadline) -> Completed:
        self.said.append(argv)
        return Completed(argv=tuple(argv), returncode=0, stdout='{"freed": 1}', stderr="")


def test_a_device_too_full_for_a_wheel_is_asked_to_free_some(tmp_path: Path) -> None:
    """Once, keeping the wheels of this runtime, and the wheel is sent again."""
    device = FullOnce()
    provision_module._put(cast(Device, device), "/i.py", tmp_path / "w", ["aa", "bb"], Deadline.after(5))
    assert device.said == [["python3", "/i.py", "--free", "/edgekit/site", "aa", "bb"]]
    assert device.sent == 1


def test_the_installer_frees_by_its_command_line(tmp_path: Path) -> None:
    """What the host sends to a full device: all that is idle goes, the named ones stay."""
    gone, kept = _unpacked(tmp_path, "a", 1), _unpacked(tmp_path, "b", 1)
    argv = [sys.executable, install_wheels.__file__, "--free", str(tmp_path), kept.name]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == '{"freed": 1}\n'
    assert not gone.exists()
    assert kept.exists()
