"""conf.py against the real conntrackd: what it accepts we read, and as it reads it.

The client, ``conntrackd -C FILE -s``, reports whether a file is valid; a daemon of our own, alone
in its network and mount namespaces, shows which values it made of it.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primary_backup.conntrackd.conf import ConfError, read_conntrackd
from primary_backup.plan import Mode
from tests.waiting import until

EXAMPLES = sorted((Path(__file__).parents[1] / "data" / "conf").glob("*.conf"))

LINK = b"UDP { IPv4_address 127.0.0.1 IPv4_Destination_Address 127.0.0.1 Port 3780 Interface lo }"
REACHED = b"General { UNIX { Path /run/it.ctl } }"


@pytest.fixture(autouse=True, scope="module")
def _the_programs_are_here() -> None:
    """Skip without conntrackd, conntrack and root; in CI, where they belong, fail."""
    missing = [p for p in ("conntrackd", "conntrack", "unshare") if shutil.which(p) is None]
    missing += ["root"] if os.geteuid() != 0 else []
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"in CI there must be {', '.join(missing)}")
    elif missing:
        pytest.skip(f"needs {', '.join(missing)}")


def client_says(file: Path, text: bytes) -> str:
    """Return what the real client has against a file; nothing if it is legal."""
    file.write_bytes(text)
    argv = ["conntrackd", "-C", str(file), "-s"]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=10)
    legal = done.returncode == 0 or b"can't connect" in done.stderr
    return "" if legal else done.stderr.decode(errors="replace") or f"exit {done.returncode}"


def reader_says(text: bytes) -> str:
    """Return what the reader has against a file; nothing if it can be read."""
    try:
        read_conntrackd(text)
    except ConfError as error:
        return str(error)
    return ""


LEGAL = [
    b"",
    b"# a comment\n",
    b"General{}General{}",
    b"\xef\xbb\xbfGeneral { bogus",
    b"General {}\0 }}",
    b"General {}\xc3\xa9 }}",
    b"Sync{}Sync{Mode ftfw{}}",
    b"Sync { Mode nack {} Mode persistenT {} Mode NoTrack {} }",
    b"Sync { Mode |||| {} Mode ||||| {} Mode ||||||| {} Mode |||||||||| {} }",
    b"Sync { Mode FTFW { DisableExternalCache yEs StartupResync NO } }",
    b"Sync { Mode NOTRACK { DisableInternalCache oN DisableExternalCache o| } PurgeTimeout 0 }",
    b"Sync { Mode ALARM { PurgeTimeout 007 } CacheTimeout 1 RefreshTime 2 CommitTimeout 3 }",
    b"Sync { Options { ExpectationSync { ftp h.323 sip-x } TCPWindowTracking Off } }",
    b"Sync { Options { ExpectationSync {} ExpectationSync off ExpectationSync ON } }",
    b"Sync { " + LINK + b" }",
    b"Sync { UDP { IPv6_address ::1Port 3780 Interface eth0.5-x_y } }",
    b"Sync { UDP { IPv6_address 1:2:3:4:5:6:7:8888Checksum on} }",
    b"Sync { UDP { IPv6_address fe80:::12345678/10} }",
    b"Sync { TCP Default { IPv4_address 1.2.3.4Port 3780 } TCP { ErrorQueueLength 5 } }",
    b"Sync { Multicast { IPv4_address 225.0.0.50 Group 3780 IPv4_interface 1.2.3.4} }",
    b"Stats { LogFile on Syslog local7 }",
    b"General { HashSize 8192#c\n}",
    b"General { HashSize 8192HashLimit 3}",
    b"General { HashSize 8192EventIterationLimit 3}",
    b"General { HashSize 99999999999999999999 HashLimit 4294967296 }",
    b"General { HashSize " + b"0" * 5000 + b" }",
    b"General { HashSize\r\n8192\r\n}\r\n",
    b"General { LockFile /x}\n LogFile /x\t#{\n LogFile /x\r\n LogFile /x\0y\n LogFile /\xff }",
    b"General { LogFile || LogFile |ES LogFile n| }",
    b"General { UNIX { Path /" + b"a" * 106 + b" } LockFile /" + b"a" * 255 + b" }",
    b"General { Syslog HashSiz Nice -1 Nice +1 Scheduler { Type rR Priority 99 } }",
    b"General { NetlinkOverrunResync 5 NetlinkOverrunResync on Systemd off PollSecs 1 }",
    b"General { Filter { Protocol Ignore { TCP udp bogus } State Accept { LISTEN for TCP } } }",
    b"General { Filter { Address Accept { IPv6_address ::1/128 IPv4_address 9.9.9.9/99 } } }",
    b"General { Filter From Kernelspace { State Ignore { for TCP CLOSE CLOSED for TCP } } }",
]


@pytest.mark.parametrize("text", [*(e.read_bytes() for e in EXAMPLES), *LEGAL])
def test_a_file_the_daemon_accepts_is_read(text: bytes, tmp_path: Path) -> None:
    """What is odd but legal to the daemon is legal to the reader."""
    assert client_says(tmp_path / "conf", text) == ""
    assert reader_says(text) == ""


ILLEGAL = [
    b"General {}\n# no newline",
    b"General { \xc3\xa9 }",
    b"General {",
    b"General {}}",
    b"General {} {}",
    b"General {}\x0c",
    b"Sync {} Stats {}",
    b"HashSize 5",
    b"General { HashSize 60D }",
    b"General { HashSize 819D }",
    b"General { HashSize 8192/8 }",
    b"General { HashSize -1 }",
    b"General { HashSize on }",
    b"General { LogFile true }",
    b'General { LockFile "/x" }',
    b"General { UNIX { Path /x}}",
    b"Sync { Mode {} }",
]


@pytest.mark.parametrize("text", ILLEGAL)
def test_nonsense_is_refused_by_the_daemon_too(text: bytes, tmp_path: Path) -> None:
    """What the reader calls nonsense is an error to the daemon: the reader is never stricter."""
    assert reader_says(text) != ""
    assert client_says(tmp_path / "conf", text) != ""


# Statements as the grammar has them; the notifications in capitals stand for a token each.
STATEMENTS = {
    "General": [
        *("HashSize NUM", "HashLimit NUM", "LockFile PATH", "LogFile PATH", "LogFile BOOL"),
        *("UNIX { Path PATH Backlog NUM }", "Syslog BOOL", "Syslog NAME", "Nice SIGNED"),
        *("NetlinkBufferSize NUM", "SocketBufferSizeMaxGrowth NUM", "EventIterationLimit NUM"),
        *("NetlinkOverrunResync BOOL", "NetlinkEventsReliable BOOL", "Systemd BOOL"),
        "Filter From Userspace { Protocol Accept { TCP UDP NAME NAME } }",
        "Filter { Address Ignore { IPv4_address IPV4 IPv6_address IPV6 IPv6_address IPV6 } }",
        "Filter From Kernelspace { State Accept { ESTABLISHED CLOSED for TCP } }",
        "Scheduler { Type fifo Priority 9 }",
    ],
    "Sync": [
        *("PurgeTimeout NUM", "RefreshTime NUM", "CacheTimeout NUM", "CommitTimeout NUM"),
        "Mode FTFW { DisableExternalCache BOOL PurgeTimeout NUM ACKWindowSize NUM }",
        "Mode NOTRACK { DisableInternalCache BOOL DisableExternalCache BOOL StartupResync BOOL }",
        "Mode ALARM { RefreshTime NUM PurgeTimeout NUM }",
        "Options { ExpectationSync BOOL TCPWindowTracking BOOL }",
        "Options { ExpectationSync { NAME NAME } }",
        "UDP Default { IPv6_address IPV6 Port NUM Interface NAME Checksum BOOL }",
        "UDP { IPv4_address IPV4 IPv4_Destination_Address IPV4 Port NUM Interface NAME }",
    ],
    "Stats": ["LogFile BOOL", "LogFile PATH", "Syslog BOOL"],
}


def any_case(*arguments: str) -> st.SearchStrategy[str]:
    """Spell one of the keywords in any case, or with the lexer's `|` for any of its letters."""
    return st.sampled_from(arguments).flatmap(
        lambda state: st.tuples(*(st.sampled_from([c.lower(), c.upper(), "|"]) for c in state)).map(
            "".join,
        ),
    )


