"""log.py: JSON lines with identifier and priority, and a log that never holds up a transition."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings

from primary_backup.system.log import Buffered, Log, SystemLog
from tests.fake.node import Node
from tests.test_printable import ANY
from tests.waiting import until

LINE = re.compile(rb"<(?P<priority>\d+)>ftfw-transition\[(?P<pid>\d+)\]: (?P<json>.*)", re.DOTALL)
INFO, WARNING, ERROR = 30, 28, 27  # LOG_DAEMON, and these severities


@pytest.fixture
def log(tmp_path: Path) -> Iterator[socket.socket]:
    """A log socket, as journald's is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "log"))
        listening.settimeout(5)
        yield listening


def record(level: int = logging.INFO, text: str = "text") -> logging.LogRecord:
    """One record of logging's."""
    return logging.LogRecord("name", level, "", 0, text, None, None)


def system_log(path: str) -> SystemLog:
    """A handler for that socket; what nobody listens to is kept nowhere."""
    return SystemLog(path, logging.NullHandler())


def received(log: socket.socket) -> list[tuple[int, int, dict[str, Any]]]:
    """Everything in the log: priority, pid and event of each line."""
    lines = []
    log.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            match = LINE.fullmatch(log.recv(1 << 20))
            assert match
            lines.append((int(match["priority"]), int(match["pid"]), json.loads(match["json"])))
    return lines


def fill(log: socket.socket) -> None:
    """Fill the log, which nobody reads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(log.getsockname())
        with contextlib.suppress(BlockingIOError):
            while True:
                sender.send(b"x")


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.INFO, INFO), (logging.WARNING, WARNING), (logging.ERROR, ERROR)],
)
def test_a_level_is_a_priority(log: socket.socket, level: int, priority: int) -> None:
    """`journalctl -p warning` must find what is degraded or failed, and nothing else."""
    system_log(log.getsockname()).emit(record(level))
    assert log.recv(1000).startswith(b"<%d>ftfw-transition[" % priority)


def test_a_full_log_keeps_nobody_waiting(log: socket.socket) -> None:
    """A hung journald must not hold up a transition."""
    fill(log)
    handler = system_log(log.getsockname())
    began = time.monotonic()
    for _ in range(100):
        handler.emit(record())
    assert time.monotonic() - began < 1


def test_what_found_the_log_full_is_sent_once_there_is_room(log: socket.socket) -> None:
    """In order, and before what comes later."""
    fill(log)
    handler = system_log(log.getsockname())
    for number in range(2):
        handler.emit(record(text=f'{{"number": {number}}}'))
    with contextlib.suppress(BlockingIOError):
        log.setblocking(False)
        while log.recv(1000) == b"x":
            pass
    handler.emit(record(text='{"number": 2}'))
    assert [event["number"] for _, _, event in received(log)] == [0, 1, 2]


def test_a_log_that_was_restarted_is_found_again(log: socket.socket) -> None:
    """A resident process outlives many a log; what comes meanwhile is kept elsewhere."""
    path = log.getsockname()
    handler = SystemLog(path, held := Buffered())
    handler.emit(record(text="first"))
    assert log.recv(1000).endswith(b"first")
    log.close()
    handler.emit(record(text="nobody listens"))
    Path(path).unlink()
    handler.emit(record(text="nothing is there"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(path)
        again.settimeout(5)
        handler.emit(record(text="next"))
        assert again.recv(1000).endswith(b"next")
    assert held.lines == ["nobody listens", "nothing is there"]


def test_a_line_that_is_too_long_is_no_error(log: socket.socket) -> None:
    """A datagram has a largest size."""
    system_log(log.getsockname()).emit(record(text="x" * 10_000_000))


def test_a_name_that_is_no_text_is_no_error(log: socket.socket) -> None:
    """A file name in an event may be any bytes."""
    system_log(log.getsockname()).emit(record(text="caf\udce9"))


@given(ANY, ANY)
@example("\udcff", "\x9b\udcff")
@settings(deadline=None)
def test_any_text_in_an_event_is_one_printable_line(reason: str, nested: str) -> None:
    """Also within the steps; and what `jq -r` makes of the line may be shown on a terminal."""
    fields = {"outcome": "ok", "reason": reason, "steps": [{"reason": nested, "attempts": 1}]}
    line = Log("error").event("transition.finished", fields)
    assert line.isprintable()
    event = json.loads(line)
    assert event["reason"].isprintable()
    assert event["steps"][0]["reason"].isprintable()
    assert event["steps"][0]["attempts"] == 1


# -- the hook's log -----------------------------------------------------------------------------


def test_every_event_goes_to_the_system_s_log(node: Node) -> None:
    """One JSON object a line, with our identifier and pid; stderr stays for a person."""
    with node.log_socket() as log:
        hook = node.start("primary")
        ended = hook.wait()
        lines = received(log)
    assert (ended.code, ended.err) == (0, "")
    assert {pid for _, pid, _ in lines} == {hook.pid}
    assert [event["message"] for _, _, event in lines][-2:] == [
        "step.finished",
        "transition.finished",
    ]


def test_the_record_is_the_line_that_was_logged(node: Node) -> None:
    """The run directory keeps the very line that went to the log."""
    with node.log_socket() as log:
        node.run("primary")
        *_, (_, _, event) = received(log)
    assert json.loads(node.last) == event


def test_an_ok_transition_is_information(node: Node) -> None:
    """Nobody is to be woken."""
    with node.log_socket() as log:
        node.run("primary")
        assert {priority for priority, _, _ in received(log)} == {INFO}


def test_a_degraded_transition_is_a_warning(node: Node) -> None:
    """The step and the transition that are degraded; the other steps are information."""
    node.has(external=1_000)
    with node.log_socket() as log:
        node.run("primary")
        lines = received(log)
    assert lines[-1][0] == WARNING
    assert all((priority == WARNING) == (e["outcome"] == "degraded") for priority, _, e in lines)


def test_a_failed_transition_is_an_error(node: Node) -> None:
    """The step and the transition that failed."""
    node.on("-c", 'refuse "no"')
    with node.log_socket() as log:
        node.run("primary")
        lines = received(log)
    assert lines[-1][0] == ERROR
    assert all((priority == ERROR) == (e["outcome"] == "failed") for priority, _, e in lines)


def test_a_wrong_notification_is_logged_too(node: Node) -> None:
    """A hook's stderr is /dev/null: a wrong notify line in keepalived.conf must be found."""
    with node.log_socket() as log:
        assert node.run("bogus").code == 2
        ((priority, _, event),) = received(log)
    assert priority == ERROR
    assert "bogus" in event["reason"]


