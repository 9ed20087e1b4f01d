"""The shipped ruleset, tried with packets that are honest and with packets that are forged."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import packets
from tests.lab.firewall import CONNTRACKD_CONF, Firewall
from tests.lab.node import UNPRIVILEGED, Node
from tests.lab.pair import DEDICATED_LINK, Lab, Pair

SCRIPT = Path(packets.__file__)
CONFINED = ("setpriv", "--no-new-privs", "--bounding-set",
            "-all,+net_admin,+sys_nice,+net_bind_service")  # fmt: skip
"""Runs conntrackd with what it needs."""
PORT = "3780"
REPORT_PORT = "3781"
VIPS = {"eth0": ("192.0.2.1/32", "2001:db8:2::1/128"), "eth1": ("10.10.0.1/32", "fd00:10::1/128")}
FORGED = ("192.0.2.66", "10.10.0.10")
"""The two ends of a connection that no firewall has seen."""
WITHIN = 20


@pytest.fixture
def routed(lab: Lab) -> Pair:
    """A pair without its daemons; fw-1 has the virtual addresses."""
    pair = lab()
    pair.fw1.ip(
        *(f"address add {vip} dev {device} nodad" for device, vips in VIPS.items() for vip in vips)
    )
    return pair


@pytest.fixture
def replicating(lab: Lab) -> Pair:
    """A pair whose conntrackds run, and nothing else."""
    pair = lab()
    pair.fw1.start_conntrackd()
    pair.fw2.start_conntrackd()
    return pair


# -- what a node does -----------------------------------------------------------------------------


def program(*arguments: str) -> tuple[str, ...]:
    """The command line of packets.py, for a user who cannot read the file."""
    return ("python3", "-c", SCRIPT.read_text(), *arguments)


def send(node: Node, *hexed: str, device: str = "eth0", count: int = 1) -> None:
    """Have a node's root send packets, as they are."""
    arguments = ("send", device, str(count), "0")
    node.run(sys.executable, SCRIPT, *arguments, input="\n".join(hexed))


@contextlib.contextmanager
def flooding(node: Node, *hexed: str) -> Iterator[None]:
    """Send packets again and again meanwhile, up to a thousand times a second."""
    arguments = ("send", "eth0", "1000000", "0.001")
    flooder = node.start(sys.executable, SCRIPT, *arguments, stdin=subprocess.PIPE)
    assert flooder.stdin is not None
    flooder.stdin.write("\n".join(hexed))
    flooder.stdin.close()
    yield
    flooder.terminate()
    flooder.wait(timeout=10)


