"""Random sequences of what can happen to a pair, judged from outside by the kernels' tables.

`python -m tests.lab.sequences COMMAND SEED...` carries out those of the seeds, one after the other,
and prints what each came to; SEED may be a range, as 100-199.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from primary_backup.proof import REPLICA_PART, slack
from tests.waiting import until

from .firewall import CONNTRACKD_CONF, RUN_DIR, SECRET, VIPS, Firewall
from .pair import Pair

PURGE_SECONDS = 3
EDITS = {"PurgeTimeout 60": f"PurgeTimeout {PURGE_SECONDS}"}
REPLICATED_SECONDS = 2.0
"""What was opened this long before a failover is expected on the new primary."""
SILENCE_SECONDS = 4.5
"""So long before a failover a link may have been cut that it looks like the death of the peer: the
master-down interval of 0.72 s, three seconds, and a report's second (see pair/observed.py)."""
WITHIN = 170
"""Seconds for a promotion that waits for the peer's answer."""
_TUPLE = re.compile(r"src=10\.20\.(\d+)\.(\d+) dst=198\.51\.100\.(\d+) ")


class Action(NamedTuple):
    """One thing that happens."""

    name: str
    """A method of Story."""
    role: str = ""
    """On which node, by its role at that time: primary or backup."""
    number: float = 0
    """How many connections, or how many seconds."""

    def __str__(self) -> str:
        return " ".join(str(part) for part in self if part)


class _Kind(NamedTuple):
    """What a sequence may have, how often, and with what numbers."""

    name: str
    weight: int
    roles: tuple[str, ...] = ("",)
    numbers: tuple[float, float] = (0, 0)


_EITHER = ("primary", "backup")
_KINDS = (
    _Kind("open", 5, numbers=(40, 150)),
    _Kind("end", 1, numbers=(10, 60)),
    _Kind("pause", 4, numbers=(0.1, 4.0)),
    _Kind("kill_conntrackd", 3, _EITHER),
    _Kind("stop_conntrackd", 2, _EITHER),
    _Kind("start_conntrackd", 1, _EITHER),
    _Kind("kill_follower", 2, _EITHER),
    _Kind("stop_follower", 1, _EITHER),
    _Kind("start_follower", 3, _EITHER),
    _Kind("cut_link", 2),
    _Kind("fix_link", 3),
    _Kind("slow_link", 1, numbers=(1, 20)),
    _Kind("lose_packets", 1, numbers=(1, 20)),
    _Kind("recover", 3),
    _Kind("type_state", 1, _EITHER),
    _Kind("send_bulk", 1, _EITHER),
    _Kind("request_bulk", 1, ("backup",)),
    _Kind("resync", 1, _EITHER),
    _Kind("stop_keepalived", 3, _EITHER),
    _Kind("kill_keepalived", 3, _EITHER),
    _Kind("start_keepalived", 4, _EITHER),
    _Kind("cut_inside", 3, _EITHER),
    _Kind("fix_inside", 4, _EITHER),
    _Kind("power_off", 3, _EITHER),
    _Kind("boot", 4, _EITHER),
    _Kind("settle", 2),
)
_LAST = ("stop_keepalived", "kill_keepalived", "cut_inside", "power_off")
_BEFORE = (Action("open", "", 120), Action("pause", "", 2.5))
_AFTER = (Action("settle"), Action("pause", "", PURGE_SECONDS + 0.5))


def actions(seed: int) -> Iterator[Action]:
    """The sequence of one seed, which ends with a failover."""
    chance = random.Random(seed)
    for _ in range(chance.randint(8, 18)):
        (kind,) = chance.choices(_KINDS, [each.weight for each in _KINDS])
        number = round(chance.uniform(*kind.numbers), 1)
        role = chance.choice(kind.roles)
        yield Action(kind.name, role, number if kind.name == "pause" else int(number))
    yield Action("settle")
    yield Action("recover")
    yield Action("pause", "", round(chance.uniform(1.0, 8.0), 1))
    yield Action(chance.choice(_LAST), "primary")