TOKENS = {
    "NUM": st.from_regex(r"[0-9]{1,12}", fullmatch=True),
    "SIGNED": st.from_regex(r"[-+][0-9]{1,3}", fullmatch=True),
    "BOOL": any_case("on", "off", "yes", "no"),
    "FTFW": any_case("ftfw", "nack"),
    "ALARM": any_case("alarm", "persistent"),
    "NOTRACK": any_case("notrack"),
    "PATH": st.from_regex(r'/[^"\n \0\ud800-\udfff]{0,20}', fullmatch=True),
    "NAME": st.from_regex(r"[a-zA-Z][a-zA-Z0-9._-]{0,9}", fullmatch=True),
    "IPV4": st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]{1,2})?", fullmatch=True),
    "IPV6": st.from_regex(r"([0-9a-fA-F]{1,4}:?){0,9}(::)?([0-9a-f]{1,4}:?){0,9}", fullmatch=True),
}
# Often a proper gap; at times none, so that tokens run into each other.
GAPS = st.sampled_from([" ", " ", "\n", "\t", "\r\n", " # c {\n", "\n#\xe9\0\n", "#\n", ""])


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Make a file: mostly a legal one, some by a hair, some not."""
    text = draw(GAPS)
    for section in draw(
        st.lists(st.sampled_from(["General", "Sync", "Sync", "Stats"]), max_size=3),
    ):
        lines = draw(st.lists(st.sampled_from(STATEMENTS[section]), max_size=4))
        for state in [section, "{", *" ".join(lines).split(), "}"]:
            text += draw(TOKENS.get(state, st.just(state))) + draw(GAPS)
    return text.encode() + draw(st.sampled_from([b"", b"", b"", b"\0{", b"\xff}", b"#"]))


def test_whatever_file_the_daemon_accepts_is_read(tmp_path: Path) -> None:
    """However a file is spelt and spaced, the reader is never stricter than the daemon."""
    legal = 0

    @settings(
        max_examples=300,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(files())
    def compare(text: bytes) -> None:
        nonlocal legal
        if client_says(tmp_path / "conf", text) == "":
            legal += 1
            assert reader_says(text) == ""

    compare()
    assert legal > 50, "too few of the files were legal for this to say anything"


class Daemon:
    """A running conntrackd, alone in its namespaces, and what can be seen of it."""

    def __init__(self, process: subprocess.Popen[bytes], conf: Path, output: Path) -> None:
        """Take the process, the file it was started with and the file it prints to."""
        self.process = process
        self.conf = conf
        self.output = output

    def inside(self, *argv: str) -> str:
        """Run a command beside the daemon and return what it prints, whatever its exit status."""
        enter = ["nsenter", "--net", "--mount", f"--target={self.process.pid}"]
        done = subprocess.run([*enter, *argv], capture_output=True, check=False, timeout=10)
        return os.fsdecode(done.stdout)

    def ask(self, *request: str) -> str:
        """Send the daemon a request of its client."""
        return self.inside("conntrackd", "-C", str(self.conf), *request)

    def until(self, fact: Callable[[], bool], within: float = 20) -> None:
        """Wait for a fact, for so many seconds at most."""

        def has_happened() -> bool:
            assert self.process.poll() is None, self.output.read_text()
            return fact()

        until(has_happened, "it has happened", within)

    def files(self) -> set[str]:
        """Return the files and sockets that are there because of it."""
        places = [os.path.realpath(place) for place in ("/run", "/var/lock", "/var/log")]
        found = self.inside("find", *places, "(", "-type", "s", "-o", "-type", "f", ")", "-print0")
        return set(found.split("\0")) - {""}

    def log(self, pattern: str) -> str:
        """Return what the pattern's group matches in its output, or nothing."""
        found = re.search(pattern, self.output.read_text())
        return found[1] if found else ""

    def mode(self) -> Mode | None:
        """Tell its mode by what only that mode does."""
        if "cache external:" not in (answer := self.ask("-s")) and "inject:" not in answer:
            return None
        if "queue rsqueue:" in self.ask("-s", "queue"):  # only FTFW sends anything twice
            return Mode.FTFW
        self.ask("-n")  # to which ALARM has no answer
        return Mode.NOTRACK if self.log("(resync requested)") else Mode.ALARM


