"""A run directory, a daemon or a terminal in trouble: what still works, and what is reported."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fake.cli import REFUSES
from tests.fake.node import Ended, Hook, Node
from tests.waiting import until


class Hanging(NamedTuple):
    """A hook whose every request hangs."""

    node: Node
    hook: Hook


class Hung(NamedTuple):
    """What came of it."""

    node: Node
    ended: Ended


@pytest.fixture(scope="module", autouse=True)
def hanging(nodes: Callable[[], Node]) -> dict[str, Hanging]:
    """A hook for each state before a client that never answers; begun before all other tests."""
    hung = {}
    for state in ("primary", "backup", "fault"):
        node = nodes()
        node.on("any", "sleep 100")
        hung[state] = Hanging(node, node.start(state))
    return hung


# -- run directories ----------------------------------------------------------------------------


def unusable(node: Node, kind: str) -> None:
    """Spoil the run directory."""
    if kind == "a file":
        node.run_dir.write_text("")
        return
    if kind == "a symbolic link":
        (node.world / "elsewhere").mkdir(mode=0o700)
        node.run_dir.symlink_to(node.world / "elsewhere")
        return
    if kind == "of a missing parent":
        node.run_dir = node.run_dir / "missing" / "run"
        return
    node.run_dir.mkdir(mode=0o700)
    if kind == "others can write":
        node.run_dir.chmod(0o777)
    elif kind == "a group can write":
        node.run_dir.chmod(0o770)
    elif kind == "somebody else's":
        os.chown(node.run_dir, 65534, 65534)
    elif kind == "read-only":
        node.sh(f"mount -t tmpfs -o ro,mode=700 none {node.run_dir}")
    elif kind == "full":
        node.sh(
            f"mount -t tmpfs -o mode=700,size=64k none {node.run_dir}; "
            f"head -c 64k /dev/zero >{node.run_dir}/filler"
        )
    elif kind == "without inodes":
        node.sh(f"mount -t tmpfs -o mode=700,nr_inodes=1 none {node.run_dir}")


UNUSABLE = [
    "others can write", "a group can write", "somebody else's", "a symbolic link", "a file",
    "of a missing parent", "read-only", "without inodes", "full",
]  # fmt: skip


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_run_directory_that_cannot_be_used_stops_no_promotion(node: Node, kind: str) -> None:
    """The promotion goes on without lock or record: degraded, with one line on stderr."""
    unusable(node, kind)
    ended = node.run("primary")
    assert node.asked == ["-c", "-f", "-R", "-B"]
    assert (ended.code, ended.event["outcome"]) == (3, "degraded")
    (line,) = ended.lines
    assert str(node.run_dir) in line


@pytest.mark.parametrize("kind", ["others can write", "full"])
def test_a_backup_without_a_record_never_purges(node: Node, kind: str) -> None:
    """Without lock and record nobody knows whether a primary came: nothing is purged."""
    unusable(node, kind)
    node.has(internal=3, holds=3)
    ended = node.run("backup")
    assert "-t" not in node.asked
    assert ended.code == 3


@pytest.mark.parametrize("umask", [0o177, 0o000])
def test_the_run_directory_is_safe_under_any_umask(node: Node, umask: int) -> None:
    """0700 and usable, under keepalived's umask 0177 too."""
    node.start("primary", umask=umask).wait()
    assert node.run_dir.stat().st_mode & 0o7777 == 0o700
    assert json.loads(node.last)["outcome"] == "ok"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory.json", "{"),
        ("lock", "x y"),
        ("ticket.1.1.other", ""),
        ("ticket.99999999999.1.backup", ""),
    ],
)
def test_junk_in_the_run_directory_stops_no_promotion(node: Node, name: str, text: str) -> None:
    """A torn or foreign file, from a crash or another version, is no reason not to commit."""
    node.run_dir.mkdir(mode=0o700)
    (node.run_dir / name).write_text(text)
    ended = node.run("primary")
    assert node.asked == ["-c", "-f", "-R", "-B"]
    assert ended.code == 0


def test_a_failure_beside_an_unusable_run_directory_is_a_line_of_its_own(node: Node) -> None:
    """Each trouble once: what is wrong with the directory, and why the promotion failed."""
    node.run_dir.touch()
    node.on("-c", REFUSES)
    ended = node.run("primary")
    assert ended.code == 1
    directory, failure = ended.lines
    assert str(node.run_dir) in directory
    assert "syntax error" in failure
    assert str(node.run_dir) not in failure