FOUND = {
    "both daemons are new and packets are lost": (
        Action("kill_conntrackd", "backup"),
        Action("kill_conntrackd", "primary"),
        Action("lose_packets", "", 13),
        Action("pause", "", 1.9),
        Action("kill_keepalived", "primary"),
    ),
    "the primary's daemon is new and packets are lost": (
        Action("kill_conntrackd", "primary"),
        Action("open", "", 100),
        Action("lose_packets", "", 9),
        Action("cut_inside", "backup"),
        Action("recover"),
        Action("pause", "", 4.9),
        Action("power_off", "primary"),
    ),
    "the primary is back before it is missed": (
        Action("open", "", 102),
        Action("cut_inside", "primary"),
        Action("recover"),
        Action("stop_conntrackd", "backup"),
        Action("kill_keepalived", "backup"),
        Action("slow_link", "", 2),
        Action("settle"),
        Action("recover"),
        Action("pause", "", 4.0),
        Action("power_off", "primary"),
    ),
}
"""Sequences in which `ok` was wrong once, or this judgement of it was."""


class Story:
    """A pair to which things happen, and what must be true of it."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.firewalls = (pair.fw1, pair.fw2)
        self.opened: dict[int, float] = {}
        """The live connections, by number, and when each was opened."""
        self.happened: list[str] = []
        """What happened, with the seconds since the beginning."""
        self.verdicts: list[str] = []
        """How each failover ended."""
        self._number = 0
        self._began = time.monotonic()
        self._failed_over: float | None = None
        self._was: Firewall | None = None
        """The primary before the failovers that are not judged yet."""
        self._cut: float | None = None
        self._before = {firewall.name: 0 for firewall in self.firewalls}
        self._off: set[str] = set()
        self._inside_cut: set[str] = set()
        self._boots = 0

    def carry_out(self, action: Action) -> None:
        """Let it happen; what is not possible now does not."""
        self.happened.append(f"{time.monotonic() - self._began:.1f} {action}")
        done = getattr(self, f"_{action.name}")
        arguments: list[Any] = []
        if action.role:
            arguments.append(self._of_role(action.role))
        if action.number:
            arguments.append(action.number)
        if done(*arguments) is False:
            self.happened[-1] += " (not possible)"
        self._check_purges()

    # -- the oracle -------------------------------------------------------------------------

    def table(self, firewall: Firewall) -> set[int]:
        """The numbers of the connections in the kernel's table."""
        text = firewall.run("conntrack", "-L", "-p", "tcp", check=False).stdout
        found = (map(int, match.groups()) for match in _TUPLE.finditer(text))
        return {(server - 1 << 16) + (high << 8) + low for high, low, server in found}

    def _check_purges(self) -> None:
        """Nothing live is ever purged: what the primary held it still holds."""
        primary = self._primary()
        if self._failed_over is not None or primary is None:
            return
        gone = self.opened.keys() - self.table(primary)
        if gone and self._primary() is primary:
            assert not gone, f"{len(gone)} live connections are gone on {primary.name}"

    def _settle(self) -> None:
        """Wait until the failovers so far are over, and judge them."""
        if self._failed_over is None:
            return
        primary = until(self._primary, within=20, what="a node is master")
        assert primary is not None
        if not primary.followers():
            primary.start_follower()

        def promotions() -> list[dict[str, Any]]:
            events = primary.events("transition.finished")[self._before[primary.name] :]
            return [each for each in events if each["state"] == "primary"]

        def is_over() -> bool:
            ended = [each for each in promotions() if each["outcome"] != "superseded"]
            return bool(ended) and primary.is_quiet()

        if primary is self._was and not promotions():  # back before the other node took over
            until(primary.is_quiet, within=WITHIN)
        else:
            until(is_over, within=WITHIN, what=f"{primary.name} has been made primary", every=0.02)
        table = self.table(primary)
        expected = {each for each, at in self.opened.items() if at < self._since()}
        missing = expected - table
        outcomes = [each["outcome"] for each in promotions()]
        named = any(outcome in ("degraded", "failed") for outcome in outcomes)
        self.verdicts.append(f"{'named' if named else 'ok'} {len(missing)}/{len(expected)}")
        self.happened.append(
            f"  {primary.name}: {outcomes}, {len(missing)} of {len(expected)} missing"
        )
        if not named:
            allowed = slack(len(expected), REPLICA_PART)
            assert len(missing) <= allowed, f"ok, and {len(missing)} of {len(expected)} are lost"
        self.opened = {each: at for each, at in self.opened.items() if each in table}
        self._failed_over = None
        self._note_events()

    def _since(self) -> float:
        """What was opened before this is expected on the new primary."""
        assert self._failed_over is not None
        since = self._failed_over - REPLICATED_SECONDS
        if self._cut is not None and self._failed_over - self._cut < SILENCE_SECONDS:
            since = min(since, self._cut - REPLICATED_SECONDS)
        return since

    def _note_events(self) -> None:
        for firewall in self.firewalls:
            self._before[firewall.name] = len(firewall.events("transition.finished"))

    # -- who is what ------------------------------------------------------------------------

    def _primary(self) -> Firewall | None:
        """The node that is master, of those whose keepalived runs."""
        found = [each for each in self.firewalls if self._can_carry(each) and each.holds(VIPS[0])]
        return found[0] if len(found) == 1 else None

    def _of_role(self, role: str) -> Firewall:
        primary = self._primary() or self.firewalls[0]
        return primary if role == "primary" else self._other(primary)

    def _can_carry(self, firewall: Firewall) -> bool:
        hindered = self._off | self._inside_cut
        return firewall.name not in hindered and bool(firewall.pids("keepalived"))

    def _other(self, firewall: Firewall) -> Firewall:
        return self.firewalls[0] if firewall is self.firewalls[1] else self.firewalls[1]

    def _leaves(self, firewall: Firewall) -> bool:
        """Whether a node may stop carrying the connections now; notes the failover if it does."""
        if firewall.name in self._off:
            return False
        if not self._can_carry(firewall):
            return True
        if not self._can_carry(self._other(firewall)):
            return False
        if self._failed_over is None and self._primary() is not self._other(firewall):
            self._failed_over, self._was = time.monotonic(), firewall
            self._note_events()
        return True

    # -- what can happen --------------------------------------------------------------------

    def _open(self, count: float) -> bool | None:
        primary = self._primary()
        if primary is None or self._failed_over is not None:
            return False
        first, self._number = self._number, self._number + int(count)
        primary.load_entries(int(count), first)
        now = time.monotonic()
        self.opened.update(dict.fromkeys(range(first, self._number), now))
        return None

    def _end(self, count: float) -> bool | None:
        primary = self._primary()
        if primary is None or self._failed_over is not None:
            return False
        ended = [*self.opened][: int(count)]
        lines = (
            f"-D -p tcp -s 10.20.{n >> 8 & 255}.{n & 255} -d 198.51.100.{(n >> 16) + 1}\n"
            for n in ended
        )
        primary.run("conntrack", "-R", "-", input="".join(lines))
        for each in ended:
            del self.opened[each]
        return None

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def _kill_conntrackd(self, firewall: Firewall) -> bool | None:
        pids = firewall.pids("conntrackd", "-d")
        if not pids:
            return False
        firewall.run("kill", "-KILL", *map(str, pids), check=False)
        return None

    def _stop_conntrackd(self, firewall: Firewall) -> None:
        firewall.client("-k", check=False)

    def _start_conntrackd(self, firewall: Firewall) -> bool | None:
        if firewall.name in self._off or firewall.pids("conntrackd", "-d"):
            return False
        firewall.hook("unlock")
        firewall.run("conntrackd", "-d", "-C", CONNTRACKD_CONF, check=False)
        return None

    def _kill_follower(self, firewall: Firewall) -> bool | None:
        if not firewall.followers():
            return False
        firewall.kill_follower()
        return None

    def _stop_follower(self, firewall: Firewall) -> bool | None:
        if not firewall.followers():
            return False
        firewall.stop_follower()
        return None

    def _start_follower(self, firewall: Firewall) -> bool | None:
        if firewall.name in self._off or firewall.followers():
            return False
        firewall.start_follower()
        return None

    def _cut_link(self) -> None:
        if self._cut is None:
            self._cut = time.monotonic()
        self.pair.fw1.cut("eth2")

    def _fix_link(self) -> None:
        if not self._off:
            self._cut = None
            self.pair.fw1.fix("eth2")

    def _slow_link(self, tens: float) -> None:
        """So many times 100 kbit/s, and a second of delay before anything is dropped."""
        for firewall in self.firewalls:
            shape = f"rate {100 * tens:.0f}kbit burst 16kb latency 1s"
            firewall.run(*f"tc qdisc replace dev eth2 root tbf {shape}".split())

    def _lose_packets(self, percent: float) -> None:
        for firewall in self.firewalls:
            firewall.run("nft", "-f", "-", input=_LOSS.format(percent=int(percent)))

    def _recover(self) -> None:
        """Everything that is down is up again."""
        for firewall in self.firewalls:
            if firewall.name in self._off:
                self._boot(firewall)
            self._fix_inside(firewall)
            self._start_keepalived(firewall)
            self._start_follower(firewall)

    def _type_state(self, firewall: Firewall) -> bool | None:
        primary = self._primary()
        if primary is None or firewall.name in self._off:
            return False
        firewall.hook("primary" if firewall is primary else "backup", timeout=WITHIN)
        return None

    def _send_bulk(self, firewall: Firewall) -> None:
        firewall.client("-B", check=False)

    def _request_bulk(self, firewall: Firewall) -> None:
        firewall.client("-n", check=False)

    def _resync(self, firewall: Firewall) -> None:
        firewall.client("-R", check=False)

    def _stop_keepalived(self, firewall: Firewall) -> bool | None:
        if not firewall.pids("keepalived") or not self._leaves(firewall):
            return False
        firewall.stop_keepalived()
        return None

    def _kill_keepalived(self, firewall: Firewall) -> bool | None:
        if not firewall.pids("keepalived") or not self._leaves(firewall):
            return False
        firewall.kill_keepalived()
        return None

    def _start_keepalived(self, firewall: Firewall) -> bool | None:
        if firewall.name in self._off or firewall.pids("keepalived"):
            return False
        firewall.start_keepalived()
        return None

    def _cut_inside(self, firewall: Firewall) -> bool | None:
        if firewall.name in self._inside_cut or not self._leaves(firewall):
            return False
        self._inside_cut.add(firewall.name)
        firewall.cut("eth1")
        return None

    def _fix_inside(self, firewall: Firewall) -> bool | None:
        if firewall.name in self._off or firewall.name not in self._inside_cut:
            return False
        firewall.fix("eth1")
        self._inside_cut.remove(firewall.name)
        return None

    def _power_off(self, firewall: Firewall) -> bool | None:
        if not self._leaves(firewall):
            return False
        self._off.add(firewall.name)
        firewall.cut()
        for name in ("keepalived", "conntrackd", "ftfw-transition"):
            pids = firewall.pids(name)
            firewall.run("kill", "-KILL", *map(str, pids), check=False)
        until(lambda: not firewall.pids("keepalived"), what="it is off")
        return None

    def _boot(self, firewall: Firewall) -> bool | None:
        """As an empty node: no entries, no run directory, no addresses of keepalived's."""
        if firewall.name not in self._off:
            return False
        self._boots += 1
        firewall.run("conntrack", "-F")
        firewall.run("sh", "-ec", _BOOT, str(self._boots), RUN_DIR)
        self._off.remove(firewall.name)
        self._inside_cut.discard(firewall.name)
        firewall.fix("eth0", "eth1")
        if self._cut is None:
            firewall.fix("eth2")
        firewall.start_conntrackd()
        firewall.start_follower()
        firewall.start_keepalived()
        return None


