"""service.py: what a real datagram socket receives, as a service manager would."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings

from primary_backup.system.systemd import Service
from tests.test_printable import ANY

HOUR = str(3600 * 1_000_000)


@pytest.fixture(autouse=True)
def unmanaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs the tests, no service manager of its own has a part in them."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """A service manager's socket, with its address in the environment."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(name if request.param == "path" else f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", name if request.param == "path" else f"@{name}")
        yield listener


def received(manager: socket.socket) -> list[str]:
    """All that was reported, a datagram each."""
    reported = []
    while True:
        try:
            reported.append(manager.recv(65536).decode())
        except BlockingIOError:
            return reported


def test_what_is_reported_arrives_in_one_datagram(manager: socket.socket) -> None:
    """READY and STATUS, one line each (sd_notify(3))."""
    Service().notify(READY="1", STATUS="following – /run/notify.fifo")
    assert received(manager) == ["READY=1\nSTATUS=following – /run/notify.fifo"]


def test_any_text_is_one_printable_line(manager: socket.socket) -> None:
    """Whatever a name holds, it begins no other field, and `systemctl status` may show it."""
    service = Service()

    @given(ANY)
    @example("G\nMAINPID=1 \udcff")
    @settings(deadline=None)
    def reports(text: str) -> None:
        service.notify(STATUS=text)
        (reported,) = received(manager)
        assert reported.startswith("STATUS=")
        assert reported.isprintable()

    reports()


def test_a_program_that_is_started_is_no_part_of_the_service(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conntrackd that inherited the address would speak for us."""
    monkeypatch.setenv("WATCHDOG_USEC", HOUR)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    Service().notify(READY="1")
    assert received(manager) == ["READY=1"]
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


def test_the_watchdog_hears_us_at_once_and_then_no_more_than_twice_an_interval(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often we are asked whether we live."""
    monkeypatch.setenv("WATCHDOG_USEC", HOUR)
    service = Service()
    for _ in range(1000):
        service.pet_watchdog()
    assert received(manager) == ["WATCHDOG=1"]
    assert 1700 < service.patience_seconds <= 1800


def test_who_sleeps_no_longer_than_reported_is_received_in_time(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that the patience is over, the watchdog receives us once."""
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    service = Service()
    for _ in range(5):
        assert service.patience_seconds <= 0.05
        time.sleep(service.patience_seconds)
        service.pet_watchdog()
        assert received(manager) == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("interval", "pid"), [("", ""), ("0", ""), ("x", ""), ("-1", ""), (HOUR, "1")]
)
def test_where_nobody_watches_us_we_need_not_be_alive(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, interval: str, pid: str
) -> None:
    """No watchdog, one that makes no sense, or another process's: we may sleep."""
    monkeypatch.setenv("WATCHDOG_USEC", interval)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    service = Service()
    service.pet_watchdog()
    assert received(manager) == []
    assert service.patience_seconds > 60


@pytest.mark.parametrize("address", ["", "@", "missing", "x" * 200, "vsock:2:1234", "\udcff\x9b"])
def test_a_manager_that_cannot_be_reached_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """Without a service manager, or where it is gone, nothing is reported and nothing raised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", HOUR)
    service = Service()
    service.notify(READY="1")
    service.pet_watchdog()
    assert service.patience_seconds > 0


def test_a_manager_that_ends_or_never_reads_keeps_nobody_waiting(manager: socket.socket) -> None:
    """A full queue must not hold up a promotion, nor a socket that is closed."""
    service = Service()
    for _ in range(10_000):
        service.notify(STATUS="x")
    assert set(received(manager)) == {"STATUS=x"}
    manager.close()
    service.notify(STATUS="x")
