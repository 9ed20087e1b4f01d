"""conf.py: what conntrackd would make of a conntrackd.conf, from values alone.

Every expectation here was read off the real conntrackd 1.4.7; `integration/test_conf_real.py`
compares the two again where conntrackd is at hand.
"""

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from primary_backup.conntrackd.conf import ConfError, Conntrackd, Link, read_conntrackd
from primary_backup.plan import Mode

DATA = Path(__file__).parent / "data" / "conf"

NOTHING = Conntrackd(
    mode=None,
    stats=False,
    socket=None,
    lock_file="/var/lock/conntrackd.lock",
    log_file=None,
    hash_size=65536,
    hash_limit=262144,
    purge_timeout=60,
    internal_cache=True,
    external_cache=True,
    expectation_sync=False,
)
SYNC = dataclasses.replace(NOTHING, mode=Mode.FTFW)


def general(settings: bytes) -> Conntrackd:
    """Read a file with a General section only."""
    return read_conntrackd(b"General {\n" + settings + b"\n}\n")


def sync(settings: bytes) -> Conntrackd:
    """Read a file with a Sync section only."""
    return read_conntrackd(b"Sync {\n" + settings + b"\n}\n")


EXAMPLE = Conntrackd(
    mode=Mode.FTFW,
    stats=False,
    socket="/var/run/conntrackd.ctl",
    lock_file="/var/lock/conntrack.lock",
    log_file="/var/log/conntrackd.log",
    hash_size=32768,
    hash_limit=131072,
)
STATS = Conntrackd(
    mode=None,
    stats=True,
    socket="/var/run/conntrackd.ctl",
    lock_file="/var/lock/conntrack.lock",
    hash_size=8192,
    hash_limit=65535,
)
DEBIAN = dataclasses.replace(
    STATS,
    socket="/var/run/conntrackd.sock",
    lock_file="/var/lock/conntrackd.lock",
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ftfw", EXAMPLE),
        ("notrack", dataclasses.replace(EXAMPLE, mode=Mode.NOTRACK)),
        ("alarm", dataclasses.replace(EXAMPLE, mode=Mode.ALARM)),
        ("stats", STATS),
        ("debian", DEBIAN),
    ],
)
def test_the_shipped_examples_are_read(name: str, expected: Conntrackd) -> None:
    """The example files of conntrack-tools, and Debian's own, are read as the daemon reads them."""
    assert read_conntrackd((DATA / f"{name}.conf").read_bytes()) == expected


@pytest.mark.parametrize(
    "text",
    [b"", b"\n", b"# nothing\n", b"General {}", b"General{}General\n{}"],
)
def test_an_empty_file_gives_the_defaults(text: bytes) -> None:
    """An empty file is legal: the daemon starts, replicates nothing and nobody can reach it."""
    assert read_conntrackd(text) == NOTHING


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (b"", Mode.FTFW),
        (b"Mode FTFW {}", Mode.FTFW),
        (b"Mode ftFW {}", Mode.FTFW),
        (b"Mode nack {}", Mode.FTFW),
        (b"Mode ALARM {}", Mode.ALARM),
        (b"Mode PersistenT {}", Mode.ALARM),
        (b"Mode NoTrack {}", Mode.NOTRACK),
        (b"Mode NOTRACK {} Mode ALARM {}", Mode.ALARM),
        (b"Mode ALARM {} Mode NOTRACK {}", Mode.ALARM),
        (b"Mode FTFW {} Mode NOTRACK {} Mode ALARM {}", Mode.FTFW),
        (b"Mode |||| {}", Mode.FTFW),
        (b"Mode ||||| {}", Mode.ALARM),
        (b"Mode ||||||| {}", Mode.NOTRACK),
        (b"Mode |||||||||| {}", Mode.ALARM),
    ],
)
def test_the_mode_is_the_one_the_daemon_runs(modes: bytes, expected: Mode) -> None:
    """Every alias and case of a mode is known, and of several FTFW beats ALARM beats NOTRACK."""
    assert sync(modes).mode is expected


def test_a_mode_in_any_sync_section_counts() -> None:
    """A second Sync section adds to the first, even to one that named no mode."""
    assert read_conntrackd(b"Sync{} Sync{Mode NOTRACK{}} Sync{}").mode is Mode.NOTRACK


