"""Text from outside, by each way in: no traceback, and nothing raw in a log or on a terminal."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from primary_backup.site.render import EXAMPLE
from tests.fake.node import Ended, Node
from tests.test_cli import on_terminal

ACTS = b"\x1b[2J\xc2\x9b2J\xe2\x80\xa8\xe2\x80\xae\xe2\x81\xa6\xd8\x9c"
"""Two ways to clear a terminal, a line separator, and marks that turn the text after them."""
NAME = os.fsdecode(b"G\xff\n" + ACTS)
"""A name that is no UTF-8, of two lines."""
DOWN = '[ -e $world/up ] || [ "$request" = -d ] || unreached'


def printable(text: str) -> bool:
    """Whether no line of it holds more than text; by the newline alone, as a terminal sees it."""
    return all(line.isprintable() for line in text.split("\n"))


def is_clean(node: Node, ended: Ended) -> bool:
    """Whether all that a command has written anywhere is printable, and no traceback is in it."""
    assert "Traceback" not in ended.err
    left = [path.read_text() for path in node.run_dir.glob("*.json")]
    return all(map(printable, (ended.out, ended.err, *left)))


def lock_file(node: Node) -> bytes:
    """Have conntrackd.conf name a lock file that is no text; it is there, and stale."""
    name = (
        os.fsencode(node.world) + b"/lock\xff\x1b[2J\xc2\x9b"
    )  # a path takes in anything but a space
    conf = node.config.read_bytes().replace(os.fsencode(node.world / "lock"), name)
    node.config.write_bytes(conf)
    Path(os.fsdecode(name)).touch()
    node.socket.unlink()
    return name


@pytest.mark.parametrize("state", ["MASTER", "BACKUP", "FAULT", "STOP"])
def test_a_name_of_notify_is_recorded(node: Node, state: str) -> None:
    """The transition ends as with any other name, and the record names which one it was."""
    ended = node.run("notify", NAME, state, "--json")
    assert ended.code == 0
    assert is_clean(node, ended)
    assert r"G\udcff\n" in json.loads(ended.out)["cause"]
    assert node.last == ended.out


def test_a_name_of_notify_in_the_system_s_log_is_printable(node: Node) -> None:
    """Byte by byte what journald gets."""
    with node.log_socket() as log:
        node.run("notify", NAME, "STOP")
        line = log.recv(10_000).decode()
    assert line.isprintable()
    assert r"G\\udcff\\n" in line


def test_a_name_that_is_no_state_is_refused(node: Node) -> None:
    """One line, in the log as on stderr."""
    ended = node.run("notify", "G1", NAME)
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert is_clean(node, ended)


def test_what_the_client_reports_is_printable(node: Node) -> None:
    """In the reason, in the table on a terminal, and in the line below it."""
    (node.world / "says").write_bytes(b"no \xff" + ACTS)
    node.on("any", 'refuse "$(cat $world/says)"')
    ended = node.run("backup")
    assert ended.code == 1
    assert "no \N{REPLACEMENT CHARACTER}" in ended.event["reason"]
    assert is_clean(node, ended)
    node.on("any", "")
    node.on("-c", 'refuse "$(cat $world/says)"')
    code, written = on_terminal(node, "primary")
    assert code == 1
    assert "no \N{REPLACEMENT CHARACTER}" in written
    assert printable(written)


@pytest.mark.parametrize(
    ("typed", "is_there"),
    [
        (("primary",), True),
        (("primary",), False),
        (("primary", "--dry-run"), True),
        (("primary", "--dry-run"), False),
        (("unlock",), False),
    ],
)
def test_a_path_of_an_option_is_printable(
    node: Node, typed: tuple[str, ...], *, is_there: bool
) -> None:
    """A directory may have any name, as long as it is UTF-8."""
    elsewhere = node.world.parent / ACTS.decode()
    if is_there:
        node.world.rename(elsewhere)
    ended = node.run("--config", str(elsewhere / "conntrackd.conf"), *typed)
    assert is_clean(node, ended)
    assert r"\x1b[2J\x9b2J\u2028" in (ended.out + ended.err).replace(r"\\", "\\")


def test_a_path_of_an_option_is_one_line(node: Node) -> None:
    """It begins the conntrackd.conf that is kept, as a comment: a second line were a setting."""
    ended = node.run("--config", f"{node.config}\nGeneral {{ }}", "primary")
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert node.calls == []


def test_a_lock_file_that_is_no_text_is_removed(node: Node) -> None:
    """`unlock` names which one, and a promotion starts its daemon."""
    name = lock_file(node)
    ended = node.run("unlock")
    assert ended.code == 0
    assert r"lock\udcff\x1b[2J\x9b removed" in ended.out
    assert is_clean(node, ended)

    Path(os.fsdecode(name)).touch()
    node.on("any", DOWN)
    node.on("-d", ": >$world/up; : >$world/ctl")
    ended = node.run("primary")
    assert ended.step("start")["outcome"] == "ok"
    assert not Path(os.fsdecode(name)).exists()
    assert is_clean(node, ended)


def test_a_lock_file_that_is_no_text_ends_no_follower(node: Node) -> None:
    """It starts the daemon, records what it did, shows systemd, and follows on."""
    name = lock_file(node)
    node.on("any", DOWN)
    node.on("-d", ": >$world/up; : >$world/ctl")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(node.world / "notify"))
        follower = node.follow(environment={"NOTIFY_SOCKET": str(node.world / "notify")})
        follower.send("MASTER")
        (start,) = [each for each in follower.finished(1)["steps"] if each["name"] == "start"]
        assert r"lock\udcff" in start["reason"]
        assert not Path(os.fsdecode(name)).exists()
        follower.send("BACKUP")
        assert follower.finished(2)["state"] == "backup"
        manager.setblocking(False)
        reported = []
        while True:
            try:
                reported.append(manager.recv(65536).decode())
            except BlockingIOError:
                break
    assert all(map(printable, reported))
    assert printable(json.dumps(follower.events, ensure_ascii=False))
    assert printable(node.last)


def test_a_name_in_the_fifo_is_printable(node: Node) -> None:
    """Of the group that is followed, and of an instance of it that has met a rival."""
    name = os.fsdecode(b"G\xff" + ACTS)
    follower = node.follow("GROUP", name)
    follower.write(b'GROUP "%s" MASTER 0\n' % os.fsencode(name))
    assert r"\x1b[2J\x9b2J\u2028" in follower.finished(1)["cause"]
    follower.write(b'INSTANCE "%s" MASTER_RX_LOWER_PRI 0\n' % os.fsencode(name))
    assert r"\x1b[2J\x9b2J\u2028" in follower.finished(2)["cause"]
    assert printable((node.world / "follow.0.log").read_text())
    assert printable(node.last)


@pytest.mark.parametrize("option", ["--group", "--instance"])
def test_a_fifo_that_cannot_be_followed_is_named(node: Node, option: str) -> None:
    """One line of advice, whatever its path and whomever it should follow."""
    path = node.world / ACTS.decode()
    path.touch()
    ended = node.run("follow", option, NAME, str(path))
    assert (ended.code, len(ended.lines)) == (1, 1)
    assert is_clean(node, ended)


@pytest.mark.parametrize("option", ["--config", "--conntrackd", "--run-dir"])
def test_a_path_that_is_no_text_is_refused(node: Node, option: str) -> None:
    """Nothing is asked, and the line that reports it is printable."""
    ended = node.run(option, f"/{NAME}", "primary")
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert is_clean(node, ended)
    assert node.calls == []


@pytest.mark.parametrize("option", ["--site", "--node", "--output"])
def test_whatever_is_given_to_render_is_printable(node: Node, tmp_path: Path, option: str) -> None:
    """What is missing or cannot be made is named in one line."""
    site = tmp_path / "site.toml"
    site.write_text(node.run("render", "--example").out)
    (tmp_path / "file").touch()
    typed = {"--site": str(site), "--node": "fw-1", "--output": str(tmp_path / "out")}
    typed[option] = {"--output": f"{tmp_path}/file/{NAME}"}.get(option, f"{tmp_path}/{NAME}")
    ended = node.run("render", *(notification for pair in typed.items() for notification in pair))
    assert (ended.code, len(ended.lines)) == (1, 1)
    assert is_clean(node, ended)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize(
    "typed", [("primary", "--json"), ("primary", "--dry-run"), ("render", "--example")]
)
def test_what_is_printed_is_utf_8_in_every_locale(
    node: Node, typed: tuple[str, ...], encoding: str
) -> None:
    """A locale that lacks a dash, an arrow or a letter costs neither an outcome nor the output."""
    letters = node.world / "Zürich – →"
    letters.mkdir()
    config = letters / "conntrackd.conf"
    node.config.rename(config)
    arguments = [*node.arguments(), "--config", str(config), *typed]
    ended = node.spawn(arguments, {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}).wait()
    assert ended.code == 0
    if typed[0] == "render":
        assert ended.out == Path(EXAMPLE).read_text(encoding="utf-8")
    else:
        assert "Zürich – →" in ended.out
