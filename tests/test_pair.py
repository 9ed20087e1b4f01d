"""The pair channel, from values alone: what is believed, what is fresh, and what follows."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primary_backup.pair.compare import Comparison, Ours, Theirs
from primary_backup.pair.differences import BOTH_SECONDS, differences
from primary_backup.pair.exchange import NONCES, Exchange
from primary_backup.pair.message import (
    LONGEST_BYTES,
    Message,
    OtherVersion,
    Refused,
    decode,
    encode,
)
from primary_backup.pair.report import Certificate, Report
from primary_backup.pair.watch import ALONE_SECONDS, LinkWatch
from primary_backup.plan import State
from primary_backup.proof import Outcome

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
OWN, PEER = "10.99.99.1", "10.99.99.2"
REPORT = Report(
    node="fw-2",
    program="0.2.0",
    state=State.PRIMARY,
    since=60.0,
    mode="FTFW",
    daemon=(1, 2, 3),
    internal=500,
    external=0,
    refused=0,
    kernel=510,
    limit=262144,
    polled=1.5,
    certificate=Certificate(2.0, 500, 500),
    outcome=Outcome.OK,
)
MESSAGE = Message(PEER, OWN, "boot", 7, 1, "abcd", "", REPORT)

counts = st.integers(0, 2**64 - 1)
ages = st.floats(0, 2**39)
texts = st.text(max_size=64).filter(lambda text: len(json.dumps(text)) <= 80)
perhaps_counts = st.none() | counts
reports = st.builds(
    Report,
    node=texts,
    program=st.text("0123456789.", max_size=16),
    state=st.none() | st.sampled_from(State),
    since=ages,
    mode=st.none() | st.text("ABC ", max_size=16),
    daemon=st.none() | st.tuples(counts, counts, counts),
    internal=perhaps_counts,
    external=perhaps_counts,
    refused=perhaps_counts,
    kernel=counts,
    limit=perhaps_counts,
    polled=st.none() | ages,
    certificate=st.none() | st.builds(Certificate, ages, counts, counts),
    outcome=st.none() | st.sampled_from(Outcome),
)
messages = st.builds(
    Message,
    sender=st.ip_addresses(v=4).map(str),
    receiver=st.ip_addresses(v=4).map(str),
    boot=st.uuids().map(str),
    start=counts,
    number=counts,
    nonce=st.text("0123456789abcdef", min_size=16, max_size=16),
    echo=st.text("0123456789abcdef", max_size=16),
    report=reports,
)


def signed(body: bytes, version: int = 1, key: bytes = KEY) -> bytes:
    """A datagram with any body, as only a holder of the key can make it."""
    head = b"FTFW" + bytes([version])
    return head + hmac.digest(key, head + body, hashlib.sha256) + body


# -- the message ----------------------------------------------------------------------------------


@given(messages)
def test_what_is_sent_is_what_is_received(message: Message) -> None:
    """And every message fits into one datagram, whatever its numbers are."""
    datagram = encode(message, KEY)

    assert len(datagram) <= LONGEST_BYTES
    assert decode(datagram, (OTHER_KEY, KEY)) == message


def test_the_longest_message_fits() -> None:
    """Every number at its largest, and a host name that is not even UTF-8."""
    most = 2**64 - 1
    report = REPORT._replace(
        node="\udcff" * 64, program="10.10.10.dev10", since=2**39 + 0.01, mode="NOTRACK direct",
        daemon=(most,) * 3, internal=most, external=most, refused=most, kernel=most, limit=most,
        polled=2**39 + 0.01, certificate=Certificate(2**39 + 0.01, most, most),
        outcome=Outcome.SUPERSEDED,
    )  # fmt: skip
    address, nonce = "255.255.255.255", "f" * 16
    message = Message(address, address, "b" * 36, most, most, nonce, nonce, report)

    assert len(encode(message, KEY)) <= LONGEST_BYTES


def test_a_message_is_what_the_manual_says_to_the_byte() -> None:
    """Another program could be written from it."""
    body = json.dumps(
        {
            "sender": PEER, "receiver": OWN, "boot": "boot", "start": 7, "number": 1,
            "nonce": "abcd", "echo": "",
            "report": {
                "node": "fw-2", "program": "0.2.0", "state": "primary", "since": 60.0,
                "mode": "FTFW", "daemon": [1, 2, 3], "internal": 500, "external": 0, "refused": 0,
                "kernel": 510, "limit": 262144, "polled": 1.5, "certificate": [2.0, 500, 500],
                "outcome": "ok",
            },
        },
        separators=(",", ":"),
    ).encode()  # fmt: skip

    assert encode(MESSAGE, KEY) == signed(body)


@given(st.binary(max_size=2 * LONGEST_BYTES))
def test_no_bytes_are_believed_or_fatal(datagram: bytes) -> None:
    """Their sender has no key."""
    with pytest.raises(Refused):
        decode(datagram, (KEY,))


@given(st.binary(max_size=LONGEST_BYTES - 37) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
).map(lambda value: json.dumps(value).encode()[: LONGEST_BYTES - 37]))  # fmt: skip
def test_a_signed_body_that_is_no_message_is_refused(body: bytes) -> None:
    """A peer with a bug is survived."""
    with pytest.raises(Refused, match="malformed"):
        decode(signed(body), (KEY,))


@pytest.mark.parametrize(
    "value", [-1, -0.5, True, "x" * 65, [], {}, [1, 2], 2**64, [0, -1, 1], 1e300]
)
def test_a_field_of_another_kind_is_refused(value: Any) -> None:
    """Every field has one kind, and no number is infinite or negative."""
    fields = [(None, name) for name in MESSAGE._asdict()]
    for inner, field in fields + [("report", name) for name in REPORT._asdict()]:
        body = json.loads(encode(MESSAGE, KEY)[37:])
        (body[inner] if inner else body)[field] = value
        with pytest.raises(Refused, match="malformed"):
            decode(signed(json.dumps(body).encode()), (KEY,))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_have_is_refused(number: str) -> None:
    """Python's parser takes it."""
    body = encode(MESSAGE, KEY)[37:].replace(b'"since":60.0', f'"since":{number}'.encode())
    with pytest.raises(Refused, match="malformed"):
        decode(signed(body), (KEY,))