def test_a_stats_section_only_counts() -> None:
    """A Stats section makes a daemon that replicates nothing, and its log is not the daemon's."""
    conf = read_conntrackd(b"Stats { LogFile /var/log/stats.log }")
    assert conf == dataclasses.replace(NOTHING, stats=True)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (b"HashSize 32768", {"hash_size": 32768}),
        (b"HashSize\n\n32768#c", {"hash_size": 32768}),
        (b"HashSize 0008192", {"hash_size": 8192}),
        (b"HashSize 0", {}),
        (b"HashSize 8192 HashSize 0", {}),
        (b"HashSize 4294967297", {"hash_size": 1}),
        (b"HashSize 99999999999999999999", {"hash_size": 4294967295}),
        (b"HashSize " + b"0" * 5000 + b"7", {"hash_size": 7}),
        (b"HashSize 1" + b"0" * 5000, {"hash_size": 4294967295}),
        (b"HashSize 1 HashSize 2", {"hash_size": 2}),
        (b"HashSize 8192HashLimit 3}General{", {"hash_size": 8192, "hash_limit": 3}),
        (b"HashSize 8192EventIterationLimit 5", {"hash_size": 8192}),
        (b"HashLimit 131072", {"hash_limit": 131072}),
        (b"HashLimit 3000000000", {"hash_limit": 3000000000}),
        (b"LockFile /run/lock/a", {"lock_file": "/run/lock/a"}),
        (b"LockFile /a LockFile /b", {"lock_file": "/b"}),
        (b"LockFile /a\t#b}\r", {"lock_file": "/a\t#b}\r"}),
        (b"LockFile /", {"lock_file": "/"}),
        (b"LockFile /a\0b", {"lock_file": "/a"}),
        (b"LockFile /\xc3\xa9", {"lock_file": "/\xe9"}),
        (b"LockFile /\xff", {"lock_file": "/\udcff"}),
        (b"LogFile on", {"log_file": "/var/log/conntrackd.log"}),
        (b"LogFile YES", {"log_file": "/var/log/conntrackd.log"}),
        (b"LogFile ||", {"log_file": "/var/log/conntrackd.log"}),
        (b"LogFile |||", {"log_file": "/var/log/conntrackd.log"}),
        (b"LogFile off", {}),
        (b"LogFile N|", {}),
        (b"LogFile /srv/log", {"log_file": "/srv/log"}),
        (b"LogFile /srv/log LogFile on", {"log_file": "/var/log/conntrackd.log"}),
        (b"LogFile on LogFile /srv/log LogFile off", {"log_file": "/srv/log"}),
        (b"UNIX { Path /run/c.ctl }", {"socket": "/run/c.ctl"}),
        (b"UNIX { Backlog 20 Path /a } UNIX { Path /b }", {"socket": "/b"}),
        (b"UNIX { Path /a } HashSize 5 UNIX {}", {"socket": "/a", "hash_size": 5}),
    ],
)
def test_general_settings_are_those_the_daemon_uses(
    settings: bytes,
    expected: dict[str, object],
) -> None:
    """Numbers as atoi() counts, paths to the byte that ends them, and the last value wins."""
    assert dataclasses.asdict(general(settings)) == dataclasses.asdict(NOTHING) | expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (b"PurgeTimeout 15", {"purge_timeout": 15}),
        (b"Mode FTFW { PurgeTimeout 15 } PurgeTimeout 5", {"purge_timeout": 5}),
        (b"PurgeTimeout 5 Mode FTFW { PurgeTimeout 15 }", {"purge_timeout": 15}),
        (b"PurgeTimeout 15 PurgeTimeout 0", {}),
        (b"PurgeTimeout 4294967295", {"purge_timeout": 4294967295}),
        (b"Mode FTFW { DisableExternalCache On }", {"external_cache": False}),
        (b"Mode FTFW { DisableExternalCache yEs }", {"external_cache": False}),
        (b"Mode FTFW { DisableExternalCache NO }", {}),
        (b"Mode FTFW { DisableExternalCache On DisableExternalCache Off }", {}),
        (b"Mode NOTRACK { DisableInternalCache on } Mode FTFW {}", {"internal_cache": False}),
        (b"Options { ExpectationSync On }", {"expectation_sync": True}),
        (b"Options { ExpectationSync Off }", {}),
        (b"Options { ExpectationSync On ExpectationSync Off }", {"expectation_sync": True}),
        (b"Options { ExpectationSync { ftp sip } }", {"expectation_sync": True}),
        (
            b"Options { ExpectationSync {} } PurgeTimeout 5",
            {"expectation_sync": True, "purge_timeout": 5},
        ),
    ],
)
def test_sync_settings_are_those_the_daemon_uses(
    settings: bytes,
    expected: dict[str, object],
) -> None:
    """What a Mode block or Options sets holds for the daemon, wherever it stands."""
    assert dataclasses.asdict(sync(settings)) == dataclasses.asdict(SYNC) | expected


