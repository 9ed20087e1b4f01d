"""The resident follower, against a fake conntrackd client that records what it is asked."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
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
from primary_backup.follower.loop import STOP_SECONDS
from primary_backup.intent import Intent, Kind
from primary_backup.keepalived.fifo import Fifo
from primary_backup.keepalived.notify import STATES, Followed
from primary_backup.plan import State
from primary_backup.system.proc import TICKS_PER_SECOND, boot_id, boot_seconds
from tests.fake.node import Follower, Hook, Node, later, lives, until

WAITS = ": >$world/asking; until_told go"
"""A request that waits, and shows that it does."""
DOES_NOTHING = f"{WAITS}; exit 0"
"""The same, and then it has no effect."""
DOWN = '[ -e $world/up ] || [ "$request" = -d ] || unreached'
PROMOTION = ["-c", "-f", "-R", "-B"]
REASSERTION = ["-f internal", "-R", "-B"]


@pytest.fixture
def follower(node: Node) -> Follower:
    """A follower of the group G1, with nothing to do yet."""
    node.has(internal=3, external=3, holds=3)
    return node.follow()


def in_mid(node: Node, follower: Follower, word: str, request: str, script: str = WAITS) -> None:
    """Let the follower read a notification; its request runs until the node lets it go on."""
    node.on(request, script)
    follower.say(word)
    until((node.world / "asking").exists, f"{request} is asked")


def goes_on(node: Node, request: str) -> None:
    """Let that request be answered at once from now on."""
    (node.world / "on" / request).unlink()
    node.tell("go")


def states(follower: Follower) -> list[str]:
    """Which states were brought to their end, in order."""
    ended = follower.transitions
    return [event["state"] for event in ended if event["outcome"] != "superseded"]


@contextmanager
def stopped(follower: Hook) -> Iterator[None]:
    """What is done here happens before it does anything more."""
    follower.signal(signal.SIGSTOP)
    until(lambda: follower.stopped, "the follower is stopped")
    yield
    follower.signal(signal.SIGCONT)


@contextmanager
def keepalived_s_end(fifo: Path) -> Iterator[int]:
    """Hold the FIFO open, as keepalived does: what is in it outlives its reader."""
    held = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    yield held
    os.close(held)


def fill(pipe: int, said: bytes) -> None:
    """Write until nothing more fits."""
    with suppress(BlockingIOError):
        while os.write(pipe, said):
            pass


@contextmanager
def service_manager(node: Node) -> Iterator[tuple[Callable[[str], str], dict[str, str]]]:
    """Be the follower's service manager: what waits for its words, and what it is started with."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        path = str(node.world / "notify")
        manager.bind(path)
        manager.settimeout(10)

        def heard(text: str) -> str:
            while text not in (told := manager.recv(4096).decode()):
                pass
            return told

        yield heard, {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000000"}


# -- the newest wins ----------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["MASTER", "BACKUP", "FAULT"])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "line by line"])
def test_a_burst_costs_a_handful_of_transitions(
    follower: Follower, last: str, *, at_once: bool
) -> None:
    """1,000 flips: at most a handful of transitions, and the last word decides."""
    words = ["BACKUP" if last == "MASTER" else "MASTER", last] * 500
    if at_once:
        follower.say(*words)
    else:
        with keepalived_s_end(follower.fifo) as end:
            for word in words:
                os.write(end, f'GROUP "G1" {word} 0\n'.encode())
    until(lambda: states(follower)[-1:] == [STATES[last].value], f"the last word is {last}")
    follower.goes_round()
    assert states(follower)[-1] == STATES[last].value
    assert len(follower.transitions) <= 8


@pytest.mark.parametrize("word", ["BACKUP", "FAULT", "STOP"])
def test_a_new_word_stops_a_transition_before_its_next_request(
    node: Node, follower: Follower, word: str
) -> None:
    """It comes while -c runs: the commit is waited for, and nothing more of the promotion asked."""
    in_mid(node, follower, "MASTER", "-c")
    follower.say(word)
    node.tell("go")
    assert follower.finished(1)["outcome"] == "superseded"
    assert follower.finished(2)["state"] == STATES[word].value
    assert not {"-f", "-R", "-B"} & set(node.asked)


def test_a_new_word_ends_the_wait_for_a_peer(node: Node) -> None:
    """A backup that hears nobody listens for 5 s: not once there is another word."""
    node.has(peer=0)
    follower = node.follow()
    follower.say("BACKUP")
    until(lambda: "-n" in node.asked, "the backup listens")
    follower.say("STOP")
    ended = follower.finished(1)
    assert ended["outcome"] == "superseded"
    assert ended["seconds"] < 4


def test_a_new_word_ends_a_retry(node: Node, follower: Follower) -> None:
    """Nobody listened to -c: it is not asked again, and no daemon is started, for a dead word."""
    node.on("-c", f"{WAITS}; unreached")
    follower.say("MASTER")
    until((node.world / "asking").exists, "the commit is asked")
    follower.say("STOP")
    node.tell("go")
    assert follower.finished(1)["outcome"] == "superseded"
    assert follower.finished(2)["state"] == "stop"
    assert node.asked == ["-c"]


def test_the_same_word_does_not_restart_its_own_transition(node: Node, follower: Follower) -> None:
    """MASTER while a promotion runs: it goes on to its end, and the second finds it done."""
    in_mid(node, follower, "MASTER", "-c")
    follower.say("MASTER")
    node.tell("go")
    assert follower.finished(1)["outcome"] == "ok"
    assert follower.finished(2)["outcome"] == "ok"
    assert node.asked == PROMOTION


@pytest.mark.parametrize("between", ["BACKUP", "FAULT", "STOP"])
def test_a_promotion_that_was_left_in_between_begins_anew(
    node: Node, follower: Follower, between: str
) -> None:
    """MASTER, something else, MASTER, while the first commits: that one's commit is too old."""
    in_mid(node, follower, "MASTER", "-c")
    follower.say(between, "MASTER")
    node.tell("go")
    assert follower.finished(1)["outcome"] == "superseded"
    assert follower.finished(2)["outcome"] == "ok"
    assert node.asked == ["-c", *PROMOTION]


@pytest.mark.parametrize("between", ["BACKUP", "FAULT", "STOP"])
def test_a_primary_that_was_something_else_for_a_moment_commits_again(
    follower: Follower, node: Node, between: str
) -> None:
    """Both words are read at once: nobody acted upon the first, but it was said."""
    follower.say("MASTER")
    follower.finished(1)
    follower.say(between, "MASTER")
    follower.finished(2)
    assert node.asked == PROMOTION * 2


def test_a_primary_that_is_told_so_again_commits_nothing(follower: Follower, node: Node) -> None:
    """Its entries are live, and newer than any copy."""
    follower.say("MASTER")
    follower.finished(1)
    later()
    follower.say("MASTER")
    follower.finished(2)
    assert node.asked == [*PROMOTION, *REASSERTION]


# -- whose words --------------------------------------------------------------------------------

ANOTHER_MASTER = b'INSTANCE "VI_1" MASTER_RX_LOWER_PRI 150\n'


def test_a_primary_that_heard_another_one_re_asserts(follower: Follower, node: Node) -> None:
    """MASTER_RX_LOWER_PRI comes from an instance only, also where a group is followed."""
    follower.say("MASTER")
    follower.finished(1)
    later()
    follower.write(ANOTHER_MASTER)
    assert follower.finished(2)["outcome"] == "ok"
    assert node.asked == [*PROMOTION, *REASSERTION]


@pytest.mark.parametrize("word", [None, "BACKUP", "FAULT", "STOP"])
def test_a_node_that_is_no_primary_re_asserts_nothing(
    follower: Follower, node: Node, word: str | None
) -> None:
    """MASTER_RX_LOWER_PRI makes nobody a primary."""
    if word is not None:
        follower.say(word)
        follower.finished(1)
    asked = node.asked
    follower.write(ANOTHER_MASTER)
    follower.goes_round()
    assert node.asked == asked
    assert len(follower.transitions) == (word is not None)


def test_a_re_assertion_replaces_no_promotion(node: Node, follower: Follower) -> None:
    """Both are read at once: the promotion still has its commit to make."""
    follower.write(b'GROUP "G1" MASTER 0\n' + ANOTHER_MASTER)
    follower.finished(1)
    assert node.asked == PROMOTION


@pytest.mark.parametrize(
    ("whose", "said"),
    [
        (("GROUP", "G1"), b'GROUP "G2" MASTER 0\n'),
        (("GROUP", "G1"), b'INSTANCE "G1" MASTER 100\n'),
        (("INSTANCE", "VI_1"), b'INSTANCE "VI_2" MASTER 100\n'),
        (("INSTANCE", "VI_1"), b'GROUP "VI_1" MASTER 0\n'),
    ],
)
def test_somebody_else_s_words_are_not_ours(
    node: Node, whose: tuple[str, str], said: bytes
) -> None:
    """Another group's, another instance's, and those of the other kind."""
    follower = node.follow(*whose)
    follower.write(said)
    follower.goes_round()
    assert (follower.transitions, node.calls) == ([], [])
    follower.say("MASTER")
    assert follower.finished(1)["state"] == "primary"


def test_another_instance_s_rival_is_not_ours(node: Node) -> None:
    """An instance's follower heeds the MASTER_RX_LOWER_PRI of its own instance alone."""
    follower = node.follow("INSTANCE", "VI_1")
    follower.say("MASTER")
    follower.finished(1)
    follower.write(b'INSTANCE "VI_2" MASTER_RX_LOWER_PRI 150\n')
    follower.goes_round()
    assert node.asked == PROMOTION
    follower.write(ANOTHER_MASTER)
    follower.finished(2)
    assert node.asked == [*PROMOTION, *REASSERTION]


def test_a_rival_takes_the_place_of_no_promotion_that_failed(
    node: Node, follower: Follower
) -> None:
    """Its commit is still owed: only entries that were brought back are worth asserting."""
    node.on("-c", 'refuse "parsing config file in line (1)"')
    follower.say("MASTER")
    assert follower.finished(1)["outcome"] == "failed"
    goes_on(node, "-c")
    asked = len(node.asked)

    follower.write(ANOTHER_MASTER)

    until(lambda: len(follower.transitions) > 1, "what is owed is done")
    assert node.asked[asked:][:4] == PROMOTION


# -- any bytes ----------------------------------------------------------------------------------

OURS = [f'GROUP "G1" {word} 0'.encode() for word in ("MASTER", "BACKUP", "FAULT", "STOP")]
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
SAID = st.lists(st.sampled_from([*OURS, RIVAL]), max_size=8)


def lines(*said: bytes) -> bytes:
    """As keepalived writes them."""
    return b"".join(line + b"\n" for line in said)


@contextmanager
def inbox() -> Iterator[tuple[Inbox, Callable[[bytes], object]]]:
    """An inbox of the group G1, with a FIFO of its own, and what writes into that."""
    with TemporaryDirectory() as directory, closing(Fifo(f"{directory}/fifo")) as fifo:
        writer = os.open(fifo.path, os.O_WRONLY)
        try:
            yield Inbox(fifo, Followed("GROUP", "G1")), lambda said: os.write(writer, said)
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
        word = box.take()
        intent = word.intent if word is not None else None
        return Wanted(intent.state, intent.kind, intent.stepped_down) if intent else None


@given(st.lists(st.sampled_from(OURS), min_size=1, max_size=8))
def test_the_last_word_is_what_is_wanted(said: list[bytes]) -> None:
    """However many there are, and whether this node was something else meanwhile is known."""
    found = wanted(lines(*said))
    assert found is not None
    assert found.state is STATES[said[-1].split()[2].decode()]
    if found.state is State.PRIMARY:
        assert found.stepped_down == (set(said) != {OURS[0]})


@given(SAID, st.lists(st.integers(0, 300), max_size=8))
def test_any_chunking_means_the_same(said: list[bytes], cuts: list[int]) -> None:
    """Half lines, single bytes, several lines at once: the same word, of the same kind."""
    text = lines(*said)
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    chunks = [text[begin:end] for begin, end in pairwise(ends)]
    assert wanted(*chunks) == wanted(text)


@given(SAID, st.data())
def test_any_noise_in_between_means_nothing(said: list[bytes], data: st.DataObject) -> None:
    """Other words, other groups, garbage and lines without end: as if they were not there."""
    noisy = [line for word in said for line in (*data.draw(st.lists(NOISE, max_size=2)), word)]
    assert wanted(lines(*noisy)) == wanted(lines(*said))


@given(SAID, st.sampled_from(OURS))
def test_a_word_is_taken_once(said: list[bytes], more: bytes) -> None:
    """What was taken is acted upon; only what comes after it is new."""
    with inbox() as (box, write):
        write(lines(*said))
        box.read()
        box.take()
        assert box.read() is None
        write(lines(more))
        assert box.read() is not None


def test_a_rival_is_of_interest_once_the_promotion_is_taken() -> None:
    """While the promotion runs, and after it: a primary that heard another one."""
    with inbox() as (box, write):
        write(lines(OURS[0]))
        box.read()
        assert box.take() is not None
        write(lines(RIVAL))
        word = box.read()
        assert word is not None
        assert word.intent.kind is Kind.REASSERT


@given(SAID, st.sampled_from(list(State)[:3]), SAID)
def test_an_answer_is_older_than_what_was_said_since(
    before: list[bytes], answered: State, since: list[bytes]
) -> None:
    """keepalived's answer counts like a line that it wrote between the two."""
    answers = {State.PRIMARY: OURS[0], State.BACKUP: OURS[1], State.FAULT: OURS[2]}
    with inbox() as (box, write):
        write(lines(*before))
        waiting = box.read()
        write(lines(*since))
        box.answer(Intent(answered, "keepalived reports so", Kind.RESUME), waiting)
        word = box.take()
    expected = wanted(lines(*before), lines(answers[answered]), lines(*since))
    assert word is not None
    assert expected is not None
    assert word.intent.state is expected.state
    if since[-1:] == OURS[:1]:
        assert word.intent.stepped_down == expected.stepped_down


@given(SAID)
def test_what_follows_from_a_look_replaces_no_word(said: list[bytes]) -> None:
    """A promotion that came while somebody looked at conntrackd is not lost."""
    with inbox() as (box, write):
        issued = box.issued()
        write(lines(*said))
        expected = box.read()
        box.propose(Intent(State.BACKUP, "a look", Kind.REFRESH), issued)
        word = box.take()
    assert word is not None
    if expected is not None:
        assert word == expected
    else:
        assert word.issued == issued


def test_a_word_is_not_of_the_future() -> None:
    """It is as old as its reading, in a burst as well: what somebody types after it is younger."""
    with inbox() as (box, write):
        for line in OURS[:2] * 500:
            write(lines(line))
            box.read()
            word = box.take()
            assert word is not None
            assert word.issued.ticks <= boot_seconds() * TICKS_PER_SECOND


def test_no_two_words_that_are_acted_upon_are_of_the_same_age() -> None:
    """Within one tick of the clock, too."""
    with inbox() as (box, write):
        starts = []
        for line in OURS * 5:
            write(lines(line))
            box.read()
            word = box.take()
            assert word is not None
            starts.append(word.issued)
    assert starts == sorted(set(starts))


def test_half_a_word_is_none_yet(follower: Follower) -> None:
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
    said=st.lists(st.sampled_from(OURS), min_size=1, max_size=6),
    noise=st.lists(NOISE, max_size=6),
    cuts=st.lists(st.integers(0, 300), max_size=6),
)
def test_any_bytes_end_in_the_last_state(
    follower: Follower, said: list[bytes], noise: list[bytes], cuts: list[int]
) -> None:
    """Whatever is in between, and however it is cut: the last word decides, nobody dies."""
    text = lines(*noise, *said, *noise)
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    for begin, end in pairwise(ends):
        follower.write(text[begin:end])
    follower.goes_round()
    assert follower.transitions[-1]["state"] == STATES[said[-1].split()[2].decode()].value


