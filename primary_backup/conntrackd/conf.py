"""conntrackd.conf, read into a dataclass as the daemon itself reads it.

The tokens follow conntrack-tools' ``read_config_lex.l`` to the byte, the values follow its
``read_config_yy.y`` and ``init_sync()``, all as of 1.4.7. Where a setting is not one of ours the
reader is laxer: whether a whole file is valid, ``conntrackd -C FILE -s`` decides.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from primary_backup.plan import Mode

# A comment ends in a newline, or is none: the lexer's `#.*$` needs to see the newline.
_GAP = re.compile(r"(?:[ \t\r\n]+|#[^\n]*\n)*")

# A path takes in tabs, carriage returns, `#` and braces: only the three characters here end it.
_PLAIN = r'(?P<number>[0-9]+)|(?P<signed>[-+][0-9]+)|(?P<path>/[^"\n ]*)|(?P<open>{)|(?P<close>})'
_HEX = r"[0-9a-fA-F]{1,4}"
_ADDRESS = (
    r"(?P<address>(?:[0-9]+(?:\.[0-9]+){3}"
    # `+` here gives no digits back: the longest match never needs it, and names stay cheap.
    rf"|(?:{_HEX}+:?){{0,7}}::(?:{_HEX}+:?){{0,7}}|(?:{_HEX}:){{0,7}}{_HEX})(?:/[0-9]+)?)"
)
# The `|` are the lexer's: in its `[o|O][n|N]` they stand for a letter like any other. The longest
# come first because Python takes the first alternative; a `_` only makes a group's name unique.
# (1.4.7 misspelt the T of `persistent`, and knows it as `persistenT` only. That we do not repeat.)
_CASELESS = (
    r"(?i:(?P<alarm>[p|][e|][r|][s|][i|][s|][t|][e|][n|][t|])"
    r"|(?P<notrack>[n|][o|][t|][r|][a|][c|][k|])|(?P<alarm_>[a|][l|][a|][r|][m|])"
    r"|(?P<ftfw>[f|][t|][f|][w|]|[n|][a|][c|][k|])"
    r"|(?P<on>[y|][e|][s|])|(?P<off>[o|][f|][f|])|(?P<on_>[o|][n|])|(?P<off_>[n|][o|]))"
)
_NAME = r"(?P<name>[a-zA-Z][a-zA-Z0-9._-]*)"

# flex takes the longest match and, of equally long ones, the rule that comes first; see _tokens.
# So `8192HashLimit` is a number and a name, but `60D` half an IPv6 address and no number at all.
_RULES = tuple(re.compile(rule).match for rule in (_PLAIN, _ADDRESS, _CASELESS, _NAME))

_SECTIONS = {"General", "Sync", "Stats", "Helper"}

# What the grammar takes after the keywords we read. Which block they stand in needs no looking at,
# as in a valid file none of these names is anything else: not even an interface may be named so.
_SETTINGS = {
    ("General", "HashSize"): {"number"},
    ("General", "HashLimit"): {"number"},
    ("General", "LockFile"): {"path"},
    ("General", "LogFile"): {"path", "on", "off"},  # that of Stats is another file
    ("General", "Path"): {"path"},
    ("Sync", "Mode"): {"ftfw", "alarm", "notrack"},
    ("Sync", "Port"): {"number"},
    ("Sync", "IPv4_address"): {"address"},  # of Multicast and of a link alike
    ("Sync", "IPv4_Destination_Address"): {"address"},
    ("Sync", "Interface"): {"name"},
    ("Sync", "PurgeTimeout"): {"number"},
    ("Sync", "DisableInternalCache"): {"on", "off"},
    ("Sync", "DisableExternalCache"): {"on", "off"},
    ("Sync", "ExpectationSync"): {"on", "off", "open"},
}
_LINKS = {"Multicast", "UDP", "TCP"}


class ConfError(ValueError):
    """A file conntrackd refuses, in one line: the line number and what is wrong there."""


class Link(NamedTuple):
    """A dedicated link to one peer: a UDP or TCP block with two IPv4 addresses."""

    own: str
    peer: str
    port: int
    interface: str = ""
    """Empty where it names none."""


@dataclass(frozen=True)
class Conntrackd:
    """What conntrackd makes of its conntrackd.conf(5), its defaults included."""

    mode: Mode | None
    """How it replicates. None without a Sync section; FTFW, the default, in one without Mode."""
    stats: bool
    """Whether it only counts: it has a Stats section, which excludes a Sync section."""
    socket: str | None
    """Where its client reaches it: ``UNIX { Path }``. None, the default: no client ever can."""
    lock_file: str = "/var/lock/conntrackd.lock"
    """The file whose mere existence keeps the daemon from starting."""
    log_file: str | None = None
    """Where it writes its own log. None, the default: nowhere (there may be a syslog)."""
    hash_size: int = 65536
    """Buckets of each cache's hash table. The default is that of 1.4.7; older ones have none."""
    hash_limit: int = 262144
    """Entries each cache may hold. The default is that of 1.4.7; older ones have none."""
    purge_timeout: int = 60
    """Seconds from a purge request (``-t``) to the flush of the kernel table. Default 60."""
    ports: tuple[int, ...] = ()
    """The UDP or TCP ports of its dedicated links, in the order of its file."""
    links: tuple[Link, ...] = ()
    """Those of them that name one peer, as Multicast does not, by IPv4."""
    internal_cache: bool = True
    """Whether it keeps this node's own states in memory, to send them. Default True."""
    external_cache: bool = True
    """Whether it keeps the peer's states in memory, out of the kernel table. Default True."""
    expectation_sync: bool = False
    """Whether it replicates expectations too, be it of all helpers or of some. Default False."""


