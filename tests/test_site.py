"""site.py: one small file, and a clear line for everything that is wrong in it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primary_backup.site.read import SiteError, read_site
from primary_backup.site.render import EXAMPLE

SITE = Path(EXAMPLE).read_text()


def wrong(old: str, new: str) -> tuple[str, ...]:
    """The lines for the example with one text in another's place."""
    assert old in SITE
    with pytest.raises(SiteError) as raised:
        read_site(SITE.replace(old, new, 1))
    assert all("\n" not in line for line in raised.value.args)
    return raised.value.args


def test_the_example_reports_what_it_reports() -> None:
    """Every value of the file is where the templates look for it."""
    site = read_site(SITE)

    assert (site.wiring, site.mode, site.link, site.port) == ("fifo", "ftfw", "eth2", 3780)
    assert (site.outside.interface, site.outside.vrid) == ("eth0", 62)
    assert list(map(str, site.outside.vips4)) == ["192.0.2.1"]
    assert list(map(str, site.inside.vips6)) == ["fd00:10::1"]
    assert [node.name for node in site.nodes] == ["fw-1", "fw-2"]
    assert str(site.nodes[1].inside4) == "10.10.0.3/24"
    assert str(site.nodes[0].link) == "10.99.99.1/30"
    ((port, host, to),) = site.forwards
    assert (port, str(host), to) == (8080, "10.10.0.10", 80)