@contextlib.contextmanager
def received(node: Node, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Receive packets on a node meanwhile; `packets_of` reads them."""
    receiver = node.start(sys.executable, SCRIPT, *arguments)
    node.until(lambda: "ready" in node.output(receiver), WITHIN, "receives")
    yield receiver
    receiver.terminate()
    receiver.wait(timeout=10)


def packets_of(node: Node, receiver: subprocess.Popen[str]) -> list[bytes]:
    """What was received by now."""
    lines = node.output(receiver).split("\n")[:-1]
    return [bytes.fromhex(line) for line in lines if line != "ready"]


def source(packet: bytes) -> str:
    """The source that a packet has."""
    four = packet[0] >> 4 == 4
    return str(ipaddress.ip_address(packet[12:16] if four else packet[8:24]))


def protocol(packet: bytes) -> int:
    """The protocol within an IPv4 or IPv6 packet without options."""
    return packet[9] if packet[0] >> 4 == 4 else packet[6]


def payload(packet: bytes) -> bytes:
    """What follows the header of an IPv4 or IPv6 packet without options."""
    return packet[20 if packet[0] >> 4 == 4 else 40 :]


def ping(source: str, to: str) -> str:
    """An echo request of either family."""
    return packets.icmp(source, to, 8) if "." in to else packets.icmpv6(source, to, 128)


def answers(node: Node, receiver: subprocess.Popen[str], of: str) -> int:
    """Count the echo replies of an address that were received by now."""
    kind = 0 if "." in of else 129
    return sum(
        source(each) == of and protocol(each) in (1, 58) and payload(each)[0] == kind
        for each in packets_of(node, receiver)
    )


def external(firewall: Firewall) -> str:
    """The copies of the peer's connections, one a line."""
    return firewall.client("-e").stdout


def entries(firewall: Firewall, *arguments: str) -> list[str]:
    """The entries of the kernel's table that have all these arguments."""
    table = firewall.run("conntrack", "-L").stdout.splitlines()
    table += firewall.run("conntrack", "-L", "-f", "ipv6").stdout.splitlines()
    return [line for line in table if set(arguments) <= set(line.split())]


def local(node: Node, device: str) -> str:
    """The link-local address of a node's device, once it can be used."""

    def found() -> str:
        shown = node.run("ip", "-j", "-6", "address", "show", "dev", device, "scope", "link").stdout
        for each in json.loads(shown):
            for address in each.get("addr_info", ()):
                if "local" in address and not address.get("tentative"):
                    return str(address["local"])
        return ""

    return node.until(found, WITHIN, f"{device} has a link-local address")


# -- the replication's port -----------------------------------------------------------------------


@pytest.mark.parametrize("target", ["fw-1", "fw-2"])
@pytest.mark.parametrize("device", ["", "eth1", "lo"])
def test_only_root_sends_to_the_replication_port(
    replicating: Pair, target: str, device: str
) -> None:
    """A message that conntrackd accepts from root is refused to every other user."""
    message = packets.replicated(*FORGED, 22, number=100).hex()
    arguments = ("datagram", "", DEDICATED_LINK[target], PORT, message)

    sent = replicating.fw1.run(*UNPRIVILEGED, *program(*arguments, device)).stdout

    assert sent == "EPERM\n"
    replicating.fw1.load_entries(100)
    replicating.fw2.until(lambda: replicating.fw2.external() == 100, WITHIN, "the honest copies")
    assert not any(FORGED[0] in external(each) for each in (replicating.fw1, replicating.fw2))


@pytest.mark.parametrize("device", ["", "eth1", "lo"])
def test_only_root_sends_to_the_port_of_the_reports(replicating: Pair, device: str) -> None:
    """A report is signed; what is no report costs the follower nothing either."""
    arguments = ("datagram", "", DEDICATED_LINK["fw-2"], REPORT_PORT, b"FTFW".hex())

    sent = replicating.fw1.run(*UNPRIVILEGED, *program(*arguments, device)).stdout

    assert sent == "EPERM\n"
    assert replicating.fw1.run(*program(*arguments)).stdout == "sent\n"


def test_a_message_of_root_s_reaches_the_peer(replicating: Pair) -> None:
    """The forged message of the other tests is one that conntrackd accepts. Root is trusted."""
    message = packets.replicated(*FORGED, 22, number=100).hex()

    sent = replicating.fw1.run(*program("datagram", "", DEDICATED_LINK["fw-2"], PORT, message))

    assert sent.stdout == "sent\n"
    replicating.fw2.until(lambda: FORGED[0] in external(replicating.fw2), WITHIN, "the forged copy")


def test_no_datagram_reaches_conntrackd_over_lo(replicating: Pair) -> None:
    """The input chain drops what the output chain would have let through, root's included."""
    fw1 = replicating.fw1
    fw1.run("nft", "flush", "chain", "inet", "ftfw", "output")
    message = packets.replicated(*FORGED, 22, number=100).hex()

    sent = fw1.run(*program("datagram", "", DEDICATED_LINK["fw-1"], PORT, message)).stdout

    assert sent == "sent\n"
    replicating.fw2.load_entries(100)
    fw1.until(lambda: fw1.external() == 100, WITHIN, "the honest copies")
    assert FORGED[0] not in external(fw1)


def test_the_peer_s_datagrams_are_accepted_on_the_link_alone(replicating: Pair) -> None:
    """A datagram with the peer's source that comes from the inside does not arrive."""
    fw1 = replicating.fw1
    fw1.run("nft", "flush", "chain", "inet", "ftfw", "reverse_path")
    replicating.client.ip(f"route add {DEDICATED_LINK['fw-1']}/32 via 10.10.0.2")
    message = packets.replicated(*FORGED, 22, number=100)
    forged = packets.udp(DEDICATED_LINK["fw-2"], DEDICATED_LINK["fw-1"], int(PORT), message)

    with received(fw1, "receive", "eth1") as wire:
        send(replicating.client, forged)
        fw1.until(lambda: bytes.fromhex(forged)[20:] in map(payload, packets_of(fw1, wire)))

    replicating.fw2.load_entries(100)
    fw1.until(lambda: fw1.external() == 100, WITHIN, "the honest copies")
    assert FORGED[0] not in external(fw1)


@pytest.mark.parametrize("address", ["10.99.99.2", "0.0.0.0", "::"])
def test_no_user_takes_the_port_of_a_conntrackd_that_runs(replicating: Pair, address: str) -> None:
    """A second socket on the port would receive the peer's datagrams instead of conntrackd."""
    fw2 = replicating.fw2

    taken = fw2.start(*UNPRIVILEGED, *program("bind", address, PORT))

    assert fw2.until(lambda: fw2.output(taken), WITHIN, "tries the port") == "EACCES\n"
    replicating.fw1.load_entries(100)
    fw2.until(lambda: fw2.external() == 100, WITHIN, "the copies")


@pytest.mark.parametrize("address", ["10.99.99.2", "0.0.0.0", "::"])
def test_no_user_takes_the_port_of_a_conntrackd_that_is_down(
    replicating: Pair, address: str
) -> None:
    """The daemon starts again, whatever other users tried meanwhile."""
    fw2 = replicating.fw2
    fw2.stop_conntrackd()

    taken = fw2.start(*UNPRIVILEGED, *program("bind", address, PORT))

    assert fw2.until(lambda: fw2.output(taken), WITHIN, "tries the port") == "EACCES\n"
    fw2.start_conntrackd()
    replicating.fw1.load_entries(100)
    fw2.until(lambda: fw2.external() == 100, WITHIN, "the copies")


def test_no_user_can_make_what_conntrackd_refuses_to_start_over(lab: Lab) -> None:
    """The directory of the lock file is root's."""
    fw1 = lab().fw1
    conf = fw1.path(CONNTRACKD_CONF).read_text()
    (lock,) = (line.split()[1] for line in conf.splitlines() if line.strip().startswith("LockFile"))

    made = fw1.run(*UNPRIVILEGED, "mkdir", lock, check=False)

    assert made.returncode != 0
    fw1.start_conntrackd()


def test_a_confined_conntrackd_replicates(lab: Lab) -> None:
    """It has few capabilities, and its user is still root, which is what the ruleset asks for."""
    pair = lab()
    for firewall in (pair.fw1, pair.fw2):
        firewall.run(*CONFINED, "conntrackd", "-d", "-C", CONNTRACKD_CONF)

    pair.fw1.load_entries(100)

    pair.fw2.until(lambda: pair.fw2.external() == 100, WITHIN, "the copies")


# -- forged sources -------------------------------------------------------------------------------


def test_a_forwarded_port_takes_no_inside_source_from_outside(routed: Pair) -> None:
    """A SYN from outside with the source of an inside host does not reach the inside."""
    forged = packets.syn("10.10.0.77", "192.0.2.1", 8080)
    honest = packets.syn("192.0.2.10", "192.0.2.1", 8080)

    with received(routed.client, "receive", "eth0") as wire:
        send(routed.server, forged, honest, count=3)
        routed.client.until(
            lambda: "192.0.2.10" in map(source, packets_of(routed.client, wire)), WITHIN, "honest"
        )
        assert "10.10.0.77" not in map(source, packets_of(routed.client, wire))


@pytest.mark.parametrize(
    ("side", "asked", "sources", "beside"),
    [
        ("outside", "192.0.2.1", ("10.10.0.10", "192.0.2.10"), "10.10.0.2"),
        ("outside", "2001:db8:2::1", ("fd00:10::10", "2001:db8:2::10"), "fd00:10::2"),
        ("inside", "10.10.0.1", ("192.0.2.10", "10.10.0.10"), "192.0.2.2"),
        ("inside", "fd00:10::1", ("2001:db8:2::10", "fd00:10::10"), "2001:db8:2::2"),
        ("link", "10.99.99.1", ("10.10.0.10", "10.99.99.2"), "10.10.0.2"),
    ],
)
def test_the_firewall_answers_no_source_of_another_side(
    routed: Pair, side: str, asked: str, sources: tuple[str, str], beside: str
) -> None:
    """An answer would go to a host that never asked, on the other side of the firewall."""
    forged, honest = sources
    sender = {"outside": routed.server, "inside": routed.client, "link": routed.fw2}[side]
    victim = routed.server if side == "inside" else routed.client
    port = "eth2" if side == "link" else "eth0"
    with received(sender, "receive", port) as here, received(victim, "receive", "eth0") as there:
        send(sender, ping(forged, asked), ping(honest, asked), device=port, count=3)
        sender.until(lambda: answers(sender, here, asked) == 3, WITHIN, "the honest answers")
        # What was sent to the other side is there before the answer to a later question.
        send(victim, ping(forged, beside))
        victim.until(lambda: answers(victim, there, beside) == 1, WITHIN, "an answer")
        assert answers(victim, there, asked) == 0


@pytest.mark.parametrize(
    ("to", "sources", "arrives_as"),
    [
        ("192.0.2.10", ("198.51.100.9", "10.10.0.10"), "192.0.2.1"),
        ("2001:db8:2::10", ("2001:db8:99::9", "fd00:10::10"), "fd00:10::10"),
    ],
)
@pytest.mark.parametrize("route", ["no route back", "a route back"])
def test_no_source_leaves_that_is_not_of_the_inside(
    routed: Pair, to: str, sources: tuple[str, str], arrives_as: str, route: str
) -> None:
    """A forged source does not leave, even where a route leads back to it."""
    forged, honest = sources
    if route == "a route back":
        network = "198.51.100.0/24" if "." in to else "2001:db8:99::/64"
        routed.fw1.ip(f"route add {network} via {honest}")
    both = (packets.udp(each, to, 9) for each in (forged, honest))
    with received(routed.server, "receive", "eth0") as wire:
        send(routed.client, *both, count=3)

        def arrived() -> list[str]:
            udp = [each for each in packets_of(routed.server, wire) if protocol(each) == 17]
            return [source(each) for each in udp]

        routed.server.until(lambda: arrived().count(arrives_as) >= 3, WITHIN, "honest")
        assert forged not in arrived()


# -- who manages the firewalls --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "own", "address", "opens"),
    [
        ("inside", "10.10.0.10", "10.10.0.1", True),
        ("inside", "10.10.0.10", "10.10.0.2", True),
        ("inside", "fd00:10::10", "fd00:10::1", True),
        ("inside", "fd00:10::10", "fd00:10::2", True),
        ("inside", "10.10.0.10", "192.0.2.1", False),
        ("inside", "10.10.0.10", "192.0.2.2", False),
        ("inside", "10.10.0.10", "10.99.99.1", False),
        ("inside", "fd00:10::10", "2001:db8:2::1", False),
        ("inside", "172.16.0.9", "10.10.0.1", False),
        ("inside", "2001:db8:99::9", "fd00:10::1", False),
        ("outside", "192.0.2.10", "192.0.2.1", False),
        ("outside", "192.0.2.10", "10.10.0.1", False),
        ("outside", "2001:db8:2::10", "fd00:10::1", False),
        ("link", "10.99.99.2", "10.99.99.1", False),
        ("link", "10.99.99.2", "10.10.0.1", False),
    ],
)
def test_ssh_is_open_to_the_inside_s_hosts_at_the_inside_s_addresses(
    routed: Pair, side: str, own: str, address: str, opens: bool
) -> None:
    """No connection opens from another network, nor to an address of the outside or the link."""
    node = {"inside": routed.client, "outside": routed.server, "link": routed.fw2}[side]
    # A network behind the inside, and ways from outside and from the link to the inside's address.
    routed.client.ip(
        "address add 172.16.0.9/32 dev eth0", "address add 2001:db8:99::9/128 dev eth0 nodad"
    )
    routed.fw1.ip("route add 172.16.0.0/24 via 10.10.0.10", "route add 2001:db8:99::/64 via fd00:10::10")  # noqa: E501  # fmt: skip
    routed.server.ip("route add 10.10.0.1/32 via 192.0.2.2")
    if side == "link":
        routed.fw2.ip("route add 10.10.0.1/32 via 10.99.99.1")
    listener = routed.fw1.start(sys.executable, "-c", "import socket, signal\n"
        "listener = socket.create_server(('::', 22), family=socket.AF_INET6, dualstack_ipv6=True)\n"
        "print('listening', flush=True)\nsignal.pause()\n")  # fmt: skip
    routed.fw1.until(lambda: routed.fw1.output(listener), WITHIN, "listens")

    # What is not accepted leaves no entry in the table, which is the fact; it is not waited for.
    seconds = str(WITHIN if opens else 0.5)
    answer = node.run(sys.executable, SCRIPT, "connect", own, address, "22", seconds).stdout.strip()

    assert (answer == "connected") is opens, answer
    assert bool(entries(routed.fw1, "dport=22")) is opens


