"""What the tests of the follower share."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.fake.node import Follower, Hook, Node
from tests.waiting import until

WAITS = ": >$world/asking; until_released go"
"""A request that waits, and shows that it does."""
SENT = """grep -q '"-B"' $world/calls"""
"""Whether the peer was sent everything: what is asked then is a promotion's last request."""
DOWN = '[ -e $world/up ] || [ "$request" = -d ] || unreached'
PROMOTION = ["-c", "-f", "-R", "-B"]


def in_mid(node: Node, follower: Follower, state: str, request: str, script: str = WAITS) -> None:
    """Let the follower read a notification; its request runs until the node lets it go on."""
    node.on(request, script)
    follower.send(state)
    until((node.world / "asking").exists, f"{request} is asked")


def goes_on(node: Node, request: str) -> None:
    """Let that request be answered at once from now on."""
    (node.world / "on" / request).unlink()
    node.release("go")


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


def fill(pipe: int, reported: bytes) -> None:
    """Write until nothing more fits."""
    with suppress(BlockingIOError):
        while os.write(pipe, reported):
            pass


@contextmanager
def service_manager(node: Node) -> Iterator[tuple[Callable[[str], str], dict[str, str]]]:
    """Be the follower's service manager: what awaits its reports, and its environment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        path = str(node.world / "notify")
        manager.bind(path)
        manager.settimeout(10)

        def received(text: str) -> str:
            while text not in (reported := manager.recv(4096).decode()):
                pass
            return reported

        yield received, {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000000"}


ANOTHER_MASTER = b'INSTANCE "VI_1" MASTER_RX_LOWER_PRI 150\n'