def test_what_is_left_out_is_what_is_recommended() -> None:
    """A site of IPv4 without forwarded ports reports neither wiring, nor mode, nor port."""
    text = SITE.partition("# TCP ports")[0]
    for default in ("port = 3780", 'wiring = "fifo"', 'mode = "ftfw"'):
        text = text.replace(default, "")
    for address in ("2001:db8:2::1", "fd00:10::1"):
        text = text.replace(f', "{address}"', "")

    site = read_site(text)

    assert (site.wiring, site.mode, site.port, site.forwards) == ("fifo", "ftfw", 3780, ())
    assert site.inside.vips6 == ()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('wiring = "fifo"', 'wiring = "wire"', "wiring: 'wire' is none of fifo, hooks"),
        ('mode = "ftfw"', 'mode = "FTFW"', "mode: 'FTFW' is none of ftfw, direct, notrack, alarm"),
        ('mode = "ftfw"', "mdoe = 1", "mdoe: unknown key: remove it, or correct its spelling"),
        ("vrid = 62", "vrid = 0", "outside.vrid: 0 is no whole number from 1 to 255"),
        ("vrid = 62", "vrid = true", "outside.vrid: True is no whole number from 1 to 255"),
        ("vrid = 62", "", "outside.vrid: is missing"),
        (
            'interface = "eth2"',
            'interface = "d0"',
            "link.interface: 'd0' is not the name of a network interface that conntrackd can read",
        ),
        ("port = 3780", "port = 0", "link.port: 0 is no whole number from 1 to 65535"),
        ("port = 3780", 'port = "3780"', "link.port: '3780' is no whole number from 1 to 65535"),
        (
            "port = 3780",
            "port = 32767",
            "link.port: 32767 and the next one cannot be kept for root",
        ),
        ('name = "fw-2"', 'name = "fw-1"', "node: both are named fw-1"),
        ('name = "fw-2"', 'name = "fw 2"', "node.2.name: 'fw 2' is not a host name"),
        (
            '"192.0.2.3/24"',
            '"192.0.2.3"',
            "node.2.outside.1: '192.0.2.3' is not an address with a prefix length",
        ),
        ('"192.0.2.3/24"', '"192.0.2.2/24"', "192.0.2.2 is given twice"),
        (
            '"192.0.2.3/24"',
            '"192.0.3.3/24"',
            "outside: the two nodes' addresses are not in the same networks",
        ),
        (
            '"192.0.2.3/24", ',
            "",
            "node.2.outside: one IPv4 address is needed, and at most one of IPv6",
        ),
        (
            '"192.0.2.1"',
            '"192.0.3.1"',
            "outside.vips: 192.0.3.1 lies outside of the nodes' network",
        ),
        ('"192.0.2.1"', '"192.0.2.2"', "192.0.2.2 is given twice"),
        ('"192.0.2.1", ', "", "outside.vips: VRRP needs one of IPv4 at least"),
        (
            '"10.99.99.2/30"',
            '"10.99.98.2/30"',
            "link: 10.99.99.1/30 and 10.99.98.2/30 are not in one network",
        ),
        ('"10.99.99.2/30"', '"fd00::2/64"', "node.2.link: 'fd00::2/64' is not an IPv4 address"),
        (
            'interface = "eth2"',
            'interface = "eth1"',
            "outside, inside and link share an interface: eth0, eth1, eth1",
        ),
        ("10.10.0.10:80", "10.11.0.10:80", "forward: 10.11.0.10 lies outside of the inside"),
        ("10.10.0.10:80", "10.10.0.10", "forward.1.to: '10.10.0.10' is not an IPv4 address"),
        ("10.10.0.10:80", "10.10.0.10:65536", "forward.1.to: '10.10.0.10:65536' is not an IPv4"),
        ("10.10.0.10:80", "10.10.0.0:80", "forward: 10.10.0.0 is the address of the network"),
        ("10.10.0.10:80", "10.10.0.1:80", "forward: 10.10.0.1 is an address of the firewalls"),
        ("10.10.0.10:80", "10.10.0.3:80", "forward: 10.10.0.3 is an address of the firewalls"),
        ("10.10.0.10:80", "127.0.0.1:80", "forward.1.to: 127.0.0.1 is loopback"),
        (
            '"192.0.2.1"',
            '"192.0.2.0"',
            "outside.vips: 192.0.2.0 is the address of the network 192.0.2.0/24 itself",
        ),
        (
            '"192.0.2.1"',
            '"192.0.2.255"',
            "outside.vips: 192.0.2.255 is the broadcast address of 192.0.2.0/24",
        ),
        ('"2001:db8:2::1"', '"2001:db8:2::"', "outside.vips: 2001:db8:2:: is the address of the"),
        ('"2001:db8:2::1"', '"fe80::1"', "outside.vips.2: fe80::1 is link-local"),
        ('"2001:db8:2::1"', '"::"', "outside.vips.2: :: is unspecified"),
        ('"192.0.2.1"', '"224.0.0.18"', "outside.vips.1: 224.0.0.18 is multicast"),
        (
            '"10.10.0.2/24"',
            '"10.10.0.255/24"',
            "node.1.inside.1: 10.10.0.255 is the broadcast address of 10.10.0.0/24",
        ),
        ('"10.10.0.2/24"', '"127.0.0.2/8"', "node.1.inside.1: 127.0.0.2 is loopback"),
        ('"2001:db8:2::2/64"', '"::1/64"', "node.1.outside.2: ::1 is loopback"),
        ('"10.99.99.2/30"', '"10.99.99.3/30"', "node.2.link: 10.99.99.3 is the broadcast address"),
        ('"10.99.99.1/30"', '"10.99.99.0/30"', "node.1.link: 10.99.99.0 is the address of the"),
        ('name = "fw-2"', 'name = "FW-1"', "node: fw-1 and FW-1 differ in nothing but case"),
        ("[outside]", "[outside", "not TOML: Expected ']' at the end of a table declaration"),
    ],
)
def test_a_wrong_value_gets_a_line_that_names_it(old: str, new: str, line: str) -> None:
    """Where it stands, what is wrong, and what would be right."""
    assert [reported for reported in wrong(old, new) if reported.startswith(line)]


@pytest.mark.parametrize(
    "name",
    [
        *("1eth", "_x", "-x", ".", "..", "eth 0", "eth0/1", "a2345678901234567", "äth0", ""),
        *("d0", "a", "beef", "BEEF", "1234"),
        *("on", "Off", "yes", "NO", "nack", "Alarm", "ftfw", "persistent", "notrack"),
        *("TCP", "UDP", "Port", "Path", "for", "Interface", "CLOSE_WAIT", "StartupResync"),
    ],
)
def test_a_name_that_conntrackd_cannot_read_is_refused(name: str) -> None:
    """Its configuration has no quotes: a keyword, or what begins otherwise, is no name."""
    (line,) = wrong('interface = "eth0"', f'interface = "{name}"')

    assert line.startswith(f"outside.interface: {name!r} is not the name of a network interface")


