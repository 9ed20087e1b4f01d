"""Which addresses this network namespace has."""

import errno
import socket

_ANY_MAY_BE_BOUND = "/proc/sys/net/ipv4/ip_nonlocal_bind"


def has_address(address: str) -> bool | None:
    """Whether an IPv4 address is one of this node's; None where that cannot be known.

    A socket can be bound to a local address alone (ip(7)), which costs a few µs however many
    addresses and routes there are. One that is bound to nothing receives no packet.
    """
    try:
        socket.inet_pton(socket.AF_INET, address)  # no name of a host: that would be looked up
        with open(_ANY_MAY_BE_BOUND, encoding="ascii") as file:
            if file.read().strip() != "0":
                return None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
            bound.bind((address, 0))
    except OSError as error:
        return False if error.errno == errno.EADDRNOTAVAIL else None
    return True