@pytest.mark.parametrize(
    "settings",
    [
        b"Multicast Default { IPv4_address 225.0.0.50 Group 3780 Interface eth2 Checksum on }",
        b"UDP { IPv6_address fe80::215:58ff:fe28:5a27 Interface eth2}",
        b"UDP { IPv6_address ::1IPv6_Destination_Address 1:2:3:4:5:6:7:8888Checksum on }",
        b"TCP { IPv4_address 192.168.2.100IPv4_Destination_Address 192.168.2.101 }",
        b"Options { TCPWindowTracking On }",
    ],
)
def test_settings_of_others_are_passed_over(settings: bytes) -> None:
    """Addresses, interfaces and links are legal and change none of our values."""
    assert sync(settings) == SYNC


def test_every_dedicated_link_has_a_port() -> None:
    """There may be a spare link; whichever port is taken keeps conntrackd from starting."""
    conf = sync(
        b"UDP { IPv6_address ::1Port 3780 Interface eth2} "
        b"UDP Default { IPv4_address 192.168.2.100Port 3781 Checksum on }"
    )
    assert conf == dataclasses.replace(SYNC, ports=(3780, 3781))


def test_a_link_names_this_node_and_its_peer() -> None:
    """Multicast names no peer; the order within a block is any, and a filter's address is none."""
    conf = sync(
        b"Multicast { IPv4_address 225.0.0.50 Port 3790 } "
        b"UDP Default { Port 3780 IPv4_Destination_Address 10.0.0.2 IPv4_address 10.0.0.1 } "
        b"TCP { Interface eth3 IPv4_address 10.1.0.1 IPv4_Destination_Address 10.1.0.2 Port 3781 } "
        b"UDP { IPv6_address ::1 IPv6_Destination_Address ::2 Port 3782 }"
    )

    assert conf.links == (
        Link("10.0.0.1", "10.0.0.2", 3780),
        Link("10.1.0.1", "10.1.0.2", 3781, "eth3"),
    )


def test_filters_and_schedulers_are_passed_over() -> None:
    """The blocks of the General section may nest, and the setting after them still counts."""
    conf = general(
        b"Filter From Kernelspace { Protocol Accept { TCP UDP ICMP IPv6-ICMP }"
        b" Address Ignore { IPv4_address 10.0.0.0/8 IPv6_address ::1/128 IPv6_address fe80::/10 }"
        b" State Accept { ESTABLISHED CLOSED TIME_WAIT for TCP } }"
        b" Scheduler { Type FIFO Priority 99 } Nice -20 Syslog local0 HashSize 5",
    )
    assert conf == dataclasses.replace(NOTHING, hash_size=5)


@pytest.mark.parametrize("end", [b"\0", b"\x80", b"\xff", b"\xef\xbb\xbf", b"\xc3\xa9"])
def test_a_byte_that_is_no_text_ends_the_file(end: bytes) -> None:
    """The daemon takes a NUL, or a byte of UTF-8, between sections for the end of the file."""
    assert read_conntrackd(b"Sync {}" + end + b"Sync { Mode ALARM {} } }} '") == SYNC


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"General {", 1),
        (b"General {\n\n", 3),
        (b"General {\n}}", 2),
        (b"\n{}", 2),
        (b"General {}\nGenerall {}", 2),
        (b"General {}\nSync\nHashSize 5", 2),
        (b"Sync {}\n\nStats {}", 3),
        (b"Stats {}\nSync {}", 2),
        (b"General {}\n# no newline", 2),
        (b"General {\n\xef\xbb\xbf }", 2),
        (b"General {}\n;", 2),
        (b"General {\nHashSize = 5 }", 2),
        (b"General {\nHashSize on }", 2),
        (b"General {\nHashSize 819D }", 2),
        (b"General {\nHashSize 60D }", 2),
        (b"General {\nHashSize 8192/8 }", 2),
        (b"General {\nHashSize +5 }", 2),
        (b"General {\nHashSize", 2),
        (b'General {\nLockFile "/a" }', 2),
        (b"General {\nLockFile a }", 2),
        (b"General { UNIX {\nPath off } }", 2),
        (b"General {\nUNIX { Path /x} }", 2),
        (b"General {\nLogFile true }", 2),
        (b"Sync {\nMode FT-FW {} }", 2),
        (b"Sync {\nMode { } }", 2),
        (b"Sync { Options {\nExpectationSync ftp } }", 2),
        (b"Sync { Mode FTFW {\nDisableExternalCache 1 } }", 2),
    ],
)
def test_nonsense_is_refused_at_its_line(text: bytes, line: int) -> None:
    """A file that cannot be read is an error that names the line, in one line."""
    with pytest.raises(ConfError, match=rf"\Aline {line}: [ -~]+\Z"):
        read_conntrackd(text)


