"""The UDP socket between the two followers, on the dedicated link."""

import contextlib
import socket

from primary_backup.pair.message import LONGEST_BYTES

MOST_AT_ONCE = 16
"""So many datagrams are read between two looks at the FIFO: a flood delays no promotion."""


class Channel:
    """A socket that no other program can share: it is bound without SO_REUSEADDR."""

    def __init__(self, own: str, peer: str, port: int) -> None:
        """Bind it to this node's IPv4 address; raises OSError."""
        self.ends = own, peer, port
        self.peer, self.port = peer, port
        flags = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_INET, flags)
        try:
            self._socket.bind((own, port))
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise OSError(f"{own} port {port} (UDP): {error}") from error

    def fileno(self) -> int:
        """The descriptor, for select(2)."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def send(self, datagram: bytes) -> None:
        """Send one datagram to the peer, if the link takes it now; raises PermissionError."""
        try:
            self._socket.sendto(datagram, (self.peer, self.port))
        except PermissionError:
            raise  # of a ruleset, or of the unit's IPAddressAllow
        except OSError:
            pass  # no link, no route or no room: the next one is a second away

    def receive(self) -> list[tuple[bytes, str]]:
        """The datagrams that are there, MOST_AT_ONCE at most, with their senders' addresses."""
        received: list[tuple[bytes, str]] = []
        with contextlib.suppress(OSError):  # there is no other, or the peer's port was closed
            while len(received) < MOST_AT_ONCE:
                datagram, (address, _) = self._socket.recvfrom(LONGEST_BYTES + 1)
                received.append((datagram, address))
        return received