@pytest.mark.parametrize(
    ("level", "messages"),
    [("warning", ["step.finished", "transition.finished"]), ("error", [])],
)
def test_a_level_leaves_out_what_is_below_it(node: Node, level: str, messages: list[str]) -> None:
    """A degraded promotion: its commit and its end are warnings."""
    node.has(external=1_000)
    with node.log_socket() as log:
        node.run("--log-level", level, "primary")
        assert [event["message"] for _, _, event in received(log)] == messages


def test_what_is_not_logged_is_remembered_all_the_same(node: Node) -> None:
    """The record in the run directory does not depend on the level."""
    node.run("--log-level", "error", "primary")
    assert json.loads(node.last)["outcome"] == "ok"


def test_a_full_log_holds_up_no_transition(node: Node) -> None:
    """Everything is asked, and the record is kept in the run directory."""
    with node.log_socket() as log:
        fill(log)
        ended = node.start("primary").wait(within=10)
    assert ended.code == 0
    assert node.asked == ["-c", "-f", "-R", "-B"]
    assert json.loads(node.last)["outcome"] == "ok"


def test_a_follower_shows_all_once_there_is_room_in_the_log(node: Node) -> None:
    """keepalived's own lines come at the same moment, and fill a short queue."""
    with node.log_socket() as log:
        node.start("follow", "--group", "G1", str(node.fifo))
        while b"pair.channel" not in log.recv(1000):
            pass
        fill(log)
        node.fifo.write_text('GROUP "G1" MASTER 0\n')
        until((node.run_dir / "last.json").exists, "it is primary")
        events: list[dict[str, Any]] = []
        while not events or events[-1]["message"] != "transition.finished":
            line = LINE.fullmatch(log.recv(10_000))  # or what the log was filled with
            events += [json.loads(line["json"])] if line else []
    *steps, last = events
    assert [step["step"] for step in steps] == [step["name"] for step in last["steps"]]


def test_a_log_that_nobody_listens_to_is_no_log(node: Node) -> None:
    """journald is down: a socket is there, and the events go to stderr."""
    node.log_socket().close()
    ended = node.run("primary")
    assert (ended.code, ended.event["outcome"]) == (0, "ok")


@pytest.mark.parametrize("stream", ["/dev/null", "/dev/full"])
def test_a_hook_needs_no_stderr(node: Node, stream: str) -> None:
    """keepalived gives its hooks /dev/null, and a full disk is no reason not to commit."""
    with open(stream, "wb") as file:
        node.start("primary", stdout=file, stderr=file).wait()
    assert node.asked == ["-c", "-f", "-R", "-B"]
    assert json.loads(node.last)["outcome"] == "ok"
