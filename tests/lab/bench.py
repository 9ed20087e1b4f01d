"""What a transition costs, as ratios of figures taken in turn on the same machine.

    python -m tests.lab.bench

Start: from a notification to `conntrackd -c` starting, by a follower that reads its FIFO, with and
without a peer that reports to it, by the hook, by conntrack-tools' own script, and beside them a
bare interpreter that imports click and sh.
Transition: a promotion with 100,000 connections after the peer's death, from its first request to
its last proof, beside the four client calls it is made of. Idle: the CPU of a follower with
nothing to do, beside one start of the command. Bulks: how often the virtual addresses
move on their own while 100,000 entries arrive, again and again, in the backup's kernel table.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .pair import PACKAGING, Pair

COMMAND = Path(sys.executable).with_name("ftfw-transition")
CONF = "/etc/conntrackd/conntrackd.conf"
SCRIPT = Path("/usr/share/doc/conntrackd/examples/sync/primary-backup.sh")
STARTS = 30
ENTRIES = 100_000
ROUNDS = 3
BULKS = 20
IDLE_SECONDS = 20
RAW = ("-c", "-f", "-R", "-B")

# Where all three find a client that only reports that it has started, and nobody's log or daemon.
_FURNISH = """
mount -t tmpfs none /run
mount -t tmpfs none /etc/conntrackd
mount --bind /dev/null /dev/log 2>/dev/null || true
cp "$1" /etc/conntrackd/conntrackd.conf
(umask 077 && echo "$KEY" >/run/pair.key)
ip link set lo up
ip address add 10.99.99.1/30 dev lo
ip address add 10.99.99.2/30 dev lo
mkfifo -m 600 /run/started
printf '%s\\n' '#!/bin/sh' '[ "$3" = -c ] && echo >/run/started' 'exit 0' >/run/client
chmod 755 /run/client
mount --bind /run/client /usr/sbin/conntrackd
shift
exec "$@"
"""


def starts() -> None:
    """Print how long each takes to a commit; in namespaces of its own."""
    ways: dict[str, Callable[[], float]] = {
        "a bare interpreter with click and sh": interpreter,
        "the hook": lambda: _process(str(COMMAND), "primary"),
        "primary-backup.sh": lambda: _process("sh", str(SCRIPT), "primary"),
    }
    took: dict[str, list[float]] = {}
    paired = ("--key", "/run/pair.key")
    with (
        follower("alone", CONF) as alone,
        follower("reporting", CONF, *paired) as reporting,
        follower("peer", peer_conf(), *paired),
    ):
        _await(lambda: '"seen": [' in Path("/run/reporting/peer.json").read_text())
        ways |= {"the follower": lambda: alone("MASTER")}
        ways |= {"the follower with reports": lambda: reporting("MASTER")}
        for _ in range(STARTS):
            for name, way in ways.items():
                took.setdefault(name, []).append(way())
            alone("STOP")
            reporting("STOP")
    for name, beside in (
        ("the follower with reports", "the follower"),
        ("the hook", "a bare interpreter with click and sh"),
        ("the follower", "the hook"),
        ("the follower", "primary-backup.sh"),
    ):
        _report(f"notification to `conntrackd -c`, {name}", took[name], beside, took[beside])


def interpreter() -> float:
    """Seconds that a bare interpreter takes to import what the hook is built on."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import click, sh"], check=True)
    return time.perf_counter() - began


def _process(*argv: str) -> float:
    """Seconds from a program's start to its commit."""
    with _started() as wait:
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        took = wait()
        process.wait(timeout=60)
    return took


def peer_conf() -> str:
    """The path of the other node's conntrackd.conf."""
    path = Path("/run/peer.conf")
    path.write_text((PACKAGING / "fw-2/conntrackd/conntrackd.conf").read_text())
    return str(path)


@contextlib.contextmanager
def follower(name: str, conf: str, *arguments: str) -> Iterator[Callable[[str], float]]:
    """A follower that reads notifications; the seconds to its commit, once all is done."""
    run_dir, fifo = f"/run/{name}", Path(f"/run/{name}.fifo")
    last = Path(run_dir, "last.json")
    options = ("--run-dir", run_dir, "--config", conf)
    process = subprocess.Popen(
        [COMMAND, *options, "follow", "--group", "G1", *arguments, fifo], stderr=subprocess.DEVNULL
    )

    def send(state: str) -> float:
        before = last.stat().st_ino if last.exists() else 0
        with _started() as wait:
            pipe = os.open(fifo, os.O_WRONLY)
            os.write(pipe, f'GROUP "G1" {state} 0\n'.encode())
            os.close(pipe)
            took = wait() if state == "MASTER" else 0.0
        _await(lambda: last.exists() and last.stat().st_ino != before)
        return took

    try:
        _await(fifo.exists)
        send("STOP")
        yield send
    finally:
        process.terminate()
        process.wait(timeout=10)