# -- a dead or hung daemon ----------------------------------------------------------------------


def test_an_unreached_daemon_is_asked_again(node: Node) -> None:
    """No daemon listened at first: asked again, and the number of attempts is reported."""
    node.on("-c", "get tries; put tries $((value + 1)); [ $value -ge 2 ] || unreached")
    ended = node.run("primary")
    assert ended.code == 0
    assert ended.step("commit")["attempts"] == 3
    assert node.asked == ["-c", "-c", "-c", "-f", "-R", "-B"]


@pytest.mark.parametrize("request_", ["-s", "-c"])
def test_a_daemon_that_ends_before_it_is_asked_is_asked_again(node: Node, request_: str) -> None:
    """The client connects, and is killed by SIGPIPE when it sends: the request was not made."""
    node.on(request_, "get tries; put tries $((value + 1)); [ $value -ge 2 ] || kill -PIPE $$")
    ended = node.run("primary")
    assert (ended.code, ended.event["outcome"]) == (0, "ok")
    assert node.number("tries") >= 3


def test_a_daemon_that_ends_before_it_answers_is_asked_again(node: Node) -> None:
    """The client reads an end of file, as from one that has nothing to report."""
    node.on("-s", "get tries; put tries $((value + 1)); [ $value -ne 1 ] || exit 0")
    ended = node.run("primary")
    assert (ended.code, ended.event["outcome"]) == (0, "ok")
    assert node.number("tries") >= 3


DOWN = '[ -e $world/up ] || [ "$request" = -d ] || unreached'


def test_a_primary_starts_a_daemon_that_is_down(node: Node) -> None:
    """Started by `conntrackd -d`; its cache is lost, nothing could be recovered: degraded."""
    node.on("any", DOWN)
    node.on("-d", ": >$world/up")
    ended = node.run("primary")
    assert node.asked.count("-d") == 1
    assert (ended.code, ended.event["outcome"]) == (3, "degraded")
    assert (ended.event["expected"], ended.event["recovered"]) == (None, 0)
    assert f"-C {node.config} -d" in ended.step("start")["command"]
    assert node.asked[-3:] == ["-f", "-R", "-B"]


def test_a_backup_starts_a_daemon_that_is_down(node: Node) -> None:
    """A standby needs its daemon."""
    node.on("any", DOWN)
    node.on("-d", ": >$world/up")
    node.has(holds=3)
    node.run("backup")
    assert node.asked.count("-d") == 1
    assert "-n" in node.asked[node.asked.index("-d") :]


@pytest.mark.parametrize("state", ["fault", "stop"])
def test_a_fault_and_a_stop_start_nothing(node: Node, state: str) -> None:
    """A daemon that is down stays down."""
    node.on("any", DOWN)
    node.run(state)
    assert node.asked == []


def test_a_daemon_that_does_not_start_fails_the_promotion(node: Node) -> None:
    """Exit 1, with what the daemon reported."""
    node.on("any", DOWN)
    node.on("-d", 'refuse "no such interface"')
    ended = node.run("primary")
    assert (ended.code, ended.event["outcome"]) == (1, "failed")
    assert "no such interface" in ended.event["reason"]
    assert ended.event["recovered"] == 0


def test_a_stale_lock_of_a_dead_daemon_is_removed(node: Node) -> None:
    """Nobody listens and no daemon lives: the lock is stale, and would stop every start."""
    node.socket.unlink()
    (node.world / "lock").touch()
    node.on("any", DOWN)
    node.on("-d", "[ ! -e $world/lock ] || exit 1; : >$world/up; : >$world/ctl")
    ended = node.run("primary")
    assert ended.event["outcome"] == "degraded"
    assert ended.step("start")["outcome"] == "ok"


def test_a_systemctl_of_the_caller_s_path_is_not_run(node: Node) -> None:
    """Where systemd runs, its unit is asked for by the system's program, not by the caller's."""
    node.sh("mkdir -p /run/systemd/system")
    node.on("any", DOWN)
    node.on("-d", ": >$world/up")
    stand_in = node.world / "systemctl"
    stand_in.write_text(f"#!/bin/sh\necho run >>{node.world}/stand-in\nexit 1\n")
    stand_in.chmod(0o755)
    path = {"PATH": f"{node.world}:{os.environ['PATH']}"}
    ended = node.spawn(node.arguments("primary"), path).wait()
    assert ended.step("start")["outcome"] == "ok"
    assert not (node.world / "stand-in").exists()