# -- ICMP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flooder_is", "outside_vip", "host", "inside_vip"),
    [
        ("192.0.2.10", "192.0.2.1", "10.10.0.10", "10.10.0.1"),
        ("2001:db8:2::10", "2001:db8:2::1", "fd00:10::10", "fd00:10::1"),
    ],
)
def test_pings_have_a_rate_on_each_side_which_is_not_neighbour_discovery_s(
    routed: Pair, flooder_is: str, outside_vip: str, host: str, inside_vip: str
) -> None:
    """A flood from outside costs the inside no ping, and no host outside its neighbour."""
    server, client, neighbour = routed.server, routed.client, routed.fw2
    with received(server, "receive", "eth0") as there, received(client, "receive", "eth0") as here:
        began = time.monotonic()
        with flooding(server, *[ping(flooder_is, outside_vip)] * 5):
            server.until(lambda: answers(server, there, outside_vip) > 50, WITHIN, "a flood")
            send(client, ping(host, inside_vip), count=20)
            client.until(lambda: answers(client, here, inside_vip) == 20, WITHIN, "every answer")
            neighbour.run("ip", "neighbour", "flush", "dev", "eth0")
            send(neighbour, packets.udp(f"{outside_vip[:-1]}3", outside_vip, 9))
            found = ("ip", "neighbour", "show", outside_vip, "dev", "eth0")
            neighbour.until(lambda: "lladdr" in neighbour.run(*found).stdout, WITHIN, "found")
        assert answers(server, there, outside_vip) <= 51 + 50 * (time.monotonic() - began)
    assert entries(routed.fw1, f"dst={outside_vip}") == []


