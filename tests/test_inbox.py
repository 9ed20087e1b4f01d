"""The follower's FIFO: any bytes in it, and which FIFOs it takes."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primary_backup.follower.backoff import FIRST_PAUSE_SECONDS
from primary_backup.follower.inbox import Inbox
from primary_backup.intent import Intent, Kind
from primary_backup.keepalived.fifo import Fifo
from primary_backup.keepalived.notify import STATES, Followed
from primary_backup.plan import State
from primary_backup.system.proc import TICKS_PER_SECOND, boot_seconds
from tests.fake.following import (
    ANOTHER_MASTER,
    PROMOTION,
    fill,
    in_mid,
    keepalived_s_end,
    stopped,
)
from tests.fake.node import Follower, Node
from tests.waiting import until

# -- any bytes ----------------------------------------------------------------------------------


OURS = [
    f'GROUP "G1" {notification} 0'.encode()
    for notification in ("MASTER", "BACKUP", "FAULT", "STOP")
]
RIVAL = ANOTHER_MASTER.rstrip()
NOISE = st.one_of(
    st.sampled_from(
        [
            b"",
            b'GROUP "G2" MASTER 0',
            b'INSTANCE "VI_1" BACKUP 100',
            b'INSTANCE "VI_1" MASTER_PRIORITY 150',
            b'GROUP "G1" TWIDDLING 0',
            b'GROUP "G1" MASTER',
            b'GROUP "G1" MASTER 0 more',
            b'GROUP "G1" MASTER 0\0',
            b'GROUP "G1" MASTER 0\r',
            b'group "G1" MASTER 0',
            b"\xff" * 5_000,
        ]
    ),
    st.binary(max_size=40).map(lambda noise: noise.replace(b"\n", b"")),
)
REPORTED = st.lists(st.sampled_from([*OURS, RIVAL]), max_size=8)


def lines(*sent: bytes) -> bytes:
    """As keepalived writes them."""
    return b"".join(line + b"\n" for line in sent)


@contextmanager
def inbox() -> Iterator[tuple[Inbox, Callable[[bytes], object]]]:
    """An inbox of the group G1, with a FIFO of its own, and what writes into that."""
    with TemporaryDirectory() as directory, closing(Fifo(f"{directory}/fifo")) as fifo:
        writer = os.open(fifo.path, os.O_WRONLY)
        try:
            yield (
                Inbox(fifo, Followed("GROUP", "G1")),
                lambda sent: os.write(writer, sent),
            )
        finally:
            os.close(writer)


class Wanted(NamedTuple):
    """What an inbox would have done."""

    state: State
    kind: Kind
    stepped_down: bool


def wanted(*chunks: bytes) -> Wanted | None:
    """What an inbox wants that looks after each of these chunks."""
    with inbox() as (box, write):
        for chunk in chunks:
            write(chunk)
            box.read()
        notification = box.take()
        intent = notification.intent if notification is not None else None
        return Wanted(intent.state, intent.kind, intent.stepped_down) if intent else None


@given(st.lists(st.sampled_from(OURS), min_size=1, max_size=8))
def test_the_last_notification_is_what_is_wanted(sent: list[bytes]) -> None:
    """However many there are, and whether this node was something else meanwhile is known."""
    found = wanted(lines(*sent))
    assert found is not None
    assert found.state is STATES[sent[-1].split()[2].decode()]
    if found.state is State.PRIMARY:
        assert found.stepped_down == (set(sent) != {OURS[0]})


@given(REPORTED, st.lists(st.integers(0, 300), max_size=8))
def test_any_chunking_means_the_same(sent: list[bytes], cuts: list[int]) -> None:
    """Half lines, single bytes, several lines at once: the same notification, of the same kind."""
    text = lines(*sent)
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    chunks = [text[begin:end] for begin, end in pairwise(ends)]
    assert wanted(*chunks) == wanted(text)


@given(REPORTED, st.data())
def test_any_noise_in_between_means_nothing(sent: list[bytes], data: st.DataObject) -> None:
    """Other lines, other groups, garbage and lines without end: as if they were not there."""
    noisy = [
        line
        for notification in sent
        for line in (*data.draw(st.lists(NOISE, max_size=2)), notification)
    ]
    assert wanted(lines(*noisy)) == wanted(lines(*sent))


@given(REPORTED, st.sampled_from(OURS))
def test_a_notification_is_taken_once(sent: list[bytes], more: bytes) -> None:
    """What was taken is carried out; only what comes after it is new."""
    with inbox() as (box, write):
        write(lines(*sent))
        box.read()
        box.take()
        assert box.read() is None
        write(lines(more))
        assert box.read() is not None


def test_a_rival_is_of_interest_once_the_promotion_is_taken() -> None:
    """While the promotion runs, and after it: a primary that received another one."""
    with inbox() as (box, write):
        write(lines(OURS[0]))
        box.read()
        assert box.take() is not None
        write(lines(RIVAL))
        notification = box.read()
        assert notification is not None
        assert notification.intent.kind is Kind.REASSERT


@given(REPORTED, st.sampled_from(list(State)[:3]), REPORTED)
def test_an_answer_is_older_than_what_was_reported_since(
    before: list[bytes], answered: State, since: list[bytes]
) -> None:
    """keepalived's answer counts like a line that it wrote between the two."""
    answers = {State.PRIMARY: OURS[0], State.BACKUP: OURS[1], State.FAULT: OURS[2]}
    with inbox() as (box, write):
        write(lines(*before))
        waiting = box.read()
        write(lines(*since))
        box.answer(Intent(answered, "keepalived reports so", Kind.RESUME), waiting)
        notification = box.take()
    expected = wanted(lines(*before), lines(answers[answered]), lines(*since))
    assert notification is not None
    assert expected is not None
    assert notification.intent.state is expected.state
    if since[-1:] == OURS[:1]:
        assert notification.intent.stepped_down == expected.stepped_down


