"""Packets with forged sources, floods of them, and conntrackd's own messages.

The functions build packets as hexadecimal text. As a script, on a node of the lab, this file sends
and receives them:

    packets.py send DEVICE COUNT SECONDS     COUNT times the packets on standard input, one a line,
                                             with so many seconds after each time
    packets.py receive DEVICE        a line for every packet that reaches the device from outside
    packets.py listen PROTOCOL       a line for every IPv4 packet that a raw socket is given
    packets.py datagram SOURCE ADDRESS PORT PAYLOAD [DEVICE]   `sent`, or the error's name
    packets.py bind ADDRESS PORT     `bound` until it is ended, or the error's name
    packets.py connect SOURCE ADDRESS PORT SECONDS   `connected`, or the error's name
"""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator

ETH_P_ALL = 3
PACKET_OUTGOING = 4
ALL_NODES = "ff02::1"


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(source: str, to: str, protocol: int, payload: bytes, *, ttl: int = 64) -> str:
    """A packet of either family; the kernel fills in the checksum of an IPv4 header."""
    one, other = ipaddress.ip_address(source).packed, ipaddress.ip_address(to).packed
    if len(one) == 4:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, ttl, protocol, 0)
    else:
        header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, ttl)
    return (header + one + other + payload).hex()


def _over(source: str, to: str, protocol: int, payload: bytes, at: int) -> bytes:
    """A payload with its checksum, which covers the addresses as well, at that offset."""
    one, other = ipaddress.ip_address(source).packed, ipaddress.ip_address(to).packed
    pseudo = one + other + struct.pack("!II", len(payload), protocol)
    return payload[:at] + struct.pack("!H", _checksum(pseudo + payload)) + payload[at + 2 :]


def udp(source: str, to: str, port: int, payload: bytes = b"?") -> str:
    """A UDP datagram from port 40000."""
    datagram = struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload
    return ip(source, to, socket.IPPROTO_UDP, _over(source, to, socket.IPPROTO_UDP, datagram, 6))


def syn(source: str, to: str, port: int, source_port: int = 40000) -> str:
    """The first packet of a TCP connection."""
    segment = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 0x50, 0x02, 64240, 0, 0)
    return ip(source, to, socket.IPPROTO_TCP, _over(source, to, socket.IPPROTO_TCP, segment, 16))


def icmp(source: str, to: str, kind: int, code: int = 0, body: bytes = b"\0\7\0\1") -> str:
    """An ICMP message; the body of an echo is its identifier (7) and its number."""
    message = struct.pack("!BBH", kind, code, 0) + body
    checksum = struct.pack("!H", _checksum(message))
    return ip(source, to, socket.IPPROTO_ICMP, message[:2] + checksum + message[4:])


def icmpv6(
    source: str,
    to: str,
    kind: int,
    body: bytes = b"\0\7\0\1",
    *,
    ttl: int = 255,
    alert: bool = False,
) -> str:
    """An ICMPv6 message; with a router alert option, as MLD demands it, if `alert`."""
    message = _over(source, to, socket.IPPROTO_ICMPV6, struct.pack("!BBH", kind, 0, 0) + body, 2)
    if not alert:
        return ip(source, to, socket.IPPROTO_ICMPV6, message, ttl=ttl)
    options = bytes([socket.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0])
    return ip(source, to, socket.IPPROTO_HOPOPTS, options + message, ttl=ttl)


def replicated(source: str, to: str, port: int, *, number: int) -> bytes:
    """A message of conntrackd 1.4 (FTFW): a new TCP connection that is established.

    Its flag HELLO (0x20) makes the receiver start from this number.
    """
    one, other = (ipaddress.ip_address(each).packed for each in (source, to))
    attributes = (
        (0, one + other),
        (5, struct.pack("!I", 0xE)),  # status: SEEN_REPLY, ASSURED, CONFIRMED
        (2, bytes([socket.IPPROTO_TCP])),
        (3, struct.pack("!HH", 5555, port)),
        (4, bytes([3])),  # state: ESTABLISHED
        (6, struct.pack("!I", 3600)),
    )
    body = b""
    for kind, value in attributes:
        body += struct.pack("!HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)
    return struct.pack("!BBHI", 0x10, 0x20, 8 + len(body), number) + body


# -- on a node ------------------------------------------------------------------------------------


def send(device: str, count: int, pause: float) -> None:
    """Send the packets on standard input by a device, to where the node's routes lead."""
    sockets = {}
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        sockets[version] = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
        sockets[version].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    sockets[6].setsockopt(socket.IPPROTO_IPV6, 36, 1)  # IPV6_HDRINCL
    packets = [bytes.fromhex(line) for line in sys.stdin.read().split()]
    scope = socket.if_nametoindex(device)
    for _ in range(count):
        for packet in packets:
            if packet[0] >> 4 == 4:
                sockets[4].sendto(packet, (str(ipaddress.ip_address(packet[16:20])), 0))
            else:
                to = ipaddress.ip_address(packet[24:40])
                scoped = (str(to), 0, 0, scope if to.is_multicast or to.is_link_local else 0)
                sockets[6].sendto(packet, scoped)
        time.sleep(pause)


def receive(device: str) -> Iterator[bytes]:
    """The packets that reach the device, without those that leave by it."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as wire:
        wire.bind((device, ETH_P_ALL))
        yield b""
        while True:
            packet, (_, _, kind, *_) = wire.recvfrom(65535)
            if kind != PACKET_OUTGOING:
                yield packet


def listen(protocol: int) -> Iterator[bytes]:
    """The IPv4 packets that the ruleset lets through to a program."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as listener:
        yield b""
        while True:
            yield listener.recv(65535)


def datagram(source: str, address: str, port: int, payload: bytes, device: str = "") -> str:
    """Send a datagram as any program may."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        try:
            if device:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            if source:
                sender.bind((source, 0))
            sender.sendto(payload, (address, port))
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return "sent"


def bind(address: str, port: int) -> str:
    """Take a port, beside whoever has it; returns only if that fails."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taker.bind((address, port))
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        print("bound", flush=True)
        signal.pause()
    return ""


def connect(source: str, address: str, port: int, within: float) -> str:
    """Open a TCP connection."""
    try:
        socket.create_connection((address, port), within, (source, 0)).close()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "connected"


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "send":
        send(arguments[0], int(arguments[1]), float(arguments[2]))
    elif what in ("receive", "listen"):
        for got in receive(arguments[0]) if what == "receive" else listen(int(arguments[0])):
            print(got.hex() or "ready", flush=True)
    elif what == "datagram":
        print(
            datagram(
                arguments[0],
                arguments[1],
                int(arguments[2]),
                bytes.fromhex(arguments[3]),
                *arguments[4:],
            )
        )
    elif what == "bind":
        print(bind(arguments[0], int(arguments[1])), flush=True)
    else:
        print(connect(arguments[0], arguments[1], int(arguments[2]), float(arguments[3])))