def test_a_stranger_s_router_advertisement_is_not_taken(routed: Pair) -> None:
    """A firewall with accept_ra=2 gets no default route from a host of the outside."""
    fw1, server = routed.fw1, routed.server
    fw1.run("sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=2")
    stranger = local(server, "eth0")
    advertisement = b"\x40\0\x07\x08" + bytes(8)
    forged = packets.icmpv6(stranger, packets.ALL_NODES, 134, advertisement)
    honest = ping("2001:db8:2::10", "2001:db8:2::1")

    with received(server, "receive", "eth0") as wire:
        send(server, forged, honest, count=3)
        server.until(lambda: answers(server, wire, "2001:db8:2::1") == 3, WITHIN, "answers")

    assert fw1.run("ip", "-6", "route", "show", "default").stdout == ""


def test_a_timestamp_request_is_not_answered(routed: Pair) -> None:
    """The answer would hold the time of the firewall's clock."""
    timestamp = packets.icmp("192.0.2.10", "192.0.2.1", 13, body=bytes(16))
    server = routed.server

    with received(server, "receive", "eth0") as wire:
        send(server, timestamp, ping("192.0.2.10", "192.0.2.1"), count=3)
        server.until(lambda: answers(server, wire, "192.0.2.1") == 3, WITHIN, "three echoes")
        ours = [each for each in packets_of(server, wire) if source(each) == "192.0.2.1"]
        assert [payload(each)[0] for each in ours] == [0, 0, 0]


