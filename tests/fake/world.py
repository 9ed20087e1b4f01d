"""A conntrackd, its kernel and its peer as one object, which fails as a test wants it to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from primary_backup.conntrackd.client import Unanswered, Unreached
from primary_backup.conntrackd.status import Queue, Status
from primary_backup.memory import SocketIdentity
from primary_backup.past import Past, Reported
from primary_backup.plan import Mode, Replication, State, Step, StepName, plan
from primary_backup.proof import Commit, Kernel, Left, Outcome, Verdict
from primary_backup.requests import Requests
from primary_backup.result import StepResult
from primary_backup.rundir.turn import Halted
from primary_backup.transition import Transition

FTFW = Replication(Mode.FTFW)
NOTRACK = Replication(Mode.NOTRACK)
DIRECT = Replication(Mode.FTFW, external_cache=False)
NO_INTERNAL = Replication(Mode.NOTRACK, internal_cache=False)
LEFT = Left(copies=500)
"""What a promotion leaves that was not proven."""
PEER = 500
"""Connections that the peer holds."""


class World:
    """A conntrackd, its kernel, its peer and their time, which passes only in pauses."""

    def __init__(
        self,
        replication: Replication = FTFW,
        *,
        internal: int = 0,
        external: int = 0,
        entries: int = 0,
        peer: bool = True,
        holds: int = PEER,
        room: float = math.inf,
        counts: bool = True,
    ) -> None:
        """``holds``: what the peer sends when asked; ``room``: entries that the kernel takes;
        ``counts``: whether the kernel counts inserts.
        """
        self.replication = replication
        self.internal = internal
        self.external = external
        self.entries = entries
        self.inserted = 2**32 - 7  # it wraps in nearly every test
        self.now = 0.0
        self.peer = peer
        self.holds = holds
        self.room = room
        self.counts = counts
        self.replicated = self.refused = 0
        self.sent = self.unacked = self.dropped = 0
        self.received = 1  # its peer has sent it a packet before, as one that runs for a while has
        self.daemon_number = 1
        self.asked: list[str] = []
        """Every request that changes something, as options in one string."""
        self.events = 0
        """How often anything at all was asked or looked at."""
        self.asked_at: list[int] = []
        """How many events came before each request."""
        self.unreached: list[str] = []
        self.unanswered: list[str] = []
        self.unanswered_at: dict[str, int] = {}
        """The requests that nobody received, that nobody answered, and how many came until then."""
        self.looks = 0
        self.starts = 0
        self.purging = False
        self.fates: dict[str, list[Exception | Callable[[], None] | None]] = defaultdict(list)
        """What the next requests with these options come to, before or instead of their effect."""
        self.acts: dict[str, Callable[[Callable[[], bool]], None]] = {}
        """Another effect of a request than its ordinary one."""
        self.on_look: Callable[[], None] = lambda: None
        """Happens whenever the kernel's counters are looked at."""

    # -- the Daemon protocol ----------------------------------------------------------------

    def command(self, options: tuple[str, ...]) -> str:
        return " ".join(("conntrackd", *options))

    def request(
        self, options: tuple[str, ...], working: Callable[[], bool] = lambda: False
    ) -> bytes:
        name = " ".join(options)
        self.asked.append(name)
        self.asked_at.append(self.events)
        try:
            self._meet(name)
        except Unreached:
            self.unreached.append(name)
            raise
        except Unanswered:
            self.give_up(name)
            raise
        act = self.acts.get(name)
        if act is not None:
            act(working)
        else:
            self.do(name)
        return b""

    def status(self) -> Status:
        self.looks += 1
        self._meet("-s")
        return Status(
            internal=self.internal if self.replication.internal_cache else None,
            external=self.external if self.replication.external_cache else None,
            replicated=self.replicated,
            bytes_sent=self.sent,
            packets_received=self.received,
            bytes_received=16 * self.received,
            refused=self.refused,
        )

    def queue(self) -> Queue | None:
        self._meet("-s queue")
        ftfw = self.replication.mode is Mode.FTFW
        return Queue(self.unacked, self.dropped) if ftfw else None

    def flushing(self) -> bool:
        self._meet("-s process")
        return False

    def kernel(self) -> Kernel:
        self.events += 1
        self.on_look()
        return Kernel(self.inserted % 2**32 if self.counts else None, self.entries)

    def identity(self) -> SocketIdentity:
        return 0, self.daemon_number, 0

    def start(self) -> tuple[str, str]:
        self.starts += 1
        self._meet("start")
        self.revive()
        return "conntrackd -d", ""

    # -- what happens -----------------------------------------------------------------------

    def do(self, name: str) -> None:
        """The ordinary effect of a request."""
        if name == "-c":
            self.insert(self.external if self.replication.external_cache else 0)
        elif name == "-f" and self.replication.internal_cache:
            self.internal = self.external = 0
        elif name == "-f internal" and self.replication.internal_cache:
            self.internal = 0
        elif name in ("-f", "-f internal"):
            self.entries = 0
        elif name == "-f external":
            self.external = 0
        elif name == "-R":
            self.internal = self.entries
        elif name == "-B":
            self.sent += 100 * max(self.internal, 1)
            self.unacked = 0 if self.peer else self.internal
        elif name == "-n" and self.peer:
            self.replicated += self.holds
            self.external = max(self.external, self.holds)
        elif name == "-t":
            self.purging = True

    def give_up(self, name: str) -> None:
        """A request got no answer in time."""
        self.unanswered.append(name)
        self.unanswered_at[name] = len(self.asked)

    def insert(self, count: int) -> None:
        """The kernel takes as many entries as it has room for."""
        count = int(min(count, self.room))
        self.inserted += count
        self.entries += count

    def revive(self) -> None:
        """Another daemon, with empty caches."""
        self.daemon_number += 1
        self.external = self.replicated = self.sent = self.received = 0
        self.internal = self.entries
        for name in ("-s", "-s queue", "-s process"):
            self.fates.pop(name, None)

    def clock(self) -> float:
        """The time, in seconds."""
        return self.now

    def pause(self, seconds: float) -> None:
        """Time passes, and a living peer sends every second."""
        if self.peer:
            self.received += int(self.now + seconds) - int(self.now)
        self.now += seconds

    def _meet(self, name: str) -> None:
        self.events += 1
        fates = self.fates[name]
        fate = fates.pop(0) if fates else None
        if isinstance(fate, Exception):
            raise fate
        if fate is not None:
            fate()