@contextmanager
def running(text: bytes, tmp_path: Path) -> Iterator[Daemon]:
    """Start the real daemon with a file, and stop it."""
    conf, output = tmp_path / "conf", tmp_path / "output"
    conf.write_bytes(text)
    script = """
        mount -t tmpfs tmpfs /run && mkdir -p /run/lock || exit
        mount -t tmpfs tmpfs "$(readlink -f /var/lock)" || exit
        mount -t tmpfs tmpfs /var/log || exit
        ip link set lo up || exit
        for port in 1 2 3 4 5; do
            conntrack -I -p udp -s 192.0.2.1 -d 192.0.2.2 --sport $port --dport 9 -t 600 || exit
        done
        exec conntrackd -C "$0"
    """
    with output.open("wb") as sink:
        process = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", script, str(conf)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={"PATH": os.environ["PATH"]},
        )
    try:
        yield Daemon(process, conf, output)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


STARTED = {
    "nothing but a socket": REACHED,
    "counting": b"Stats {}" + REACHED,
    "a stale log switch": b"Stats { LogFile off } General { LogFile On LogFile Off }" + REACHED,
    "no mode": b"Sync {" + LINK + b"}" + REACHED,
    "one line, many modes": (
        b"Sync{Mode NOTRACK{DisableInternalCache Yes PurgeTimeout 7}Mode alarm{}" + LINK + b"}"
        b"General{UNIX{Path /run/a.ctl }UNIX{Path /run/b.ctl }HashLimit 0}Sync{Mode nack{}}"
    ),
    "two modes": b"Sync { Mode NOTRACK {} Mode ALARM { PurgeTimeout 0 } " + LINK + b"}" + REACHED,
    "both caches off": (
        b"General { HashSize 016384HashLimit 4294967299 LogFile /run/l}#\t\xc3\xa9\xff\r\n"
        b"LockFile /run/x LockFile /run/lock/{y}\0z\n UNIX { Path /run/c\t# } }"
        b"Sync { Mode NOTRACK { DisableInternalCache |n DisableExternalCache YES } "
        + LINK
        + b" PurgeTimeout 4294967301 Options { ExpectationSync { ftp } } }"
    ),
    "switched back on": (
        b"Sync { Mode FTFW { DisableExternalCache On DisableExternalCache No }" + LINK + b"}"
        b"Sync { Options { ExpectationSync On ExpectationSync Off ExpectationSync Yes } }" + REACHED
    ),
    "a byte between sections": (
        b"Sync { Mode ALARM {}"
        + LINK
        + b"} General { HashLimit 2 }"
        + REACHED
        + b"\xff HashLimit 1"
    ),
}