def test_unknown_fields_are_passed_over() -> None:
    """A newer program may report more in the same version."""
    body = json.loads(encode(MESSAGE, KEY)[37:])
    body["hint"] = body["report"]["mood"] = {"new": [1]}

    assert decode(signed(json.dumps(body).encode()), (KEY,)) == MESSAGE


def test_another_version_is_named_once_its_key_is_ours() -> None:
    """Without the key it is forged like anything else."""
    with pytest.raises(OtherVersion) as raised:
        decode(signed(b"whatever", version=2), (KEY,))
    assert raised.value.version == 2
    with pytest.raises(Refused, match="forged"):
        decode(signed(b"whatever", version=2, key=OTHER_KEY), (KEY,))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda sent: sent[:-1], "forged"),
        (lambda sent: sent + b" ", "forged"),
        (lambda sent: sent[:36], "foreign"),
        (lambda sent: b"ftfw" + sent[4:], "foreign"),
        (lambda sent: sent + b" " * LONGEST_BYTES, "oversized"),
        (lambda sent: sent[:4] + b"\2" + sent[5:], "forged"),
    ],
)
def test_a_changed_datagram_is_refused(change: Any, kind: str) -> None:
    """The key signs every byte: the version, both addresses, the boot and the number too."""
    with pytest.raises(Refused, match=kind):
        decode(change(encode(MESSAGE, KEY)), (KEY,))


# -- the exchange ---------------------------------------------------------------------------------


class Sides:
    """Both ends of a channel; what one sends is handed to the other, or kept."""

    def __init__(self) -> None:
        self.own = Exchange(OWN, PEER, "boot-1", 100)
        self.peer = Exchange(PEER, OWN, "boot-2", 200)
        self.now = 0.0
        self._nonces = 0

    def second(self, exchange: Exchange) -> Message:
        """One side's message of a second."""
        self.now += 1
        self._nonces += 1
        exchange.renew(f"{self._nonces:016x}", self.now)
        return exchange.message(REPORT)

    def deliver(self, message: Message, to: Exchange) -> int:
        """Hand it over, and every answer to the other side; how many messages that were."""
        count, (receiver, sender) = 1, (to, self.peer if to is self.own else self.own)
        while receiver.receive(message, self.now):
            message, receiver, sender = receiver.message(REPORT), sender, receiver
            count += 1
        return count