@pytest.mark.parametrize(
    ("host", "server_is", "leaves_as"),
    [("10.10.0.10", "192.0.2.10", "192.0.2.1"), ("fd00:10::10", "2001:db8:2::10", "fd00:10::10")],
)
def test_an_error_about_the_path_mtu_reaches_the_inside_host(
    routed: Pair, host: str, server_is: str, leaves_as: str
) -> None:
    """Path MTU discovery works through the translation, and over IPv6."""
    server, client = routed.server, routed.client
    with received(server, "receive", "eth0") as there, received(client, "receive", "eth0") as here:
        send(client, packets.udp(host, server_is, 9))

        def sent() -> list[bytes]:
            return [each for each in packets_of(server, there) if payload(each)[2:4] == b"\0\x09"]

        (packet,) = server.until(sent, WITHIN, "the packet")[:1]
        assert source(packet) == leaves_as
        if "." in host:
            error = packets.icmp(server_is, leaves_as, 3, 4, b"\0\0\x05\0" + packet)
        else:
            error = packets.icmpv6(server_is, leaves_as, 2, b"\0\0\x05\0" + packet, ttl=64)
        send(server, error)

        def arrived() -> bool:
            kinds = {(protocol(p), payload(p)[0]) for p in packets_of(client, here)
                     if source(p) == server_is}  # fmt: skip
            return bool(kinds & {(1, 3), (58, 2)})

        client.until(arrived, WITHIN, "receives the error")


