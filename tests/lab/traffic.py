"""Live connections: each exchanges 64 bytes with a server every 20 ms and times the silences.

As a script it is the server (`traffic.py server ADDRESS PORT`) or the client (`traffic.py client
ADDRESS PORT COUNT [SECONDS]`). The client prints a summary, one line of JSON, for every line
`alive SECONDS` it reads; at a line `finish SECONDS`, on SIGTERM, and after a duration, it prints
one and ends.
"""

from __future__ import annotations

import collections
import contextlib
import json
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final, TypedDict, cast

if TYPE_CHECKING:  # as a script this file stands alone
    from .node import Node

SIZE: Final = 64
PERIOD: Final = 0.02
"""Seconds between two exchanges of one connection."""
GRACE: Final = 10.0
"""Seconds in which a connection must show that it is alive; TCP's back-off needs several."""


class Summary(TypedDict):
    """How the connections fare; gaps are seconds between two echoes, of those that are alive."""

    opened: int
    alive: int
    """Connections that echoed what was sent after the question."""
    dead: dict[str, int]
    """The others by error; `silent` is the one without."""
    longest_gap: float
    median_gap: float
    """The middle one of the connections' longest gaps."""


class Traffic:
    """A client and its server, running on two nodes."""

    def __init__(
        self,
        client: Node,
        server: Node,
        address: str,
        port: int,
        count: int,
        *,
        listens: tuple[str, int] | None = None,
    ) -> None:
        """`listens`: where the server does, if not at the address and port that are called."""
        command = (sys.executable, __file__)
        self._node = client
        self._answers = 0
        self._listener = server.start(*command, "server", *map(str, listens or (address, port)))
        server.until(lambda: server.output(self._listener), what="the server listens")
        self._process = client.start(
            *command, "client", address, str(port), str(count), stdin=subprocess.PIPE
        )
        opened = self._answer(within=GRACE + 5)["alive"]
        assert opened == count, f"only {opened} of {count} connections could be opened"

    def alive(self, within: float = GRACE) -> int:
        """Count the connections that echo something sent from now on."""
        return self._ask("alive", within)["alive"]

    def finish(self, within: float = GRACE) -> Summary:
        """Ask a last time, close the connections, and let the port be used again."""
        summary = self._ask("finish", within)
        self._process.wait(timeout=30)
        self._listener.terminate()
        self._listener.wait(timeout=30)
        return summary

    def _ask(self, question: str, within: float) -> Summary:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question} {within}\n")
        self._process.stdin.flush()
        return self._answer(within + 5)

    def _answer(self, within: float) -> Summary:
        number = self._answers
        self._answers += 1

        def whole_lines() -> list[str]:
            lines = self._node.output(self._process).split("\n")[:-1]
            ended = self._process.poll() is not None and len(lines) <= number
            assert not ended, f"the client has ended: {lines}"
            return lines[number:]

        line = self._node.until(whole_lines, within, "the client answers")[0]
        return cast(Summary, json.loads(line))


class _Connection:
    """A client's end of a connection."""

    def __init__(self, address: str, port: int) -> None:
        self.socket = socket.create_connection((address, port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.awaited = 0
        self.sent = self.echoed = self.proven = time.monotonic()
        """When last sent to, when last received of, and when that was sent which sent last."""
        self.longest_gap = 0.0
        self.error: str | None = None

    def send(self) -> None:
        if self.error or self.awaited:
            return
        try:
            self.sent = time.monotonic()
            self.awaited = self.socket.send(b"." * SIZE)
        except OSError as error:
            self.error = type(error).__name__

    def receive(self) -> None:
        try:
            data = self.socket.recv(SIZE)
        except OSError as error:
            self.error = type(error).__name__
            return
        if not data:
            self.error = "closed"
            return
        self.awaited -= len(data)
        if not self.awaited:
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - self.echoed)
            self.echoed, self.proven = now, self.sent


def _summary(connections: list[_Connection], since: float) -> Summary:
    alive = [each for each in connections if not each.error and each.proven > since]
    dead = [each.error or "silent" for each in connections if each not in alive]
    gaps = [each.longest_gap for each in alive] or [0.0]
    return {
        "opened": len(connections),
        "alive": len(alive),
        "dead": dict(collections.Counter(dead)),
        "longest_gap": round(max(gaps), 3),
        "median_gap": round(statistics.median(gaps), 3),
    }


def client(address: str, port: int, count: int, seconds: float | None = None) -> None:
    """Keep connections talking, and answer for them."""
    questions = collections.deque(["alive"])
    signal.signal(signal.SIGTERM, lambda *_: questions.append("finish"))
    connections = [_Connection(address, port) for _ in range(count)]
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    if seconds is None:
        selector.register(sys.stdin, selectors.EVENT_READ)
    end = time.monotonic() + seconds if seconds else None
    asked: tuple[str, float, float] | None = None
    tick = time.monotonic()
    while True:
        if end and time.monotonic() > end:
            questions.append("finish")
            end = None
        for connection in connections:
            connection.send()
        tick = max(tick + PERIOD, time.monotonic())
        while (left := tick - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if isinstance(key.data, _Connection):
                    key.data.receive()
                    if key.data.error:
                        selector.unregister(key.fileobj)
                else:
                    questions.append(sys.stdin.readline() or "finish")
        if not asked and questions:
            state, _, grace = questions.popleft().partition(" ")
            now = time.monotonic()
            asked = (state.strip(), now, now + float(grace or GRACE))
        if asked:
            state, since, deadline = asked
            if time.monotonic() > deadline or all(
                each.error or each.proven > since for each in connections
            ):
                print(json.dumps(_summary(connections, since)), flush=True)
                asked = None
                if state == "finish":
                    return


def server(address: str, port: int) -> None:
    """Echo everything."""
    selector = selectors.DefaultSelector()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=1024)
    selector.register(listener, selectors.EVENT_READ)
    print("listening", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                accepted, _ = listener.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(accepted, selectors.EVENT_READ, accepted)
                continue
            connection: socket.socket = key.data
            data = b""
            with contextlib.suppress(OSError):
                data = connection.recv(4096)
                connection.sendall(data)
            if not data:
                selector.unregister(connection)
                connection.close()


if __name__ == "__main__":
    role, where, on_port, *rest = sys.argv[1:]
    if role == "server":
        server(where, int(on_port))
    else:
        client(where, int(on_port), int(rest[0]), *map(float, rest[1:]))