def read_conf(path: str) -> Conntrackd:
    """Read conntrackd.conf; raises ConfError naming it, also where the file cannot be read."""
    try:
        return read_conntrackd(read_file(path))
    except OSError as error:
        raise ConfError(f"{path}: {error.strerror}") from error
    except ConfError as error:
        raise ConfError(f"{path}: {error}") from error


def read_file(path: str) -> bytes:
    """Read a file; of a FIFO nothing: a promotion does not wait for its writer."""
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
        return file.read()


def read_conntrackd(text: bytes) -> Conntrackd:
    """Read a conntrackd.conf: every file conntrackd accepts, and into the values it then uses.

    Raises ConfError if braces do not match, a byte starts no token, Sync and Stats are both there,
    or a setting of `Conntrackd` has a value of another kind.
    """
    sections, settings = _parse(text.decode("latin-1"))
    # `LogFile off` is legal and without effect: it does not undo an earlier `LogFile on`.
    last = dict(setting for setting in settings if setting != ("LogFile", "off"))
    log_file = last.get("LogFile")
    mode = None
    if "Sync" in sections:
        # Every Mode block sets a flag of its own, and init_sync() asks for them in this order.
        modes = (Mode.FTFW, Mode.ALARM, Mode.NOTRACK)
        mode = next((m for m in modes if ("Mode", m.value.lower()) in settings), Mode.FTFW)
    return Conntrackd(
        mode=mode,
        stats="Stats" in sections,
        socket=last.get("Path"),
        lock_file=last.get("LockFile", Conntrackd.lock_file),
        log_file="/var/log/conntrackd.log" if log_file == "on" else log_file,
        hash_size=_number(last.get("HashSize", "")) or Conntrackd.hash_size,
        hash_limit=_number(last.get("HashLimit", "")) or Conntrackd.hash_limit,
        purge_timeout=_number(last.get("PurgeTimeout", "")) or Conntrackd.purge_timeout,
        ports=tuple(_number(value) for name, value in settings if name == "Port"),
        links=tuple(_links(settings)),
        # init_sync() heeds these two whichever mode's block they stand in.
        internal_cache=last.get("DisableInternalCache") != "on",
        external_cache=last.get("DisableExternalCache") != "on",
        # A later Off takes back the netlink groups only (and the daemon then dies as it starts).
        expectation_sync=any(("ExpectationSync", value) in settings for value in ("on", "open")),
    )