def test_duplicate_address_detection_is_answered(routed: Pair) -> None:
    """A solicitation from `::`, whose sender has no address yet, finds the firewall."""
    target = ipaddress.ip_address("fd00:10::1").packed
    question = packets.icmpv6("::", "ff02::1:ff00:1", 135, bytes(4) + target)

    with received(routed.client, "receive", "eth0") as wire:
        send(routed.client, question)
        routed.client.until(
            lambda: [each for each in packets_of(routed.client, wire)
                     if payload(each)[:1] == b"\x88" and payload(each)[8:24] == target],
            WITHIN, "an answer",
        )  # fmt: skip


def test_a_switch_learns_the_firewall_s_multicast_groups(routed: Pair) -> None:
    """A switch that snoops sends no neighbour solicitation to a port without an answer."""
    switch = routed.client
    question = packets.icmpv6(
        local(switch, "eth0"), packets.ALL_NODES, 130,
        b"\0\1\0\0" + bytes(16), ttl=1, alert=True,
    )  # fmt: skip
    fw1 = local(routed.fw1, "eth1")

    with received(switch, "receive", "eth0") as wire:

        def reports() -> list[bytes]:
            # Of version 1 (131), as the question is; without a question none is sent.
            return [
                each for each in packets_of(switch, wire)
                if source(each) == fw1 and protocol(each) == 0 and payload(each)[8] == 131
            ]  # fmt: skip

        assert reports() == []
        send(switch, question)
        switch.until(reports, WITHIN, "a report")