@pytest.mark.parametrize("text", STARTED.values(), ids=STARTED.keys())
def test_the_daemon_uses_the_values_that_are_read(text: bytes, tmp_path: Path) -> None:
    """The files, caches, mode, limit and timeout of a running daemon are those that were read."""
    conf = read_conntrackd(text)
    paths = {conf.lock_file, conf.log_file, conf.socket} - {None}
    with running(text, tmp_path) as daemon:
        daemon.until(lambda: "daemon uptime:" in daemon.ask("-s", "runtime"))
        assert daemon.files() == {os.path.realpath(path) for path in paths if path}
        assert daemon.mode() is conf.mode
        answer = daemon.ask("-s")
        assert ("cache stats:" in answer) == conf.stats
        if conf.mode is not None:
            assert ("internal bypass:" not in answer) == conf.internal_cache
            assert ("external inject:" not in answer) == conf.external_cache
            assert (daemon.ask("-s", "expect") != "") == conf.expectation_sync
            daemon.ask("-t")
            assert daemon.log(r"flushing conntrack table in ([0-9]+) secs") == str(
                conf.purge_timeout,
            )
        if conf.internal_cache and "current active connections:" in answer:
            kept = re.search(r"current active connections:\s+([0-9]+)", answer)
            assert kept is not None
            assert int(kept[1]) == min(5, conf.hash_limit)


def test_a_daemon_without_a_path_has_no_socket_file(tmp_path: Path) -> None:
    """Without ``UNIX { Path }`` the daemon listens where no client looks: there is no default."""
    text = b"Sync {" + LINK + b"}"
    conf = read_conntrackd(text)
    with running(text, tmp_path) as daemon:
        # The kernel chose it an abstract address, which /proc shows with an `@`.
        listening = re.compile(r" @[0-9a-f]{5}$", re.MULTILINE)
        daemon.until(
            lambda: listening.search(daemon.inside("cat", "/proc/self/net/unix")) is not None,
        )
        assert daemon.files() == {os.path.realpath(conf.lock_file)}
    assert conf.socket is None


def test_expectation_sync_switched_off_again_starts_no_daemon(tmp_path: Path) -> None:
    """An Off after an On leaves it on, but without what it needs: no daemon ever runs like that."""
    text = b"Sync { Options { ExpectationSync On ExpectationSync Off }" + LINK + b"}" + REACHED
    with running(text, tmp_path) as daemon:
        assert daemon.process.wait(30) == -signal.SIGABRT
    assert read_conntrackd(text).expectation_sync