def test_two_that_have_just_started_are_fresh_after_one_message_and_its_answers() -> None:
    """And no answer is answered for ever."""
    sides = Sides()
    sides.peer.renew("b" * 16, 0)

    assert sides.deliver(sides.second(sides.own), sides.peer) == 3
    assert sides.own.fresh is not None
    assert sides.peer.fresh is not None
    assert sides.deliver(sides.second(sides.own), sides.peer) == 2


def test_a_message_is_as_old_as_the_number_that_it_repeats() -> None:
    """It was made after that, so that no clock of the peer's is needed."""
    sides = Sides()
    sides.peer.renew("b" * 16, 0)
    asked = sides.second(sides.own)
    sides.peer.receive(asked, sides.now)
    answer = sides.peer.message(REPORT)

    sides.own.receive(answer, sides.now + 2)

    assert sides.own.fresh is not None
    assert (sides.own.fresh.made, sides.own.fresh.received) == (sides.now, sides.now + 2)


def test_a_message_is_believed_once() -> None:
    """A datagram that was recorded shows nothing any more."""
    sides = Sides()
    sides.peer.renew("b" * 16, 0)
    sides.deliver(sides.second(sides.own), sides.peer)
    recorded = sides.second(sides.peer)
    sides.own.receive(recorded, sides.now)

    with pytest.raises(Refused, match="replayed"):
        sides.own.receive(recorded, sides.now)


def test_a_number_that_is_too_old_makes_nothing_fresh() -> None:
    """A message that was held back is of a peer that may have changed since."""
    sides = Sides()
    sides.peer.renew("b" * 16, 0)
    sides.peer.receive(sides.second(sides.own), sides.now)
    held_back = sides.peer.message(REPORT)
    for _ in range(NONCES):
        sides.second(sides.own)

    sides.own.receive(held_back, sides.now)

    assert sides.own.fresh is None
    assert sides.own.stale == (sides.now, REPORT)


def test_the_messages_of_a_former_process_are_refused() -> None:
    """They may repeat a number of ours that is young enough."""
    sides = Sides()
    sides.peer.renew("b" * 16, 0)
    sides.deliver(sides.second(sides.own), sides.peer)
    former = sides.second(sides.peer)
    sides.peer = Exchange(PEER, OWN, "boot-3", 10)
    sides.peer.renew("c" * 16, sides.now)
    sides.deliver(sides.second(sides.own), sides.peer)
    assert sides.own.fresh is not None
    assert sides.own.fresh.message.boot == "boot-3"

    with pytest.raises(Refused, match="replayed"):
        sides.own.receive(former, sides.now)


def test_a_peer_that_was_started_again_is_fresh_with_the_answer() -> None:
    """Its first message repeats nothing: it is answered, and not believed."""
    sides = Sides()
    sides.peer.renew("b" * 16, 0)
    sides.deliver(sides.second(sides.own), sides.peer)
    before = sides.own.fresh
    sides.peer = Exchange(PEER, OWN, "boot-2", 300)

    first = sides.second(sides.peer)
    assert sides.own.receive(first, sides.now)
    assert sides.own.fresh is before
    sides.deliver(sides.own.message(REPORT), sides.peer)

    assert sides.own.fresh is not before


@pytest.mark.parametrize(
    ("sender", "receiver", "kind"),
    [(OWN, PEER, "reflected"), (PEER, PEER, "misdirected"), ("10.0.0.9", OWN, "misdirected")],
)
def test_a_message_for_another_is_refused(sender: str, receiver: str, kind: str) -> None:
    """One of our own that comes back first of all."""
    exchange = Exchange(OWN, PEER, "boot", 1)
    with pytest.raises(Refused, match=kind):
        exchange.receive(MESSAGE._replace(sender=sender, receiver=receiver), 0)


# -- both nodes' counts ---------------------------------------------------------------------------


def theirs(at: float, connections: int, **changed: Any) -> Theirs:
    """A count of the peer's."""
    return Theirs(at - 0.1, at, connections, 0, (1, 1, 1), 0.0)._replace(**changed)


def ours(at: float, connections: int, **changed: Any) -> Ours:
    """A count of the replica."""
    return Ours(at, connections, 0, (2, 2, 2))._replace(**changed)


def compared(*counts: Theirs | Ours) -> list[str]:
    """The doubt of each comparison that these counts allow; empty where the replica is whole."""
    comparison, found = Comparison(), []
    for each in counts:
        if isinstance(each, Ours):
            comparison.count(each)
        elif match := comparison.after(each, "fw-1"):
            found.append(match.doubt)
    return found