@given(REPORTED)
def test_what_follows_from_a_poll_replaces_no_notification(sent: list[bytes]) -> None:
    """A promotion that came while somebody looked at conntrackd is not lost."""
    with inbox() as (box, write):
        issued = box.issued()
        write(lines(*sent))
        expected = box.read()
        box.propose(Intent(State.BACKUP, "a look", Kind.REFRESH), issued)
        notification = box.take()
    assert notification is not None
    if expected is not None:
        assert notification == expected
    else:
        assert notification.issued == issued


def test_a_notification_is_not_of_the_future() -> None:
    """It is as old as its reading, in a burst as well: what somebody types after it is newer."""
    with inbox() as (box, write):
        for line in OURS[:2] * 500:
            write(lines(line))
            box.read()
            notification = box.take()
            assert notification is not None
            assert notification.issued.ticks <= boot_seconds() * TICKS_PER_SECOND


def test_no_two_notifications_that_are_acted_upon_are_of_the_same_age() -> None:
    """Within one tick of the clock, too."""
    with inbox() as (box, write):
        starts = []
        for line in OURS * 5:
            write(lines(line))
            box.read()
            notification = box.take()
            assert notification is not None
            starts.append(notification.issued)
    assert starts == sorted(set(starts))


def test_half_a_notification_is_none_yet(follower: Follower) -> None:
    """It waits for its other half."""
    follower.write(b'GROUP "G1" MAS')
    follower.goes_round()
    assert follower.transitions == []
    follower.write(b"TER 0\n")
    assert follower.finished(1)["state"] == "primary"


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sent=st.lists(st.sampled_from(OURS), min_size=1, max_size=6),
    noise=st.lists(NOISE, max_size=6),
    cuts=st.lists(st.integers(0, 300), max_size=6),
)
def test_any_bytes_end_in_the_last_state(
    follower: Follower, sent: list[bytes], noise: list[bytes], cuts: list[int]
) -> None:
    """Whatever is in between, and however it is cut: the newest notification decides."""
    text = lines(*noise, *sent, *noise)
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    for begin, end in pairwise(ends):
        follower.write(text[begin:end])
    follower.goes_round()
    assert follower.transitions[-1]["state"] == STATES[sent[-1].split()[2].decode()].value


# -- usage and the FIFO -------------------------------------------------------------------------


def test_one_fifo_has_one_follower(node: Node, follower: Follower) -> None:
    """The second exits 1 with one line; the first goes on."""
    second = node.run("follow", "--group", "G1", str(node.fifo))
    assert (second.code, len(second.lines)) == (1, 1)
    assert str(node.fifo) in second.lines[0]
    follower.send("STOP")
    assert follower.finished(1)["state"] == "stop"


def test_a_second_follower_waits_for_the_first_to_end(node: Node, follower: Follower) -> None:
    """A keepalived that reloads starts the next one before it ends the last."""
    second = node.start("follow", "--group", "G1", str(node.fifo))
    command = Path(f"/proc/{second.pid}/cmdline")
    until(lambda: "follow" in command.read_text(), "the second is there")
    follower.signal(signal.SIGTERM)
    assert follower.wait().code == 0
    follower.send("MASTER")
    until(lambda: node.asked == PROMOTION, "the second acts")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--group", "G1", "--instance", "VI_1"),
        ("--group", ""),
        ("--group",),
        ("--group", "G1", "notify.fifo"),
        ("--group", "G1", "/run/one", "/run/two"),
    ],
    ids=["neither", "both", "an empty name", "no name", "relative", "two"],
)
def test_wrong_usage_follows_nothing(node: Node, arguments: tuple[str, ...]) -> None:
    """Exit 2 and one line of advice."""
    hook = node.start("follow", *arguments)
    ended = hook.wait()
    assert (ended.code, len(ended.lines)) == (2, 1)


def _writable_by_others(path: Path) -> None:
    os.mkfifo(path)
    path.chmod(0o622)


def _somebody_s(path: Path) -> None:
    os.mkfifo(path, 0o600)
    os.chown(path, 12345, 0)


def _linked(path: Path) -> None:
    os.mkfifo(path.with_name("elsewhere"), 0o600)
    path.symlink_to("elsewhere")