# The statements of a file, each with the field it sets; and what may stand between two tokens.
NUMBERS = st.integers(1, 2**31 - 1)
PATHS = st.from_regex(r'/[^"\n \0\ud800-\udfff]{1,20}', fullmatch=True)
SWITCHES = st.sampled_from([("on", False), ("Yes", False), ("oFF", True), ("NO", True)])
GENERAL = st.one_of(
    st.tuples(st.just("hash_size"), NUMBERS, st.just("HashSize %s")),
    st.tuples(st.just("hash_limit"), NUMBERS, st.just("HashLimit %s")),
    st.tuples(st.just("lock_file"), PATHS, st.just("LockFile %s")),
    st.tuples(st.just("log_file"), PATHS, st.just("LogFile %s")),
    st.tuples(st.just("socket"), PATHS, st.just("UNIX { Path %s }")),
)
SYNCED = st.one_of(
    st.tuples(st.just("purge_timeout"), NUMBERS, st.just("PurgeTimeout %s")),
    st.tuples(
        st.just("external_cache"),
        SWITCHES,
        st.just("Mode FTFW { DisableExternalCache %s }"),
    ),
    st.tuples(
        st.just("internal_cache"),
        SWITCHES,
        st.just("Mode NOTRACK { DisableInternalCache %s }"),
    ),
)
GAPS = st.sampled_from([" ", "\n", " \t", "\n\t\r\n", " # HashSize 5 }\n", "\n#{\n#\xe9\n"])


@given(st.lists(GENERAL), st.lists(SYNCED), st.data())
def test_spacing_and_comments_change_nothing(
    general_settings: list[tuple[str, int | str, str]],
    sync_settings: list[tuple[str, int | tuple[str, bool], str]],
    data: st.DataObject,
) -> None:
    """However a file is laid out, the last value given to a setting is the one read."""
    expected: dict[str, object] = {}
    tokens = ["General", "{"]
    for field, value, form in general_settings:
        tokens += [str(value) if state == "%s" else state for state in form.split(" ")]
        expected[field] = value
    tokens += ["}", "Sync", "{", "Mode", "FTFW", "{", "}"]
    for field, given_value, form in sync_settings:
        shown, value = given_value if isinstance(given_value, tuple) else (given_value, given_value)
        tokens += [str(shown) if state == "%s" else state for state in form.split(" ")]
        expected[field] = value
    text = "".join(token + data.draw(GAPS) for token in [*tokens, "}"])
    conf = dataclasses.asdict(read_conntrackd(text.encode()))
    assert conf == dataclasses.asdict(SYNC) | expected


SCRAPS = [
    "General",
    "Sync",
    "{",
    "}",
    "HashSize",
    "UNIX",
    "Path",
    "Mode",
    "on",
    "|",
    "::",
    "12",
    "/",
    "#",
    "\n",
    " ",
]


@given(st.one_of(st.binary(), st.lists(st.sampled_from(SCRAPS)).map(lambda s: "".join(s).encode())))
@example(b"a" * 100_000)
@example(b"General { LockFile /" + b"a" * 100_000)
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    """Whatever a file holds, reading it ends in values or in one line that names a line of it."""
    try:
        conf = read_conntrackd(text)
    except ConfError as error:
        reported = re.fullmatch(r"line ([0-9]+): [ -~]+", str(error))
        assert reported is not None
        assert 1 <= int(reported[1]) <= text.count(b"\n") + 1
    else:
        assert conf.hash_size >= 1
        assert conf.hash_limit >= 1
        assert conf.purge_timeout >= 1
        assert conf.lock_file.startswith("/")