# -- usage and the FIFO -------------------------------------------------------------------------


def test_one_fifo_has_one_follower(node: Node, follower: Follower) -> None:
    """The second exits 1 with one line; the first goes on."""
    second = node.run("follow", "--group", "G1", str(node.fifo))
    assert (second.code, len(second.lines)) == (1, 1)
    assert str(node.fifo) in second.lines[0]
    follower.say("STOP")
    assert follower.finished(1)["state"] == "stop"


def test_a_second_follower_waits_for_the_first_to_end(node: Node, follower: Follower) -> None:
    """A keepalived that reloads starts the next one before it ends the last."""
    second = node.start("follow", "--group", "G1", str(node.fifo))
    command = Path(f"/proc/{second.pid}/cmdline")
    until(lambda: "follow" in command.read_text(), "the second is there")
    follower.signal(signal.SIGTERM)
    assert follower.wait().code == 0
    follower.say("MASTER")
    until(lambda: node.asked == PROMOTION, "the second acts")


@pytest.mark.parametrize(
    "words",
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
def test_wrong_usage_follows_nothing(node: Node, words: tuple[str, ...]) -> None:
    """Exit 2 and one line of advice."""
    hook = node.start("follow", *words)
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
    """keepalived stops, which unlinks it, and starts again: its words are acted upon."""
    with stopped(follower):
        node.fifo.unlink()
        os.mkfifo(node.fifo, 0o600)
    follower.told("keepalived.asked", "re-created")
    follower.say("MASTER")
    assert follower.finished(1)["state"] == "primary"


def test_a_fifo_that_was_taken_away_is_made_anew(node: Node, follower: Follower) -> None:
    """A keepalived that starts later finds it."""
    node.fifo.unlink()
    until(node.fifo.exists, "it is there again")
    follower.say("MASTER")
    assert follower.finished(1)["state"] == "primary"


def test_the_last_word_in_a_fifo_that_is_gone_is_heard(node: Node, follower: Follower) -> None:
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


def test_a_full_fifo_may_have_refused_the_last_word(node: Node, follower: Follower) -> None:
    """keepalived does not wait: what did not fit is gone, so that it is asked for its state."""
    with stopped(follower), keepalived_s_end(node.fifo) as end:
        fill(end, b'GROUP "G1" MASTER 0\n')
    follower.told("keepalived.asked", "the FIFO was full")


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
            follower.told("keepalived.asked", "the FIFO was full", number)["time"]
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
    node.tell("go")
    follower.told("keepalived.asked", "the FIFO was full")


# -- how it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_follower(follower: Follower, number: signal.Signals) -> None:
    """Within a second, with status 0, and its last event says why."""
    follower.signal(number)
    ended = follower.wait(within=3)
    assert (ended.code, ended.lines) == (0, [])
    assert ended.events[-1]["message"] == "follow.ended"
    assert number.name in ended.events[-1]["reason"]


def test_a_stop_that_is_there_already_is_heard(node: Node, follower: Follower) -> None:
    """keepalived writes STOP, and ends its follower."""
    with keepalived_s_end(node.fifo), stopped(follower):
        follower.say("STOP")
        follower.signal(signal.SIGTERM)
    assert follower.wait(within=3).code == 0
    assert states(follower) == ["stop"]


@pytest.mark.parametrize("seconds", [0, STOP_SECONDS], ids=["at once", "it stood still"])
def test_a_stop_that_comes_right_after_the_signal_is_heard(node: Node, seconds: float) -> None:
    """keepalived signals its follower first, and writes its last words then: in time, though a
    follower that the machine kept waiting has none left."""
    with service_manager(node) as (heard, environment):
        follower = node.follow(environment=environment)
        with keepalived_s_end(node.fifo) as end:
            follower.signal(signal.SIGTERM)
            heard("STOPPING=1")
            with stopped(follower) if seconds else nullcontext():
                over = time.monotonic() + seconds
                until(lambda: time.monotonic() > over, "its time is up")
                os.write(end, b'GROUP "G1" STOP 0\n')
            assert follower.wait(within=3).code == 0
    assert states(follower) == ["stop"]


def test_a_signal_does_not_wait_for_a_daemon_that_is_being_started(
    node: Node, follower: Follower
) -> None:
    """And leaves it to itself: half a start would leave a lock file."""
    node.on("any", DOWN)
    node.on("-d", ": >$world/asking; until_told go; : >$world/up")
    follower.say("MASTER")
    until((node.world / "asking").exists, "conntrackd is being started")
    follower.signal(signal.SIGTERM)
    assert follower.wait(within=3).code == 0
    node.tell("go")
    until((node.world / "up").exists, "it is started all the same")


@pytest.mark.parametrize(
    ("word", "request_"), [("MASTER", "-c"), ("BACKUP", "-n"), ("FAULT", "-t"), ("BACKUP", "-s")]
)
def test_a_signal_leaves_a_transition_to_the_next_follower(
    node: Node, follower: Follower, word: str, request_: str
) -> None:
    """SIGTERM while a request is answered: it ends at once, and the next one finishes."""
    in_mid(node, follower, word, request_)
    follower.signal(signal.SIGTERM)
    assert follower.wait(within=3).code == 0
    assert follower.transitions[-1]["outcome"] != "ok"
    goes_on(node, request_)
    following = node.follow()
    ended = following.finished(1)
    assert (ended["state"], ended["outcome"]) == (STATES[word].value, "ok")


def test_a_word_that_nobody_has_begun_is_left_to_the_next_follower(
    node: Node, follower: Follower
) -> None:
    """SIGTERM came with it: the FIFO forgets it, the run directory does not."""
    with stopped(follower):
        follower.say("MASTER")
        follower.signal(signal.SIGTERM)
    assert follower.wait(within=3).code == 0
    assert node.asked == []
    assert node.follow().finished(1)["state"] == "primary"
    assert node.asked == PROMOTION


def test_a_signal_that_comes_too_late_leaves_nothing(node: Node, follower: Follower) -> None:
    """The last answer had come: the next follower on the live primary asks nothing."""
    once_reaped = "while kill -0 $$; do :; done; kill -TERM $PPID"
    node.on("-s queue", f"({once_reaped}) >/dev/null 2>&1 &")
    node.on("-R", "put internal 3")
    follower.say("MASTER")
    assert follower.wait().code == 0
    assert follower.transitions[-1]["outcome"] == "ok"
    (node.world / "on" / "-s queue").unlink()
    node.follow().goes_round()
    assert node.asked == PROMOTION


def test_a_follower_that_is_started_again_asks_nothing(node: Node, follower: Follower) -> None:
    """A package upgrade on the live primary: all was done."""
    follower.say("MASTER")
    follower.finished(1)
    follower.signal(signal.SIGTERM)
    follower.wait()
    following = node.follow()
    following.goes_round()
    assert (following.transitions, node.asked) == ([], PROMOTION)


def test_nobody_finishes_a_promotion_that_was_stopped(node: Node, follower: Follower) -> None:
    """keepalived ends in mid-promotion, with a STOP: the next follower waits for a word."""
    in_mid(node, follower, "MASTER", "-c")
    with keepalived_s_end(node.fifo) as end:
        follower.signal(signal.SIGTERM)
        os.write(end, b'GROUP "G1" STOP 0\n')
        assert follower.wait(within=3).code == 0
    assert follower.transitions[-1]["state"] == "stop"
    goes_on(node, "-c")
    following = node.follow()
    following.goes_round()
    assert (following.transitions, node.asked) == ([], ["-c"])


def test_nobody_finishes_a_promotion_that_was_killed_before_a_stop(
    node: Node, follower: Follower
) -> None:
    """The stop came by a hook: the next follower waits for a word."""
    in_mid(node, follower, "MASTER", "-c")
    killed(follower)
    assert node.run("stop").code == 0
    goes_on(node, "-c")
    following = node.follow()
    following.goes_round()
    assert (following.transitions, node.asked) == ([], ["-c"])


def killed(hook: Hook) -> None:
    """End it with SIGKILL."""
    hook.signal(signal.SIGKILL)
    hook.process.wait()


def test_a_commit_that_did_nothing_is_asked_again(node: Node, follower: Follower) -> None:
    """SIGKILL while -c is asked: the next follower promotes, with a commit of its own."""
    in_mid(node, follower, "MASTER", "-c", DOES_NOTHING)
    killed(follower)
    goes_on(node, "-c")
    ended = node.follow().finished(1)
    assert ended["state"] == "primary"
    assert node.asked == ["-c", *PROMOTION]


INSERTS = """
put internal 0
for port in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    conntrack -I -p tcp -s 10.0.0.1 -d 10.0.0.2 --sport $port --dport 80 --state ESTABLISHED -t 600
done >/dev/null 2>&1
"""
"""A commit that makes 20 entries in the node's own kernel table."""


@pytest.mark.skipif(shutil.which("conntrack") is None, reason="conntrack makes the entries")
def test_a_commit_that_was_done_is_not_asked_again(node: Node, follower: Follower) -> None:
    """SIGKILL before -c is answered, but the kernel's counter shows all of its entries."""
    node.has(external=20)
    node.on("-R", "put internal 20")
    in_mid(node, follower, "MASTER", "-c")
    (node.world / "asking").unlink()
    killed(follower)
    goes_on(node, "-c")
    (node.world / "go").unlink()
    node.on("-c", f"{INSERTS}{WAITS}")
    second = node.follow()
    until((node.world / "asking").exists, "its entries are made")
    killed(second)
    goes_on(node, "-c")
    ended = node.follow().finished(1)
    assert (ended["outcome"], ended["expected"], ended["recovered"]) == ("ok", 20, 20)
    assert node.asked == ["-c", *PROMOTION]


def test_a_commit_that_was_waited_for_is_not_asked_again(node: Node, follower: Follower) -> None:
    """SIGKILL after -c and before the end of -f: the next follower goes on after the commit."""
    in_mid(node, follower, "MASTER", "-f")
    killed(follower)
    goes_on(node, "-f")
    following = node.follow()
    assert following.finished(1)["state"] == "primary"
    assert node.asked == ["-c", "-f", "-f", "-R", "-B"]


def test_what_waits_in_the_fifo_is_newer_than_what_was_not_finished(
    node: Node, follower: Follower
) -> None:
    """A BACKUP that the killed one had not read: the promotion is nobody's any more."""
    in_mid(node, follower, "MASTER", "-c")
    with keepalived_s_end(node.fifo):
        with stopped(follower):
            follower.say("BACKUP")
            follower.signal(signal.SIGKILL)
        follower.process.wait()
        following = node.follow()
        goes_on(node, "-c")
        assert following.finished(1)["state"] == "backup"
        following.goes_round()
    assert states(following) == ["backup"]


def test_of_several_the_newest_is_finished(node: Node, follower: Follower) -> None:
    """A hook waited when both were killed: its word was the last."""
    in_mid(node, follower, "MASTER", "-c")
    with stopped(follower):
        hook = node.start("backup")
        until(lambda: node.shows("backup"), "the hook waits")
        killed(hook)
        follower.signal(signal.SIGKILL)
    follower.process.wait()
    goes_on(node, "-c")
    following = node.follow()
    assert following.finished(1)["state"] == "backup"
    following.goes_round()
    assert states(following) == ["backup"]


def test_what_a_killed_hook_left_is_finished(node: Node, follower: Follower) -> None:
    """While a follower is there, nothing stays half done."""
    follower.say("BACKUP")
    follower.finished(1)
    node.on("-c", DOES_NOTHING)
    hook = node.start("primary")
    until((node.world / "asking").exists, "the commit runs")
    killed(hook)
    goes_on(node, "-c")
    assert follower.told("sync.lost")["outcome"] == "degraded"
    assert follower.finished(2)["state"] == "primary"
    assert [asked for asked in node.asked if asked not in ("-n", "-t")] == ["-c", *PROMOTION]


@pytest.mark.parametrize("boot", ["this", "another"])
def test_a_record_of_another_boot_is_never_finished(node: Node, boot: str) -> None:
    """The very same record of this boot is."""
    killed_one = node.spawn(["true"])
    killed_one.wait()
    name = boot_id()[:8] if boot == "this" else "01234567"
    node.run_dir.mkdir(mode=0o700)
    (node.run_dir / f"ticket.{name}.100.{killed_one.pid}.0.0.primary").touch()
    following = node.follow()
    following.goes_round()
    assert states(following) == (["primary"] if boot == "this" else [])


# -- beside hooks -------------------------------------------------------------------------------


def test_a_hook_by_hand_wins_over_an_older_word(node: Node, follower: Follower) -> None:
    """`ftfw-transition backup` while the follower promotes: the promotion ends after its -c."""
    in_mid(node, follower, "MASTER", "-c")
    hook = node.start("backup")
    until(lambda: node.shows("backup"), "the hook waits")
    node.tell("go")
    assert follower.finished(1)["outcome"] == "superseded"
    ended = hook.wait()
    assert (ended.code, ended.event["outcome"]) == (0, "ok")
    assert not {"-f", "-R", "-B"} & set(node.asked)


def test_a_word_wins_over_an_older_hook(node: Node, follower: Follower) -> None:
    """A BACKUP line while a person promotes: the hook ends after its -c, and exits 4."""
    node.on("-c", WAITS)
    hook = node.start("primary")
    until((node.world / "asking").exists, "the commit runs")
    follower.say("BACKUP")
    until(lambda: node.shows("backup"), "the follower waits")
    node.tell("go")
    assert hook.wait().code == 4
    assert follower.finished(1)["outcome"] == "ok"
    assert not {"-f", "-R", "-B"} & set(node.asked)


def test_a_hook_that_is_late_is_older_than_a_word(node: Node, follower: Follower) -> None:
    """Born before the word was read, and slow: it asks nothing, and exits 4."""
    late = node.spawn(["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *node.arguments("backup")])
    until(lambda: late.stopped, "the hook is stopped")
    later()
    follower.say("MASTER")
    follower.finished(1)
    asked = node.asked
    late.signal(signal.SIGCONT)
    assert late.wait().code == 4
    assert node.asked == asked


def test_a_hook_after_slow_flips_is_younger_than_they_are(node: Node, follower: Follower) -> None:
    """Each of them supersedes the one before within a tick of the clock."""
    follower.say("BACKUP")
    until(lambda: node.shows("backup"), "the first one is under way")
    for number in range(1, 200):
        follower.say(("BACKUP", "FAULT")[number % 2])
        until(lambda: len(follower.transitions) >= number, "it supersedes the one before")  # noqa: B023
    later()
    assert node.run("primary").event["outcome"] == "ok"
    assert min(event["waited_seconds"] for event in follower.transitions) >= 0


def test_a_hook_after_a_burst_is_younger_than_its_words(node: Node, follower: Follower) -> None:
    """1,000 words were read within a moment: a person who types `fault` after them is heard."""
    follower.say(*["BACKUP", "MASTER"] * 500)
    until(lambda: states(follower)[-1:] == ["primary"], "the last word is MASTER")
    follower.goes_round()
    ended = node.run("fault")
    assert (ended.code, ended.event["outcome"]) == (0, "ok")


def test_a_word_that_found_its_work_done_is_the_newest_all_the_same(
    node: Node, follower: Follower
) -> None:
    """MASTER, a slow FAULT hook, MASTER, while the first promotes: the FAULT is late."""
    in_mid(node, follower, "MASTER", "-R")
    later()
    late = node.spawn(["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *node.arguments("fault")])
    until(lambda: late.stopped, "the hook is stopped")
    later()
    follower.say("MASTER")
    later()
    node.tell("go")
    follower.finished(2)
    late.signal(signal.SIGCONT)
    assert late.wait().code == 4
    assert node.asked == PROMOTION


def test_a_promotion_by_hand_is_not_made_again(node: Node, follower: Follower) -> None:
    """keepalived reports MASTER after a person did: a re-assertion, no commit over live entries."""
    assert node.run("primary").code == 0
    follower.say("MASTER")
    follower.finished(1)
    assert node.asked == [*PROMOTION, *REASSERTION]


# -- whatever happens, it stays -----------------------------------------------------------------


def test_a_configuration_is_read_again(node: Node, follower: Follower) -> None:
    """SIGHUP: an event says whether it is in force; a broken one ends nobody."""
    follower.signal(signal.SIGHUP)
    assert follower.told("conf.read")["outcome"] == "ok"
    node.config.write_text("Sync {")
    follower.signal(signal.SIGHUP)
    event = follower.told("conf.read", number=2)
    assert (event["outcome"], str(node.config) in event["reason"]) == ("degraded", True)
    node.configure("Mode ALARM { }")
    follower.signal(signal.SIGHUP)
    assert follower.told("conf.read", number=3)["outcome"] == "ok"
    follower.say("MASTER")
    follower.finished(1)
    assert "-B" not in node.asked


@pytest.mark.parametrize("text", [None, "Sync {", "Stats { }\n", "\0"])
def test_a_broken_configuration_ends_no_follower(
    node: Node, follower: Follower, text: str | None
) -> None:
    """The word that it stops is told as failed or degraded; the one after its mending is done."""
    node.config.unlink()
    if text is not None:
        node.config.write_text(text)
    follower.say("MASTER")
    assert follower.finished(1)["outcome"] != "ok"
    follower.say("BACKUP")
    follower.finished(2)
    node.configure("Mode FTFW { }")
    follower.say("MASTER")
    assert follower.finished(3)["outcome"] == "ok"


def test_a_word_that_was_refused_is_tried_again_once_the_cause_is_mended(
    node: Node, follower: Follower
) -> None:
    """keepalived reports it once: nobody else would make this node a backup."""
    node.config.write_text("Sync {")
    node.on("-s", 'refuse "syntax error"')
    follower.say("BACKUP")
    assert follower.finished(1)["outcome"] == "failed"
    (node.world / "on" / "-s").unlink()
    node.configure("Mode FTFW { }")
    event = follower.finished(2)
    assert (event["state"], event["outcome"]) == ("backup", "ok")
    assert "-n" in node.asked


def test_a_rival_that_never_yields_is_answered_now_and_then(node: Node, follower: Follower) -> None:
    """keepalived writes a line for each of its adverts, and a re-assertion empties a cache."""
    follower.say("MASTER")
    follower.finished(1)
    for _ in range(30):
        follower.write(ANOTHER_MASTER)
        follower.goes_round()
    assert len(follower.transitions) == 2
    assert follower.finished(3)["cause"] == follower.finished(2)["cause"]


@pytest.mark.parametrize("trouble", ["gone", "of others", "a file"])
def test_a_run_directory_that_cannot_be_used_ends_no_follower(
    node: Node, follower: Follower, trouble: str
) -> None:
    """Each word is acted upon, and says what it lacks; without a directory one is made."""
    with stopped(follower):  # else it makes one anew between two acts
        shutil.rmtree(node.run_dir)
        if trouble == "of others":
            node.run_dir.mkdir()
            node.run_dir.chmod(0o777)
        elif trouble == "a file":
            node.run_dir.touch()
    follower.say("MASTER")
    ended = follower.finished(1)
    assert ended["outcome"] == ("ok" if trouble == "gone" else "degraded")
    assert node.asked == PROMOTION
    follower.goes_round()
    follower.say("STOP")
    assert follower.finished(2)["state"] == "stop"


def test_a_fifo_that_goes_with_the_run_directory_is_made_anew(node: Node) -> None:
    """The FIFO's place is in the run directory, by default: both are made again."""
    follower = node.follow(fifo=node.run_dir / "notify.fifo")
    with stopped(follower):
        shutil.rmtree(node.run_dir)
    until(follower.fifo.exists, "it is there again")
    follower.say("MASTER")
    assert follower.finished(1)["outcome"] == "ok"


def test_a_client_that_is_not_there_ends_no_follower(node: Node) -> None:
    """The word fails, with what to install; once it is there, the next one is acted upon."""
    node.client = node.world / "client"
    follower = node.follow()
    follower.say("MASTER")
    assert follower.finished(1)["outcome"] == "failed"
    with stopped(follower):
        shutil.copy(Path(__file__).with_name("fake") / "conntrackd", node.client)
        follower.say("STOP", "MASTER")
    until(lambda: states(follower)[-1] == "primary" and node.asked == PROMOTION, "it is promoted")


def test_a_log_that_nobody_reads_any_more_ends_no_follower(node: Node) -> None:
    """The pipe of its stderr has lost its reader."""
    reader, writer = os.pipe()
    os.close(reader)
    arguments = node.arguments("follow", "--group", "G1", str(node.fifo))
    os.mkfifo(node.fifo, 0o600)
    with keepalived_s_end(node.fifo) as end:
        node.spawn(arguments, stdout=writer, stderr=writer)
        os.close(writer)
        os.write(end, b'GROUP "G1" MASTER 0\n')
        until(lambda: node.asked == PROMOTION, "it is promoted")


def test_a_log_that_is_not_read_holds_up_no_word(node: Node) -> None:
    """The pipe of its stderr is full, and stays so."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    fill(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    arguments = node.arguments("follow", "--group", "G1", str(node.fifo))
    os.mkfifo(node.fifo, 0o600)
    with keepalived_s_end(node.fifo) as end:
        node.spawn(arguments, stderr=writer)
        os.close(writer)
        os.write(end, b'GROUP "G1" MASTER 0\n')
        until(lambda: node.asked == PROMOTION, "it is promoted")
    os.close(reader)


def test_a_daemon_that_died_is_started_again(node: Node, follower: Follower) -> None:
    """An idle follower sees it, says so, starts it and brings this node back in sync."""
    node.tell("up")
    node.on("any", DOWN)
    node.on("-d", ": >$world/up")
    follower.say("MASTER")
    follower.finished(1)
    later()
    (node.world / "up").unlink()
    assert follower.told("sync.lost")["outcome"] == "degraded"
    ended = follower.finished(2)
    assert (ended["state"], ended["steps"][0]["name"]) == ("primary", "start")
    assert node.asked[4:].count("-d") == 1
    assert [asked for asked in node.asked[4:] if asked != "-d"][-2:] == ["-R", "-B"]
    assert node.asked.count("-c") == 1


def test_a_word_ends_a_look_at_a_daemon_that_hangs(node: Node) -> None:
    """An idle follower's look is not worth a word's waiting, and its client is not left behind."""
    follower = node.follow()
    node.on("-R", "put internal 3")
    node.on("-s queue", f"echo '{WAITS}' >$world/on/any")  # a promotion's last request
    follower.say("MASTER")
    follower.finished(1)
    until((node.world / "asking").exists, "it looks")
    follower.say("STOP")
    assert follower.finished(2, within=4)["state"] == "stop"
    until(lambda: not lives(node.clients[-1]), "its client is gone")


# -- as a service -------------------------------------------------------------------------------


def test_a_service_manager_is_told_everything(node: Node) -> None:
    """READY=1 once the FIFO is open, STATUS with the state, WATCHDOG=1, STOPPING=1 at the end."""
    with service_manager(node) as (heard, environment):
        os.mkfifo(node.fifo, 0o600)
        follower = node.follow(environment=environment)
        assert "STATUS=" in heard("READY=1")
        os.close(os.open(node.fifo, os.O_WRONLY | os.O_NONBLOCK))  # there is a reader
        for _ in range(3):
            assert heard("WATCHDOG=1") == "WATCHDOG=1"
        follower.say("MASTER")
        assert "ok" in heard("STATUS=primary")
        follower.signal(signal.SIGTERM)
        heard("STOPPING=1")
        assert follower.wait().code == 0


def test_a_running_commit_is_alive(node: Node) -> None:
    """A request that takes its time is no reason for the watchdog to bark."""
    with service_manager(node) as (heard, environment):
        follower = node.follow(environment=environment)
        in_mid(node, follower, "MASTER", "-c")
        begun = boot_seconds()
        while boot_seconds() < begun + 1:  # some that were sent before may come first
            heard("WATCHDOG=1")
        node.tell("go")
        assert follower.finished(1)["outcome"] == "ok"


def test_a_daemon_that_is_started_is_no_part_of_the_service(node: Node) -> None:
    """It must not speak to the service manager in our name."""
    node.on("any", DOWN)
    node.on("-d", "env >$world/environment; : >$world/up")
    follower = node.follow(environment={"NOTIFY_SOCKET": str(node.world / "notify")})
    follower.say("MASTER")
    follower.finished(1)
    assert "NOTIFY_SOCKET" not in (node.world / "environment").read_text()


# -- what it costs ------------------------------------------------------------------------------

CHEAP = "Mode ALARM { DisableInternalCache On DisableExternalCache On }"
"""A promotion is one -c here, and a fault is nothing."""


@pytest.mark.parametrize("word", [None, "MASTER", "STOP"])
def test_an_idle_follower_costs_next_to_nothing(node: Node, word: str | None) -> None:
    """It sleeps: before any word, as a primary, and after keepalived has stopped."""
    with service_manager(node) as (heard, environment):
        follower = node.follow(environment=environment)
        if word is not None:
            follower.say(word)
            follower.finished(1)
        follower.goes_round()
        before = follower.cpu_ticks
        for _ in range(3):  # every 0.5 s
            heard("WATCHDOG=1")
        assert follower.cpu_ticks - before < 0.25 * TICKS_PER_SECOND


def test_ten_thousand_words_cost_no_memory(node: Node) -> None:
    """At most 40 MiB, and less than 1 MiB more after 10,000 notifications than after 1,000."""
    node.configure(CHEAP)
    follower = node.follow()
    assert follower.resident_kib <= 40 * 1024
    sizes = []
    for _ in range(10):
        follower.say(*["MASTER", "FAULT"] * 500)
        follower.goes_round()
        sizes.append(follower.resident_kib)
    assert states(follower)[-1] == "fault"
    assert sizes[-1] - sizes[0] < 1024


@pytest.mark.parametrize("trusted", [True, False], ids=["", "untrusted run directory"])
def test_a_hundred_transitions_leave_no_file_open(node: Node, *, trusted: bool) -> None:
    """Nor do they cost more memory than the first few."""
    node.configure(CHEAP)
    if not trusted:
        node.run_dir.mkdir()
        node.run_dir.chmod(0o777)
    follower = node.follow()
    files, memory = [], []
    for number in range(1, 121):
        follower.say("MASTER" if number % 2 else "FAULT")
        follower.finished(number)
        if number in (20, 120):
            follower.goes_round()
            files.append(follower.descriptors)
            memory.append(follower.resident_kib)
    assert files[1] - files[0] < 10  # a client that has just ended may not have been let go yet
    assert memory[1] - memory[0] < 3 * 1024