def test_a_name_that_both_can_read_is_taken() -> None:
    """More than four hexadecimal digits are a name, and nft gets every name in quotes."""
    for name in ("beef0", "c0ffee", "facade", "ct", "log", "mark", "WAN", "tcp", "br-lan.100"):
        site = read_site(SITE.replace('"eth0"', f'"{name}"'))

        assert site.outside.interface == name


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ('"2001:db8:2::1"', r'"2001:db8:2::1%x\n    }\n    evil\n"', "outside.vips.2"),
        ('"2001:db8:2::1"', '"2001:db8:2::1", "2001:db8:2::1%z"', "outside.vips.3"),
        ('"2001:db8:2::2/64"', r'"2001:db8:2::2%\nevil/64"', "node.1.outside.2"),
    ],
)
def test_nothing_rides_on_an_address_into_a_file(old: str, new: str, where: str) -> None:
    """The zone of an IPv6 address is free text, which nothing here needs."""
    (line,) = wrong(old, new)

    assert line.startswith(f"{where}: ")


def test_a_network_of_two_hosts_has_no_other_addresses() -> None:
    """In a /31 and a /127 both addresses are a host's; so is an IPv6 network's last one."""
    text = SITE.replace("10.99.99.1/30", "10.99.99.0/31").replace("10.99.99.2/30", "10.99.99.1/31")
    last = "2001:db8:2:0:ffff:ffff:ffff:ffff"

    site = read_site(text.replace("2001:db8:2::3/64", f"{last}/64"))

    assert [str(node.link.ip) for node in site.nodes] == ["10.99.99.0", "10.99.99.1"]
    assert str(site.nodes[1].outside[1].ip) == last


def test_networks_that_overlap_are_named() -> None:
    """A router between two networks that share addresses leads nowhere."""
    text = SITE.replace("10.99.99.1/30", "10.10.0.5/30").replace("10.99.99.2/30", "10.10.0.6/30")

    with pytest.raises(SiteError) as raised:
        read_site(text)

    assert raised.value.args == ("inside and link overlap: 10.10.0.0/24 and 10.10.0.4/30",)


def test_a_pair_has_two_nodes() -> None:
    """A third one is no failover cluster of keepalived's and conntrackd's."""
    third = SITE.partition("[[node]]")[2].partition("[[node]]")[0].replace("fw-1", "fw-3")

    assert wrong("[[forward]]", f"[[node]]{third}[[forward]]") == (
        "node: a pair has two, here are 3",
    )


def test_everything_that_is_wrong_is_reported_at_once() -> None:
    """Nobody fixes a file line by line in seven rounds."""
    lines = wrong("[[node]]", "unknown = 1\n[[node]]\nvrid = 4")

    assert len(lines) == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (r'"a\nb\u001b[31m" = 1', r"a\nb\x1b[31m: unknown key: remove it, or correct its spelling"),
        (f"x = {'[' * 5000}", "not a site: nested too deeply"),
        (f"vrid = {'1' * 5000}", "not TOML: Exceeds the limit (4300 digits)"),
    ],
)
def test_nothing_in_a_file_makes_more_of_an_error_than_a_line(text: str, line: str) -> None:
    """No line break, nothing that a terminal acts upon, no traceback."""
    assert [
        reported
        for reported in wrong("[outside]", f"{text}\n[outside]")
        if reported.startswith(line)
    ]


@given(st.text())
def test_any_text_is_a_site_or_an_error_of_it(text: str) -> None:
    """There is no traceback, whatever is given as one."""
    with pytest.raises(SiteError):
        read_site(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(
    st.sampled_from(['"eth0"', "62", '["10.10.0.1", "fd00:10::1"]', '"fw-2"', '"10.99.99.1/30"']),
    VALUES,
)
def test_any_value_in_any_place_is_taken_or_named(old: str, value: object) -> None:
    """A value of another type is an error of the file's, never a traceback."""
    assert old in SITE
    new = str(value).replace("'", '"').replace("None", "[]").replace("T", "t").replace("F", "f")
    with contextlib.suppress(SiteError):
        assert len(read_site(SITE.replace(old, new, 1)).nodes) == 2