@pytest.mark.parametrize(
    ("first", "held", "second", "whole"),
    [
        (500, 500, 500, True),
        (500, 490, 500, True),
        (500, 489, 500, False),
        (500, 511, 500, False),
        (100_000, 99_000, 100_000, True),
        (100_000, 98_999, 100_000, False),
        (100, 300, 500, True),
        (500, 300, 100, True),
        (8, 0, 8, False),
        (0, 0, 0, True),
    ],
)
def test_a_replica_is_whole_between_two_counts_of_the_peer_s(
    first: int, held: int, second: int, *, whole: bool
) -> None:
    """Within 1 %, and 10 connections on their way; of few, half."""
    (doubt,) = compared(theirs(10, first), ours(12, held), theirs(15, second))
    assert (doubt == "") is whole
    assert doubt in ("", f"fw-1 reported {second} connections, here were {held}")


@pytest.mark.parametrize(
    "counts",
    [
        (theirs(10, 5), theirs(15, 5)),
        (ours(9, 5), theirs(10, 5), theirs(15, 5)),
        (theirs(10, 5), ours(9.95, 5), theirs(15, 5)),
        (theirs(10, 5), ours(14.95, 5), theirs(15, 5)),
        (theirs(10, 5), ours(12, 5), theirs(10.05, 5)),
        (theirs(10, 5), ours(12, 5), theirs(15, 5, daemon=(9, 9, 9))),
    ],
)
def test_counts_that_do_not_enclose_ours_show_nothing(counts: tuple[Theirs | Ours, ...]) -> None:
    """Ours must be certainly between two of the same conntrackd's."""
    assert compared(*counts) == []


@pytest.mark.parametrize("ours_first", [True, False])
def test_nodes_that_poll_at_the_same_moments_are_compared(*, ours_first: bool) -> None:
    """Ours is certainly between two of theirs, if not between the nearest two."""
    counts: list[Theirs | Ours] = []
    for at in (10, 15, 20, 25, 30):
        both = theirs(at, 5), ours(at - 0.05, 5)
        counts += reversed(both) if ours_first else both
    assert len(compared(*counts)) >= 2
    assert set(compared(*counts)) == {""}


def test_all_counts_from_before_ours_to_after_it_enclose_it() -> None:
    """It may have been made at any time between them."""
    early, high, low = theirs(10, 100), theirs(15, 300), theirs(20, 100)
    assert compared(early, ours(14.95, 300), high, low) == [""]
    (doubt,) = compared(early, ours(14.95, 400), high, low)
    assert doubt == "fw-1 reported 100 connections, here were 400"


def test_a_count_that_is_reported_again_changes_nothing() -> None:
    """Each second's report repeats the last poll's."""
    assert compared(theirs(10, 5), ours(12, 5), theirs(10.05, 5), theirs(15, 5)) == [""]


@pytest.mark.parametrize("node", ["fw-1", "this node"])
def test_connections_that_could_not_be_created_are_missing_for_good(node: str) -> None:
    """Equal counts of two full caches show nothing; a lifetime total from before does not count."""
    full = {"refused": 7}
    counts: list[Theirs | Ours] = [
        theirs(5, 5, refused=2),
        ours(7, 5, refused=2),
        theirs(10, 5, refused=2),
    ]
    more: list[Theirs | Ours] = [
        ours(12, 5, refused=2 if node == "fw-1" else 7),
        theirs(15, 5, refused=7 if node == "fw-1" else 2),
    ]
    later: list[Theirs | Ours] = [ours(17, 5, **full), theirs(20, 5, **full)]

    first, *rest = compared(*counts, *more, *later)

    assert first == ""
    doubt = f"the conntrackd of {node} could not create 5 connections (HashLimit?)"
    assert rest[0] == doubt
    assert rest[1] != ""


@pytest.mark.parametrize("restarted", ["fw-1's", "ours", "transition"])
def test_what_was_refused_once_is_forgotten_when_all_is_rebuilt(restarted: str) -> None:
    """By a new daemon on either side, or by the -R of the peer's next promotion."""
    daemon: dict[str, Any] = {"daemon": (7, 7, 7)}
    of_theirs: dict[str, Any] = daemon if restarted == "fw-1's" else {}
    if restarted == "transition":
        of_theirs = {"since": 11.0}
    of_ours = daemon if restarted == "ours" else {}
    rebuilt: list[Theirs | Ours] = [
        theirs(15, 5, refused=9, **of_theirs),
        ours(17, 5, refused=0, **of_ours),
        theirs(20, 5, refused=9, **of_theirs),
    ]

    doubts = compared(theirs(5, 5), ours(7, 5), theirs(10, 5, refused=9), *rebuilt)

    assert doubts[0] != ""
    assert doubts[-1] == ""