# -- adverts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("guards", ["both", "the sets alone"])
@pytest.mark.parametrize(
    ("side", "honest_source", "forged_source"),
    [
        ("inside", "10.10.0.3", "192.0.2.3"),
        ("outside", "192.0.2.3", "10.10.0.3"),
        ("inside", "10.10.0.3", "10.10.0.10"),
    ],
)
def test_a_node_of_one_side_is_none_of_the_other(
    routed: Pair, side: str, honest_source: str, forged_source: str, guards: str
) -> None:
    """An advert is accepted on its node's own side alone."""
    fw1 = routed.fw1
    if guards == "the sets alone":
        fw1.run("nft", "flush", "chain", "inet", "ftfw", "reverse_path")
    node = routed.client if side == "inside" else routed.server
    own = "10.10.0.2" if side == "inside" else "192.0.2.2"
    forged, honest = (
        packets.ip(each, own, 112, bytes(8), ttl=255) for each in (forged_source, honest_source)
    )

    with received(fw1, "listen", "112") as listener:
        send(node, forged, honest, count=3)

        def arrived() -> list[str]:
            return [source(each) for each in packets_of(fw1, listener)]

        fw1.until(lambda: arrived().count(honest_source) == 3, WITHIN, "three adverts")
        assert forged_source not in arrived()


# -- half-open connections ------------------------------------------------------------------------


FLOOD = [
    packets.syn(f"192.0.2.{host}", "192.0.2.1", 8080, port)
    for host in range(100, 120)
    for port in range(40000, 40100)
]
"""The SYNs of 2,000 connections through the forwarded port, from hosts that do not exist."""
RATE = 250
"""Of them, so many a second are let through, and as many at once."""


def test_half_open_connections_through_a_forwarded_port_have_a_bound(routed: Pair) -> None:
    """A flood does not fill the table, and costs no connection that is open or goes elsewhere."""
    fw1, server, client = routed.fw1, routed.server, routed.client
    lasting = routed.open_inbound(5)
    client.run("nft", "add table inet silent; add chain inet silent input"
               " { type filter hook input priority 0; }; add rule inet silent input tcp dport 80"
               " ct state new drop")  # fmt: skip

    began = time.monotonic()
    send(server, *FLOOD)
    half_open = len(entries(fw1, "SYN_SENT"))
    assert RATE <= half_open <= RATE + RATE * (time.monotonic() - began)

    assert lasting.alive() == 5
    client.run("nft", "delete", "table", "inet", "silent")
    assert routed.open_connections(5).alive() == 5


def test_a_syn_that_is_sent_again_and_answered_again_does_not_lift_the_bound(routed: Pair) -> None:
    """Half-open connections last no longer for it than a timeout after what was let through."""
    fw1, server, client = routed.fw1, routed.server, routed.client
    fw1.run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_syn_recv=1")
    client.run("sysctl", "-qw", "net.ipv4.tcp_synack_retries=0")
    listener = client.start(sys.executable, "-c", "import socket, signal\n"
        "listener = socket.create_server(('10.10.0.10', 80))\n"
        "print('listening', flush=True)\nsignal.pause()\n")  # fmt: skip
    client.until(lambda: client.output(listener), WITHIN, "listens")

    counts = []
    for number in range(60):
        # Other ones first each time, so that new connections are what the limit lets through.
        first = number * 100 % len(FLOOD)
        send(server, *FLOOD[first:], *FLOOD[:first])
        if number % 10 == 9:
            counts.append(len(entries(fw1, "SYN_RECV")))
    # What was let through in the timeout's second, and at once before it; as much again to spare.
    assert 0 < max(counts) <= 2 * RATE + RATE, counts