_LOSS = """
table inet lab {{
    chain loss {{ type filter hook prerouting priority -400; }}
}}
flush chain inet lab loss
add rule inet lab loss iifname eth2 numgen random mod 100 < {percent} drop
"""
_BOOT = """
rm -rf "$1"/* /run/conntrackd/* /run/conntrackd.ctl /var/run/conntrackd.ctl
for device in eth0 eth1; do
    for address in $(ip -o address show dev $device | awk '$4 ~ /\\/(32|128)$/ {print $4}'); do
        ip address del "$address" dev $device
    done
done
printf '11111111-2222-3333-4444-%012d\\n' "$0" >/run/lab/boot_id.$0
mount --bind /run/lab/boot_id.$0 /proc/sys/kernel/random/boot_id
"""


def carry_out(pair: Pair, sequence: Iterable[Action], *, keyed: bool) -> Story:
    """Carry out a sequence on a pair that is not started yet; AssertionError where it is wrong."""
    if keyed:
        for firewall in (pair.fw1, pair.fw2):
            firewall.take_key(SECRET)
    pair.start()
    story = Story(pair)
    try:
        for action in (*_BEFORE, *sequence, *_AFTER):
            story.carry_out(action)
    except (AssertionError, subprocess.SubprocessError) as error:
        error.add_note("\n".join(story.happened))
        raise
    return story


def main(command: str, *seeds: str) -> int:
    """Carry out the sequences of these seeds; how many of them were wrong."""
    wrong = 0
    for each in seeds:
        first, _, last = each.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            keyed = seed % 2 == 0
            with (
                tempfile.TemporaryDirectory() as directory,
                Pair(Path(directory), Path(command), wiring="fifo", conntrackd=EDITS) as pair,
            ):
                try:
                    verdicts = carry_out(pair, actions(seed), keyed=keyed).verdicts
                    result = ", ".join(verdicts)
                except AssertionError as error:
                    wrong += 1
                    result = "\n".join((f"WRONG: {error}", *error.__notes__, pair.report()))
            print(f"{seed} {'key' if keyed else 'no key'}: {result}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