# -- the link -------------------------------------------------------------------------------------


def test_a_link_that_nothing_came_over_has_no_date() -> None:
    """Nor does the first poll show when its packets came."""
    watch = LinkWatch()
    watch.polled(5, 100)
    watch.counted(6, 10)
    assert watch.last(7) is None


def test_a_node_that_never_received_a_peer_is_alone_until_one_comes() -> None:
    """Ten minutes after conntrackd, which would receive it, was first polled."""
    watch = LinkWatch()
    assert not watch.is_alone(5 + ALONE_SECONDS)  # no conntrackd was running
    watch.polled(5, 0)
    assert not watch.is_alone(4 + ALONE_SECONDS)
    watch.polled(5 + ALONE_SECONDS, 0)
    assert watch.is_alone(5 + ALONE_SECONDS)
    watch.polled(10 + ALONE_SECONDS, 3)
    assert not watch.is_alone(10 + ALONE_SECONDS)


def test_a_peer_that_is_silent_now_has_left_no_node_alone() -> None:
    """It was received once: that is a silence."""
    watch = LinkWatch()
    watch.polled(5, 100)
    watch.received(6)
    watch.polled(6 + ALONE_SECONDS, 100)
    assert not watch.is_alone(6 + ALONE_SECONDS)


def test_a_report_dates_a_silence() -> None:
    """To the second, and whatever conntrackd receives."""
    watch = LinkWatch()
    watch.received(3)
    assert watch.last(9) == 3


def test_the_interface_dates_a_silence_that_began_between_two_polls() -> None:
    """conntrackd's packets came since the last poll; the counter shows until when."""
    watch = LinkWatch()
    watch.polled(5, 100)
    watch.polled(10, 105)
    for now in (10, 11, 12):
        watch.counted(now, 1000 + now)
    watch.counted(13, 1012)
    assert watch.last(14) == 12


def test_without_an_interface_there_is_no_silence_before_the_next_poll() -> None:
    """What cannot be shown is not so."""
    watch = LinkWatch()
    watch.polled(5, 100)
    watch.polled(10, 105)
    watch.counted(11, None)
    assert watch.last(14) == 14
    watch.polled(15, 105)
    assert watch.last(15) == 10


def test_a_conntrackd_that_was_restarted_is_no_silence() -> None:
    """It counts from 0 again."""
    watch = LinkWatch()
    watch.polled(5, 100)
    watch.polled(10, 105)
    watch.polled(15, 3)
    assert watch.last(16) == 16
    watch.polled(20, 3)
    assert watch.last(20) == 10


def test_other_packets_than_the_peer_s_do_not_hide_a_silence() -> None:
    """A switch sends its own."""
    watch = LinkWatch()
    watch.polled(5, 100)
    watch.polled(10, 105)
    watch.polled(15, 105)
    watch.counted(15, 7)
    watch.counted(16, 8)
    assert watch.last(16) == 10


# -- what differs ---------------------------------------------------------------------------------

OURS = REPORT._replace(node="fw-1", state=State.BACKUP)


@pytest.mark.parametrize(
    ("own", "peer", "topics"),
    [
        (OURS, REPORT, set()),
        (OURS._replace(state=State.PRIMARY), REPORT, {"primary"}),
        (OURS._replace(state=State.PRIMARY, since=BOTH_SECONDS - 0.1), REPORT, set()),
        (OURS._replace(mode="NOTRACK"), REPORT, {"mode"}),
        (OURS._replace(mode=None), REPORT, set()),
        (OURS._replace(program="0.1.0"), REPORT, {"program"}),
        (OURS._replace(program="0.1.0", mode="FTFW direct"), REPORT, {"program", "mode"}),
        (OURS, REPORT._replace(state=None, mode=None), set()),
    ],
)
def test_what_two_nodes_differ_in_is_named(own: Report, peer: Report, topics: set[str]) -> None:
    """Each with both nodes' values, and what to do."""
    found = differences(own, peer)
    assert found.keys() == topics
    assert all("fw-2" in why for why in found.values())
