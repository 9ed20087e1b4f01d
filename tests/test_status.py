"""status.py: what a real conntrackd 1.4.7 printed, read as numbers; and bytes of any kind.

The captures under data/ were taken on one of a pair: 20 connections of its own, 500 of the peer's.
"""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from primary_backup.conntrackd.status import (
    Queue,
    Status,
    parse,
    parse_flushes,
    parse_flushing,
    parse_queue,
)

DATA = Path(__file__).parent / "data" / "conntrackd-1.4.7"
STATUSES = sorted(path.name.removesuffix(".s.txt") for path in DATA.glob("*.s.txt"))


def captured(name: str) -> bytes:
    """One captured output."""
    return (DATA / f"{name}.txt").read_bytes()


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("ftfw", Status(20, 500, 500, 1744, 76, 42048)),
        ("alarm", Status(20, 500, 516, 1764, 282, 43344)),
        ("notrack", Status(20, 500, 500, 1704, 267, 42024)),
        ("notrack-no-internal", Status(None, 500, 500, 1704, 32, 42024)),
        ("ftfw-no-external", Status(20, None, 500, 1744, 228, 42048)),
        ("notrack-no-caches", Status(None, None, 500, 1704, 32, 42024)),
    ],
)
def test_the_caches_and_the_traffic_are_read(name: str, status: Status) -> None:
    """Every number comes from its own line; a cache that does not exist is None, never 0."""
    assert parse(captured(f"{name}.s")) == status


@pytest.mark.parametrize("name", ["stats.s", "general-only.s", "ftfw.s-queue", "ftfw.s-process"])
def test_a_daemon_that_does_not_synchronise_has_no_status(name: str) -> None:
    """Nothing but a daemon with a Sync section prints an external cache or the injected entries."""
    assert parse(captured(name)) is None


@pytest.mark.parametrize("name", ["ftfw", "ftfw-no-external"])
def test_the_resend_queue_of_ftfw_is_counted(name: str) -> None:
    """In FTFW what waits for the peer's acknowledgement stands in the resend queue."""
    assert parse_queue(captured(f"{name}.s-queue")) == Queue(1, 0)


def test_what_is_not_sent_yet_is_not_acknowledged_either() -> None:
    """A bulk waits in txqueue first: an empty resend queue alone proves nothing."""
    text = captured("ftfw.s-queue")
    text = re.sub(rb"(queue txqueue:\ncurrent elements:\s+)0", rb"\g<1>300", text)
    assert parse_queue(text) == Queue(301, 0)


def test_what_the_resend_queue_dropped_is_counted() -> None:
    """Its own errors alone: the queue of what is not sent yet has a count of the same name."""
    text = captured("ftfw.s-queue")
    text = re.sub(rb"(queue rsqueue:[^q]*errors:\s+)0", rb"\g<1>237856", text)
    assert parse_queue(text) == Queue(1, 237856)


@pytest.mark.parametrize("name", ["notrack", "notrack-no-internal", "notrack-no-caches", "alarm"])
def test_there_is_no_resend_queue_outside_ftfw(name: str) -> None:
    """NOTRACK and ALARM acknowledge nothing, which is not the same as nothing left."""
    assert parse_queue(captured(f"{name}.s-queue")) is None


def test_a_running_flush_is_seen() -> None:
    """`-s process` names the child that flushes the kernel table while it lives."""
    assert parse_flushing(captured("ftfw.s-process-flushing"))


def test_no_child_is_no_flush() -> None:
    """`-s process` prints nothing where no child runs."""
    assert not parse_flushing(captured("ftfw.s-process"))


def test_a_dump_is_no_flush() -> None:
    """A child that dumps a cache for somebody flushes nothing."""
    assert not parse_flushing(b"PID=1776 type=any\n")


def test_the_flushes_of_the_kernel_table_are_counted() -> None:
    """`-s runtime` counts them all: here a flush that was asked for, then a purge that fired."""
    assert parse_flushes(captured("ftfw.s-runtime")) == 2


@pytest.mark.parametrize("name", ["ftfw.s", "stats.s", "ftfw.s-queue", "ftfw.s-process-flushing"])
def test_what_counts_no_flushes_is_not_a_count_of_zero(name: str) -> None:
    """Or the next answer would look like a purge that fired."""
    others = captured("ftfw.s-runtime").replace(b"flush kernel table:", b"another count:")
    assert parse_flushes(captured(name) + others) is None


def test_the_size_of_the_external_cache_is_not_taken_from_another_block() -> None:
    """A block that was cut off gives no number, rather than that of its neighbour."""
    head, _, _ = captured("ftfw.s").partition(b"cache external:")
    status = parse(head + b"cache external:\n")
    assert status is not None
    assert (status.internal, status.external) == (20, None)


@given(st.binary())
@example(b"cache external:\ncurrent active connections:\t" + b"9" * 5000)
@example(b"external inject:\nconnections created:\t" + b"9" * 5000)
def test_any_bytes_are_a_status_or_none(text: bytes) -> None:
    """No answer breaks the reader, whatever answered."""
    status = parse(text)
    synchronises = b"cache external:" in text or b"external inject:" in text
    assert (status is not None) == synchronises


@given(st.binary())
@example(b"queue rsqueue:\ncurrent elements:\t" + b"9" * 5000)
def test_any_bytes_are_a_queue_or_none(text: bytes) -> None:
    """No answer to `-s queue` breaks the reader."""
    assert min(parse_queue(text) or Queue(0, 0)) >= 0


@given(st.binary())
@example(b"\tflush kernel table:\t\t" + b"9" * 5000)
def test_any_bytes_are_a_count_of_flushes_or_none(text: bytes) -> None:
    """No answer to `-s runtime` breaks the reader."""
    assert parse_flushes(text) is None or b"flush kernel table:" in text


@given(name=st.sampled_from(STATUSES), data=st.data())
def test_a_torn_answer_never_invents_a_number(name: str, data: st.DataObject) -> None:
    """An answer that broke off, as a dying daemon's does, has fewer numbers, never other ones."""
    text = captured(f"{name}.s")
    whole = parse(text)
    lines = text.splitlines(keepends=True)
    torn = parse(b"".join(lines[: data.draw(st.integers(0, len(lines)))]))
    if whole is None or torn is None:
        assert torn is None
        return
    assert torn.internal == whole.internal
    assert torn.external in (whole.external, None)
    assert torn.replicated <= whole.replicated
    assert torn.packets_received in (whole.packets_received, 0)