@contextlib.contextmanager
def _started() -> Iterator[Callable[[], float]]:
    """Await a commit; the seconds since the beginning."""
    pipe = os.open("/run/started", os.O_RDWR | os.O_NONBLOCK)
    began = time.perf_counter()

    def wait() -> float:
        ready, _, _ = select.select([pipe], [], [], 30)
        if not ready:
            raise RuntimeError("nobody asked for a commit")
        return time.perf_counter() - began

    try:
        yield wait
    finally:
        os.close(pipe)


def _await(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not fact():
        if time.monotonic() > deadline:
            raise RuntimeError("the follower does not answer")
        time.sleep(0.002)


def promotion(directory: Path, *, raw: bool) -> float:
    """Seconds of one promotion, by the four calls or by the hook, in a pair of its own."""
    with Pair(directory, COMMAND) as pair:
        pair.fw1.start_conntrackd()
        pair.fw2.start_conntrackd()
        pair.fw1.load_entries(ENTRIES)
        pair.fw2.until(lambda: pair.fw2.external() == ENTRIES, 60, "replicated")
        pair.fw1.cut()
        began = time.perf_counter()
        if raw:
            for option in RAW:
                pair.fw2.client(option)
            return time.perf_counter() - began
        event = pair.fw2.hook_json("primary")
        if event["outcome"] != "ok":
            raise RuntimeError(event["reason"])
        return float(sum(step["seconds"] for step in event["steps"]))


def bulks(directory: Path, number: int) -> int:
    """Count the transitions while a backup is given 100,000 entries so many times."""
    with Pair(directory, COMMAND, mode="direct", wiring="fifo") as pair:
        pair.start()
        firewalls = (pair.fw1, pair.fw2)
        before = sum(len(each.events("transition.finished")) for each in firewalls)
        pair.fw1.load_entries(ENTRIES)
        for _ in range(number):
            pair.fw2.flush_kernel()
            pair.fw2.client("-n")
            pair.fw2.until(lambda: pair.fw2.kernel_entries() >= ENTRIES, 60, "all injected")
        return sum(len(each.events("transition.finished")) for each in firewalls) - before


def idle(directory: Path) -> tuple[float, float]:
    """Seconds of CPU that an idle follower and its clients use, and that a start of it takes."""
    with Pair(directory, COMMAND, wiring="fifo") as pair:
        pair.start()
        pair.fw1.until(pair.fw1.is_quiet, 20, "is quiet")
        (pid,) = pair.fw1.followers()
        stat = Path(f"/proc/{pair.fw1.pid}/root/proc/{pid}/stat")

        def used() -> float:
            fields = stat.read_text().rpartition(")")[2].split()
            return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

        before = used()
        time.sleep(IDLE_SECONDS)
        follows = used() - before
        earlier = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([COMMAND, "--version"], check=True, stdout=subprocess.DEVNULL)
        later = resource.getrusage(resource.RUSAGE_CHILDREN)
        return follows, later.ru_utime + later.ru_stime - earlier.ru_utime - earlier.ru_stime


def main() -> None:
    """Print all ratios, with the medians they come from."""
    subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-ec", _FURNISH, "-",
         PACKAGING / "conntrackd/conntrackd.conf",
         sys.executable, "-c", "from tests.lab.bench import starts; starts()"],
        check=True, env={**os.environ, "KEY": secrets.token_hex(32)},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        calls, whole = [], []
        for number in range(ROUNDS):
            calls.append(promotion(here / f"raw{number}", raw=True))
            whole.append(promotion(here / f"hook{number}", raw=False))
        _report(f"promotion with {ENTRIES:,} connections", whole, "four client calls", calls)
        follows, start = zip(*(idle(here / f"idle{n}") for n in range(ROUNDS)), strict=True)
        what = f"CPU of an idle follower in {IDLE_SECONDS} s"
        _report(what, list(follows), "one start of the command", list(start))
        every = os.sched_getaffinity(0)
        for cpus in (every, {min(every)}):
            os.sched_setaffinity(0, cpus)
            moves = bulks(here / f"bulks{len(cpus)}", BULKS)
            print(
                f"{BULKS} bulks of {ENTRIES:,} entries into the backup's kernel, both firewalls on "
                f"{len(cpus)} CPU: {moves} moves of the virtual addresses"
            )


def _report(what: str, ours: list[float], beside: str, theirs: list[float]) -> None:
    ours_median, theirs_median = statistics.median(ours), statistics.median(theirs)
    ratio = statistics.median(mine / its for mine, its in zip(ours, theirs, strict=True))
    print(
        f"{what}: {ours_median * 1000:.1f} ms, {beside}: {theirs_median * 1000:.1f} ms, "
        f"ratio {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