NO_FIFO: dict[str, Callable[[Path], object]] = {
    "a file": Path.touch,
    "a directory": Path.mkdir,
    "a link": _linked,
    "a device": lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
    "of others": _writable_by_others,
    "somebody's": _somebody_s,
}


@pytest.mark.parametrize("kind", NO_FIFO)
def test_what_is_no_fifo_of_ours_is_not_followed(node: Node, kind: str) -> None:
    """Exit 1, with one line that names it."""
    NO_FIFO[kind](node.fifo)
    ended = node.start("follow", "--group", "G1", str(node.fifo)).wait()
    assert (ended.code, len(ended.lines)) == (1, 1)
    assert str(node.fifo) in ended.lines[0]


def test_a_directory_that_is_not_there_is_named(node: Node) -> None:
    """Exit 1, with one line."""
    ended = node.run("follow", "--group", "G1", "/nowhere/notify.fifo")
    assert (ended.code, len(ended.lines)) == (1, 1)
    assert "/nowhere/notify.fifo" in ended.lines[0]


def test_a_fifo_that_is_not_there_is_made(node: Node) -> None:
    """For its owner alone, whatever the umask."""
    node.follow(umask=0)
    assert stat.S_IMODE(node.fifo.stat().st_mode) == 0o600
    assert stat.S_ISFIFO(node.fifo.stat().st_mode)


def test_a_fifo_that_was_made_anew_is_followed(node: Node, follower: Follower) -> None:
    """keepalived stops, which unlinks it, and starts again: its notifications are carried out."""
    with stopped(follower):
        node.fifo.unlink()
        os.mkfifo(node.fifo, 0o600)
    follower.reported("keepalived.asked", "re-created")
    follower.send("MASTER")
    assert follower.finished(1)["state"] == "primary"


def test_a_fifo_that_was_taken_away_is_made_anew(node: Node, follower: Follower) -> None:
    """A keepalived that starts later finds it."""
    node.fifo.unlink()
    until(node.fifo.exists, "it is there again")
    follower.send("MASTER")
    assert follower.finished(1)["state"] == "primary"


def test_the_last_notification_in_a_fifo_that_is_gone_is_received(
    node: Node, follower: Follower
) -> None:
    """keepalived writes STOP, and unlinks it at once."""
    with stopped(follower):
        with keepalived_s_end(node.fifo) as end:
            os.write(end, b'GROUP "G1" STOP 0\n')
        node.fifo.unlink()
    assert follower.finished(1)["state"] == "stop"


def test_a_fifo_that_has_become_a_file_is_not_followed(node: Node, follower: Follower) -> None:
    """Exit 1, with one line."""
    node.fifo.with_name("file").touch()
    node.fifo.with_name("file").rename(node.fifo)
    ended = follower.wait()
    assert (ended.code, len(ended.lines)) == (1, 1)


def test_a_full_fifo_may_have_refused_the_last_notification(node: Node, follower: Follower) -> None:
    """keepalived does not wait: what did not fit is gone, so that it is asked for its state."""
    with stopped(follower), keepalived_s_end(node.fifo) as end:
        fill(end, b'GROUP "G1" MASTER 0\n')
    follower.reported("keepalived.asked", "the FIFO was full")


def test_a_fifo_that_is_full_again_and_again_makes_no_storm_of_questions(
    node: Node, follower: Follower
) -> None:
    """Each question is a signal to keepalived: they have the back-off of all other needs."""
    for _ in range(3):
        with stopped(follower), keepalived_s_end(node.fifo) as end:
            fill(end, b'GROUP "G2" MASTER 0\n')
        follower.goes_round()
    first, second = (
        datetime.fromisoformat(
            follower.reported("keepalived.asked", "the FIFO was full", number)["time"]
        )
        for number in (1, 2)
    )
    assert (second - first).total_seconds() > FIRST_PAUSE_SECONDS - 0.1


def test_a_fifo_that_filled_up_during_a_transition_may_have_too(
    node: Node, follower: Follower
) -> None:
    """Whoever read it full: what was refused is asked for."""
    in_mid(node, follower, "MASTER", "-c")
    with stopped(follower), keepalived_s_end(node.fifo) as end:
        fill(end, b'GROUP "G2" MASTER 0\n')
    node.release("go")
    follower.reported("keepalived.asked", "the FIFO was full")


def test_half_a_line_may_have_cost_the_next_notification(node: Node, follower: Follower) -> None:
    """What another program has begun and keepalived ended is no line: keepalived is asked."""
    with keepalived_s_end(node.fifo) as end:
        os.write(end, b'GROUP "G1" BACKGROUP "G1" MASTER 0\n')
    follower.reported("keepalived.asked", "is not one of keepalived's")


def test_whose_lines_are_not_followed_is_known() -> None:
    """The newest last, each once, and no more than a few."""
    with inbox() as (box, write):
        write(lines(*(b'GROUP "%d" MASTER 0' % number for number in range(30))))
        write(lines(b'INSTANCE "VI_1" MASTER 0', *OURS, b'GROUP "25" FAULT 0'))
        box.read()

        assert list(box.others)[-2:] == ['INSTANCE "VI_1"', 'GROUP "25"']
        assert len(box.others) == len(set(box.others)) == 20