def test_the_lock_of_a_living_daemon_is_left_alone(node: Node) -> None:
    """A daemon that lives but cannot be reached: exit 1, naming its pid, its lock untouched."""
    node.socket.unlink()
    (node.world / "lock").touch()
    node.on("any", DOWN)
    daemon = node.world / "conntrackd"
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, daemon)
    living = node.spawn([str(daemon), "100"])
    until(lambda: Path(f"/proc/{living.pid}/exe").readlink() == daemon, "the daemon lives")
    ended = node.run("primary")
    assert ended.code == 1
    assert str(living.pid) in ended.event["reason"]
    assert (node.world / "lock").exists()
    assert "-d" not in node.asked


# -- a hung daemon ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hung(hanging: dict[str, Hanging]) -> dict[str, Hung]:
    """What came of each of them."""
    return {state: Hung(node, hook.wait()) for state, (node, hook) in hanging.items()}


@pytest.mark.parametrize("state", ["primary", "backup", "fault"])
def test_a_hung_daemon_fails_a_transition(hung: dict[str, Hung], state: str) -> None:
    """failed, exit 1."""
    _, ended = hung[state]
    assert (ended.code, ended.event["outcome"]) == (1, "failed")


@pytest.mark.parametrize("state", ["primary", "backup", "fault"])
def test_a_hung_daemon_is_given_up_in_time(hung: dict[str, Hung], state: str) -> None:
    """Within 60 s of the hook's start."""
    _, ended = hung[state]
    assert ended.event["waited_seconds"] + ended.event["seconds"] < 60


@pytest.mark.parametrize("state", ["primary", "backup", "fault"])
def test_no_client_is_left_behind(hung: dict[str, Hung], state: str) -> None:
    """Every client that hung was ended, and all that it had started."""
    node, _ = hung[state]
    assert node.clients
    assert node.clients_left == []


@pytest.mark.parametrize("state", ["primary", "backup", "fault"])
def test_a_request_that_hung_is_not_repeated(hung: dict[str, Hung], state: str) -> None:
    """Reached, no answer in time: never asked again."""
    node, _ = hung[state]
    assert len(node.asked) == len(set(node.asked))


def test_a_hung_promotion_reports_what_to_do(
    hung: dict[str, Hung],
) -> None:
    """After a failed promotion the reader has advice what to type next."""
    _, ended = hung["primary"]
    assert "ftfw-transition primary" in ended.event["advice"]


# -- a daemon unlike its file, a terminal that stops --------------------------------------------


@pytest.mark.parametrize("state", ["primary", "notify G1 MASTER_RX_LOWER_PRI"])
def test_a_daemon_without_an_internal_cache_is_asked_no_flush(node: Node, state: str) -> None:
    """Its file was edited, it was not restarted: -f and -f internal would flush the kernel."""
    node.on(
        "-s",
        "cat <<E\ninternal bypass:\n\ncache external:\ncurrent active connections: 0\nE\nexit 0",
    )
    ended = node.run(*state.split())
    assert not {"-f", "-f internal"} & set(node.asked)
    assert ended.code in {1, 3}
    assert "restart conntrackd" in ended.event["reason"]


def test_a_fault_after_a_promotion_that_was_cut_before_its_resync_purges_nothing(
    node: Node,
) -> None:
    """The internal cache is empty then, and shows nothing of what only this node holds."""
    node.has(external=0, internal=0)
    node.on("-R", "exit 1")
    node.run("primary")
    node.on("-R", "")
    node.run("fault")
    assert node.asked.count("-t") == 0


def test_a_terminal_that_is_not_read_holds_no_lock(node: Node) -> None:
    """A person typed Ctrl-S, or the connection is the one that fails over: the next one acts."""
    terminal, end = pty.openpty()
    fill_terminal(end)
    first = node.start("primary", stderr=end)
    until(lambda: "-B" in node.asked, "the promotion has asked all it asks")
    assert node.run("backup").code == 0
    os.close(terminal)
    os.close(end)
    first.wait()


def fill_terminal(end: int) -> None:
    """Write until no more is taken, as when nobody reads."""

    def full() -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(end, b"x")
        # The kernel moves what was written on, and takes more, for a while.
        return not select.select([], [end], [], 0.2)[1]

    os.set_blocking(end, False)
    until(full, "the terminal takes no more")
    os.set_blocking(end, True)