def _parse(text: str) -> tuple[set[str], list[tuple[str, str]]]:
    """Find which sections there are, and each setting of ours with its value, in order."""
    section, depth = "", 0
    sections: set[str] = set()
    settings: list[tuple[str, str]] = []
    tokens = _tokens(text)
    for token in tokens:
        kind, name = _kind(token), token[0]
        if depth == 0:
            if name not in _SECTIONS or _kind(next(tokens, None)) != "open":
                raise _error(text, token.start(), f"no section begins with {name!a}")
            section, depth = name, 1
            sections.add(section)
            if sections >= {"Sync", "Stats"}:
                raise _error(text, token.start(), "Sync and Stats exclude each other")
        elif kinds := _SETTINGS.get((section, name)):
            value = next(tokens, None)
            if value is None or _kind(value) not in kinds:
                what = f"{value[0]!a}" if value else "the end"
                raise _error(text, token.start(), f"{name} cannot be followed by {what}")
            depth += _kind(value) == "open"
            settings.append((name, _value(value)))
        else:
            if section == "Sync" and depth == 1 and name in _LINKS:
                settings.append(("Link", name))
            depth += (kind == "open") - (kind == "close")
    if depth:
        raise _error(text, len(text), f"the section {section} does not end")
    return sections, settings


def _links(settings: list[tuple[str, str]]) -> Iterator[Link]:
    """Find the links that name one peer; in a block the last value of a setting counts."""
    starts = [at for at, (name, _) in enumerate(settings) if name == "Link"]
    for start, end in pairwise([*starts, len(settings)]):
        block = dict(settings[start:end])
        own, peer = block.get("IPv4_address"), block.get("IPv4_Destination_Address")
        port = _number(block.get("Port", ""))
        if own and peer and port:
            yield Link(own, peer, port, block.get("Interface", ""))


def _tokens(text: str) -> Iterator[re.Match[str]]:
    """Yield what the daemon's lexer finds, up to where it stops."""
    at = 0
    while True:
        gap = _GAP.match(text, at)
        at = gap.end() if gap else at
        # The lexer hands on any other byte as a signed char, and to yacc one <= 0 is the end: at a
        # NUL or a byte-order mark the daemon stops reading, and logs nothing.
        if at == len(text) or text[at] == "\0" or text[at] >= "\x80":
            return
        # max() keeps the first of equally long ones, as flex does.
        token = max((m for rule in _RULES if (m := rule(text, at))), key=re.Match.end, default=None)
        if token is None:
            why = "a comment without a newline" if text[at] == "#" else f"misplaced {text[at]!a}"
            raise _error(text, at, why)
        yield token
        at = token.end()


def _kind(token: re.Match[str] | None) -> str:
    return (token.lastgroup or "").rstrip("_") if token else ""


def _value(token: re.Match[str]) -> str:
    """Take the text of a path, an address, a name or a number, the kind of any other token."""
    kind = _kind(token)
    if kind == "path":
        # A C string ends at the NUL that the lexer let into the path.
        path = token[0].partition("\0")[0]
        return path.encode("latin-1").decode("utf-8", "surrogateescape")
    return token[0] if kind in ("number", "address", "name") else kind


def _number(digits: str) -> int:
    """Count as atoi() does into an unsigned int: first to 2^63 - 1 at most, then modulo 2^32."""
    significant = digits.lstrip("0")[:20]  # with 20 of them it is past 2^63 anyway
    return min(int(significant or "0"), 2**63 - 1) % 2**32


def _error(text: str, at: int, why: str) -> ConfError:
    line = text.count("\n", 0, at) + 1
    return ConfError(f"line {line}: {why}")
