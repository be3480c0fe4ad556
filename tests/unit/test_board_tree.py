"""What a board is built from, without building one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.benchmarks.devices import board, board_arch, board_tree, cell
from edgekit.benchmarks.devices.board import board_unavailable_reason
from edgekit.benchmarks.devices.board_tree import debian_mirror, recipe_id
from edgekit.benchmarks.devices.cell import remove_tree

DEB822 = """# a comment
Types: deb deb-src
URIs: http://mirror.example.org/debian-security
Suites: bookworm-security
Components: main

Types: deb
# another
URIs: https://mirror.example.org/debian/
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def _sources(monkeypatch: pytest.MonkeyPatch, *places: Path) -> None:
    monkeypatch.delenv("EDGEKIT_DEBIAN_MIRROR", raising=False)
    monkeypatch.setattr(board_tree, "_SOURCES", tuple(map(str, places)))


@pytest.mark.parametrize(
    ("name", "text", "mirror"),
    [
        ("debian.sources", DEB822, "https://mirror.example.org/debian/"),
        ("debian.sources", DEB822.replace("Types: deb\n", "Enabled: no\nTypes: deb\n"), None),
        (
            "a.list",
            "deb [signed-by=/x arch=amd64] http://m.example.org/debian trixie main # c\n",
            "http://m.example.org/debian",
        ),
        ("a.list", "# deb http://m.example.org/debian trixie main\n", None),
        ("a.list", "deb-src http://m.example.org/debian trixie main\n", None),
        ("a.list", "deb http://m.example.org/ubuntu noble main universe\n", None),
        ("a.list", "deb http://m.example.org/debian-security trixie-security main\n", None),
        ("a.list", "deb cdrom:[Debian]/ trixie main\n", None),
        ("a.list", "garbage\n\x00\n", None),
    ],
)
def test_the_hosts_own_mirror_is_used(
    name: str, text: str, mirror: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mirror comes from the host's apt, when that is a Debian archive; else mmdebstrap chooses."""
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / name).write_text(text)
    _sources(monkeypatch, tmp_path / "sources.list", tmp_path / "sources.list.d")
    assert debian_mirror() == mirror


def test_a_mirror_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """EDGEKIT_DEBIAN_MIRROR goes before what apt uses."""
    monkeypatch.setenv("EDGEKIT_DEBIAN_MIRROR", "http://near.example.org/debian")
    assert debian_mirror() == "http://near.example.org/debian"


def test_a_trees_name_follows_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same recipe has the same name; another package or layout has another, so no stale tree is used."""
    name = recipe_id("amd64")
    assert recipe_id("amd64") == name
    monkeypatch.setattr(board_tree, "_PACKAGES", (*board_tree._PACKAGES, "one-more"))
    assert recipe_id("amd64") != name


def test_what_is_missing_is_named_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence: not root, no ip, no mmdebstrap, no keys of Debian's archive, in that order."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(board_arch.platform, "system", lambda: "Darwin")
    assert "needs Linux" in (board_unavailable_reason() or "")
    monkeypatch.setattr(board_arch.platform, "system", lambda: "Linux")
    monkeypatch.setattr(board_arch.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cell.os, "geteuid", lambda: 1000)
    assert "needs root" in (board_unavailable_reason() or "")
    monkeypatch.setattr(board, "cell_unavailable_reason", lambda: None)
    monkeypatch.setattr(board.shutil, "which", lambda name: None if name == "ip" else f"/usr/bin/{name}")
    assert (board_unavailable_reason() or "").endswith("apt install iproute2")
    monkeypatch.setattr(board.shutil, "which", lambda name: None if name == "mmdebstrap" else f"/usr/bin/{name}")
    assert (board_unavailable_reason() or "").endswith("apt install mmdebstrap")
    monkeypatch.setattr(board.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(board, "KEYRING", tmp_path / "none.gpg")
    assert (board_unavailable_reason() or "").endswith("apt install debian-archive-keyring")


@pytest.mark.parametrize(("arch", "part"), [("arm64", "0xd08"), ("armhf", "0xc0f")])
def test_an_emulated_processor_is_described_core_by_core(arch: str, part: str) -> None:
    """As many blocks as cores, numbered, each with the part that qemu emulates."""
    blocks = board_arch.ARCHES[arch].cpuinfo(3).strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [f"processor\t: {n}" for n in range(3)]
    assert all(f"CPU part\t: {part}" in block for block in blocks)


def test_what_an_arm_board_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No handler, one that is off, one that is not static: a sentence each, and one for what does not exist."""
    monkeypatch.setattr(board_arch.platform, "system", lambda: "Linux")
    monkeypatch.setattr(board_arch.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(board_arch, "_BINFMT", tmp_path)
    handler = tmp_path / "qemu-aarch64"
    assert (board_arch.arch_unavailable_reason("arm64") or "").endswith("apt install qemu-user-static")
    handler.write_text("disabled\nflags: POF\n")
    assert "switched off" in (board_arch.arch_unavailable_reason("arm64") or "")
    handler.write_text("enabled\nflags: PO\n")
    assert "flag F" in (board_arch.arch_unavailable_reason("arm64") or "")
    handler.write_text("enabled\ninterpreter /usr/libexec/qemu\nflags: POF\n")
    assert board_arch.arch_unavailable_reason("arm64") is None
    assert "qemu-arm " in (board_arch.arch_unavailable_reason("armhf") or "")
    assert "board:arm64" in (board_arch.arch_unavailable_reason("pdp11") or "")


def test_removing_a_tree_follows_no_link(tmp_path: Path) -> None:
    """A link inside the tree is removed, what it points to is not; a tree that is not there is no error."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").touch()
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "link").symlink_to(tmp_path / "outside")
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    assert (tmp_path / "outside" / "kept").exists()
    remove_tree(tmp_path / "tree")
    (tmp_path / "top").symlink_to(tmp_path / "outside")
    with pytest.raises(NotADirectoryError):
        remove_tree(tmp_path / "top")
