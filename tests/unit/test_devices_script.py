"""Shell text for devices: quoting, names and the sentinel."""

from __future__ import annotations

import random
import shlex
from pathlib import PurePosixPath

import pytest

from edgekit.benchmarks.devices.script import checked_name, command, new_nonce, quote, under_root, unwrap, wrap
from edgekit.benchmarks.devices.transport import Reply
from edgekit.errors import DeviceLost, UserError

NONCE = "0" * 31 + "1"


def _reply(out: bytes, err: bytes, status: int = 0, link_status: int = 0) -> Reply:
    end = f"\n@{NONCE}:{status}@".encode()
    return Reply(returncode=link_status, stdout=out + end, stderr=err + end)


def test_a_whole_reply_has_the_commands_own_status() -> None:
    """The status in the sentinel counts, not the link's; the streams are the command's, to the byte."""
    assert unwrap(_reply(b"out\n", b"err", 7, link_status=255), NONCE, "d") == Reply(
        returncode=7, stdout=b"out\n", stderr=b"err"
    )


def test_no_reply_cut_after_any_byte_is_accepted() -> None:
    """Every proper prefix of stdout with any prefix of stderr is DeviceLost, even with link status 0 (adb 29)."""
    whole = _reply(b"line\n" * 60, b"warn\n" * 8, 255)
    for cut in range(len(whole.stdout)):
        with pytest.raises(DeviceLost):
            unwrap(Reply(returncode=0, stdout=whole.stdout[:cut], stderr=whole.stderr), NONCE, "d")
    for cut in range(len(whole.stderr)):
        with pytest.raises(DeviceLost):
            unwrap(Reply(returncode=0, stdout=whole.stdout, stderr=whole.stderr[:cut]), NONCE, "d")


@pytest.mark.parametrize(
    "stdout",
    [
        b"",
        f"\n@{NONCE}:0@\n".encode(),
        f"\n@{NONCE}:0@ ".encode(),
        f"@{NONCE}:0@".encode(),
        f"\n@{NONCE}:-1@".encode(),
        f"\n@{NONCE}:0000@".encode(),
        f"\n@{NONCE[::-1]}:0@".encode(),
        b"\n@:0@",
    ],
)
def test_what_only_looks_like_the_end_is_not(stdout: bytes) -> None:
    """Another nonce, text after the sentinel, or a status that is none: DeviceLost."""
    with pytest.raises(DeviceLost):
        unwrap(Reply(returncode=0, stdout=stdout, stderr=f"\n@{NONCE}:0@".encode()), NONCE, "d")


def test_streams_that_disagree_are_not_a_reply() -> None:
    """Two different statuses cannot both be true."""
    stdout, stderr = f"\n@{NONCE}:0@".encode(), f"\n@{NONCE}:1@".encode()
    with pytest.raises(DeviceLost):
        unwrap(Reply(returncode=0, stdout=stdout, stderr=stderr), NONCE, "d")


def test_quoting_is_what_a_shell_undoes() -> None:
    """Any word, quoted, is one word again and the same (Python's own shell lexer as the judge)."""
    rng = random.Random(0)
    alphabet = "ab '\"\\$`;&|<>(){}[]*?~#!%=\n\té☃-"
    for _ in range(2000):
        word = "".join(rng.choices(alphabet, k=rng.randrange(12)))
        assert shlex.split(quote(word)) == [word]


def test_a_nonce_is_new_each_time() -> None:
    """A device cannot know the end of a reply beforehand."""
    assert len({new_nonce() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("name", ["a", "0", "A.b_c-d", "x" * 128, "3f" * 32])
def test_plain_names_are_names(name: str) -> None:
    """Letters, digits, dot, underscore, dash; up to 128."""
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "-x", "_x", "a/b", "a b", "a\n", "ü", "x" * 129, "a\0"])
def test_other_names_are_refused(name: str) -> None:
    """Anything that could leave a folder, hide, or be an option is UserError."""
    with pytest.raises(UserError):
        checked_name(name)


@pytest.mark.parametrize("path", ["/", "/data", "/data/root", "/data/root/../x", "/data/rootx/y", "/data/root/.h", "x"])
def test_paths_outside_the_root_are_refused(path: str) -> None:
    """Only what lies below the root, by plain names, is reached."""
    with pytest.raises(UserError):
        under_root(PurePosixPath(path), PurePosixPath("/data/root"))


def test_a_script_longer_than_adbd_takes_is_refused() -> None:
    """adbd closes the connection above 65,535 bytes; the limit here is below that, counted in bytes."""
    wrap("x" * 59_000, NONCE)
    with pytest.raises(UserError, match="longer than"):
        wrap("é" * 30_000, NONCE)


def test_environment_names_are_checked() -> None:
    """A name that is not a variable's is refused before it reaches a shell."""
    for name in ("", "1A", "A B", "A;id", "A=B", "Á"):
        with pytest.raises(UserError):
            command(["true"], {name: "x"})
