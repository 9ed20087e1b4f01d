"""The pair channel in the follower's loop: report, receive, and what follows from it.

Nothing here waits: a promotion that arrives meanwhile is a few µs late.
"""

import contextlib
import os
import secrets
from collections import Counter
from collections.abc import Callable

from primary_backup.conntrackd.conf import Conntrackd, Link
from primary_backup.pair.channel import Channel
from primary_backup.pair.exchange import Exchange
from primary_backup.pair.keys import BadKeys, NoKeys, read_keys
from primary_backup.pair.message import Message, OtherVersion, Refused, decode, encode
from primary_backup.pair.report import Report
from primary_backup.proof import Outcome
from primary_backup.system.proc import boot_id, own_start

REFUSED_SECONDS = 60.0
"""Between two events about datagrams that were refused."""
_ADVICE = {
    "forged": "compare the key files of both nodes",
    "reflected": "something sends this node's own messages back",
}


class Pairing:
    """The reports to and from the peer; there are none without a key."""

    def __init__(self, key: str, event: Callable[[str, Outcome, str], None]) -> None:
        """``key`` is the path of the key file."""
        self._key = key
        self._event = event
        self._conf: Conntrackd | None = None
        self._found: object = None
        self._announced = ""
        self._keys: tuple[bytes, ...] = ()
        self._channel: Channel | None = None
        self._refused: Counter[str] = Counter()
        self._named = float("-inf")
        self._is_blocked = False
        self.exchange: Exchange | None = None
        """What was sent and received; None where there never was a channel."""
        self.other_version: int | None = None
        """The version that the peer's messages have, where it is not ours."""

    def fileno(self) -> int | None:
        """The socket's descriptor, for select(2)."""
        return self._channel.fileno() if self._channel is not None else None

    def open(self, conf: Conntrackd | None) -> None:
        """Open the channel, or again where a file has changed; report once what keeps it closed."""
        self._conf = conf
        link = conf.links[0] if conf is not None and conf.links else None
        port = max(conf.ports) + 1 if conf is not None and conf.ports else 0
        found = version(self._key), link, port
        if found == self._found and (self._channel is not None or not self._keys):
            return
        self._found = found
        try:
            self._keys = read_keys(self._key)
        except NoKeys as error:
            why = f"{error}: the nodes do not report to each other (`ftfw-transition key`)"
            self._close(Outcome.OK, why)
        except BadKeys as error:
            self._close(Outcome.DEGRADED, str(error))
        else:
            self._bind(link, port)

    def _bind(self, link: Link | None, port: int) -> None:
        if link is None:
            why = "conntrackd.conf names no peer by IPv4: the nodes do not report to each other"
            self._close(Outcome.DEGRADED, why)
            return
        ends = link.own, link.peer, port
        if self._channel is not None and self._channel.ends == ends:
            return  # another key, and the same exchange
        try:
            self._release()
            self._channel = Channel(*ends)
        except OSError as error:
            self._announce(Outcome.DEGRADED, f"no reports to or from the peer: {error}")
            return
        if self.exchange is None or self.exchange.ends != ends[:2]:
            self.exchange = Exchange(*ends[:2], boot_id(), own_start().ticks)
        self._announce(Outcome.OK, f"reports to and from {link.peer}, UDP port {port}")

    def _close(self, outcome: Outcome, why: str) -> None:
        self._release()
        self._keys = ()
        self._announce(outcome, why)

    def _release(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def _announce(self, outcome: Outcome, why: str) -> None:
        if why != self._announced:
            self._event("pair.channel", outcome, why)
        self._announced = why

    def receive(self, report: Callable[[], Report], now: float) -> None:
        """Take what has arrived, and answer it."""
        if self._channel is None or self.exchange is None:
            return
        peer = self._channel.peer
        for datagram, address in self._channel.receive():
            if address != peer:
                self._refused["foreign"] += 1
                continue
            try:
                message = self._decode(datagram)
                self.other_version = None
                if self.exchange.receive(message, now):
                    self._send(self.exchange, report())
            except OtherVersion as error:
                self.other_version = error.version
            except Refused as error:
                self._refused[error.kind] += 1

    def _decode(self, datagram: bytes) -> Message:
        try:
            return decode(datagram, self._keys)
        except Refused as error:
            before = self._keys
            if error.kind == "forged":
                self.open(self._conf)  # the key may just have been copied to this node
            if self._keys == before:
                raise
        return decode(datagram, self._keys)

    def send(self, report: Callable[[], Report], now: float) -> None:
        """Send a report, with a new random number; without a channel none is made."""
        if self.exchange is not None and self._channel is not None:
            self.exchange.renew(secrets.token_hex(8), now)
            self._send(self.exchange, report())
        if self._refused and now - self._named >= REFUSED_SECONDS:
            self._named = now
            counts = ", ".join(f"{kind} {count}" for kind, count in self._refused.items())
            advice = [_ADVICE[kind] for kind in self._refused if kind in _ADVICE]
            self._refused.clear()
            why = "; ".join((f"datagrams of the pair channel were refused: {counts}", *advice))
            self._event("pair.refused", Outcome.DEGRADED, why)

    def _send(self, exchange: Exchange, report: Report) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(encode(exchange.message(report), self._keys[0]))
        except PermissionError:
            if not self._is_blocked:
                where = f"{self._channel.peer} port {self._channel.port}"
                why = f"the ruleset, or IPAddressAllow= of the unit, forbids reports to {where}"
                self._event("pair.channel", Outcome.DEGRADED, why)
            self._is_blocked = True
        else:
            self._is_blocked = False


def version(path: str) -> tuple[int, ...] | None:
    """What changes with a file; None where there is none."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns
    return None