class Carried(NamedTuple):
    """A transition that was carried out in a world."""

    results: list[StepResult]
    world: World

    @property
    def outcomes(self) -> dict[str, Outcome]:
        return {result.name.value: result.outcome for result in self.results}

    def reason(self, name: str) -> str:
        """Why the step of this name ended as it did."""
        return next(result.reason for result in self.results if result.name.value == name)

    @property
    def commit(self) -> Commit | None:
        """What was observed of its commit."""
        return next((result.commit for result in self.results if result.commit), None)

    @property
    def uncommitted(self) -> bool:
        """Whether it leaves anything that the caches do not tell."""
        return self.results[-1].left != Left()

    @property
    def purged(self) -> bool:
        """Whether it asked for a purge, and did not cancel it."""
        return self.results[-1].purged


def carry_out(
    world: World,
    state: State,
    *,
    past: Past = Past(),  # noqa: B008  # it is a tuple
    again: bool = False,
    halted: Callable[[], str | None] = lambda: None,
    about_to: Callable[[Step, Kernel | None], None] = lambda *_: None,
    step_seconds: float = math.inf,
    reported: Callable[[], Reported | None] = lambda: None,
    objection: Callable[[int, bool], Verdict | None] = lambda *_: None,
    awaits_bulk: bool = False,
) -> Carried:
    """Carry out a state's plan in a world, to its end."""
    steps = plan(state, world.replication, again=again)
    requests = Requests(
        world,
        identity=world.identity(),
        start=world.start if state in (State.PRIMARY, State.BACKUP) else None,
        check=lambda: halt(halted()),
        pause=world.pause,
        clock=world.clock,
        step_seconds=step_seconds,
    )
    transition = Transition(
        steps,
        requests,
        past,
        about_to=about_to,
        objection=objection,
        awaits_bulk=awaits_bulk,
        reported=reported,
    )
    results = list(transition.results())
    names = [result.name for result in results if result.name is not StepName.START]
    assert names == [step.name for step in steps]
    return Carried(results, world)


def halt(why: str | None) -> None:
    """Raise Halted where there is a reason."""
    if why is not None:
        raise Halted(why)


def unreached(times: int) -> list[Exception | Callable[[], None] | None]:
    """Nobody listens, so many times."""
    return [Unreached("conntrackd is not running") for _ in range(times)]
