"""follower/upkeep.py: what polls of an idle daemon find, with real records and a fake client."""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

import pytest

from primary_backup.follower.needs import SILENCE_SECONDS
from primary_backup.follower.upkeep import Upkeep
from primary_backup.intent import Intent, Kind
from primary_backup.plan import State
from primary_backup.proof import Outcome
from primary_backup.rundir.turn import Halted
from primary_backup.settings import Settings, installed_keepalived
from primary_backup.system.proc import boot_id, boot_seconds
from tests.fake.node import Node
from tests.waiting import until

WAITS = ": >$world/asking; until_released go"
FLUSHES = 'get flushes; echo "flush kernel table: $value"'
"""What `-s runtime` prints of it."""


class Event(NamedTuple):
    """What was logged."""

    name: str
    outcome: Outcome
    reason: str


class Keeper:
    """The upkeep of one node, which polls when a test wants it to."""

    def __init__(self, node: Node) -> None:
        self.events: list[Event] = []
        self.newer = False
        paths = (str(node.config), str(node.client), str(node.run_dir))
        settings = Settings(*paths, installed_keepalived())
        self._upkeep = Upkeep(settings, lambda *event: self.events.append(Event(*event)), self._end)

    def poll(self) -> Intent | None:
        """Poll once; what is to be done."""
        return self._upkeep.poll()

    def found(self, within: float = 10) -> Intent:
        """Poll until there is something to do."""
        intents: list[Intent] = []

        def polls() -> bool:
            intent = self.poll()
            intents.extend([intent] if intent is not None else [])
            return bool(intents)

        until(polls, "something is to be done", within)
        return intents[0]

    def finds_nothing(self) -> bool:
        """Poll a few times."""
        return not any(self.poll() for _ in range(4))

    def _end(self) -> None:
        if self.newer:
            raise Halted("there is a newer notification")


@pytest.fixture
def keeper(node: Node) -> Keeper:
    node.has(internal=3, external=3, holds=3)
    return Keeper(node)


def replace_daemon(node: Node) -> None:
    """Another daemon binds another socket."""
    node.socket.rename(node.world / "old")
    node.socket.touch()


def test_a_node_of_which_nothing_is_known_is_not_polled(node: Node, keeper: Keeper) -> None:
    """No state was asked of it in this boot."""
    assert keeper.poll() is None
    assert node.run("primary").code == 0
    asked = node.calls
    memory = node.run_dir / "memory.json"
    memory.write_text(memory.read_text().replace(boot_id(), "another"))
    assert keeper.poll() is None
    assert node.calls == asked


@pytest.mark.parametrize("state", ["primary", "backup", "fault"])
def test_a_node_that_is_in_sync_needs_nothing(node: Node, keeper: Keeper, state: str) -> None:
    """A poll changes nothing, and is worth no event."""
    assert node.run(state).code == 0
    asked = node.asked
    assert keeper.finds_nothing()
    assert (node.asked, keeper.events) == (asked, [])


@pytest.mark.parametrize("state", ["primary", "backup", "fault"])
def test_a_daemon_that_is_gone_is_needed(node: Node, keeper: Keeper, state: str) -> None:
    """To be started, in the state that this node is in; and an event names the reason."""
    node.run(state)
    node.on("any", "unreached")
    intent = keeper.poll()
    assert intent is not None
    assert (intent.state.value, intent.kind) == (state, Kind.REFRESH)
    assert [(event.name, event.outcome) for event in keeper.events] == [
        ("sync.lost", Outcome.DEGRADED)
    ]


@pytest.mark.parametrize("state", ["primary", "backup"])
def test_a_daemon_that_was_restarted_is_brought_back_in_sync(
    node: Node, keeper: Keeper, state: str
) -> None:
    """Another socket: its caches are new, whether or not it was seen to be gone."""
    node.run(state)
    assert keeper.finds_nothing()
    replace_daemon(node)
    intent = keeper.poll()
    assert intent is not None
    assert (intent.state.value, intent.kind) == (state, Kind.REFRESH)


def test_a_daemon_that_was_restarted_within_a_transition_is_brought_back_in_sync(
    node: Node, keeper: Keeper
) -> None:
    """The transition has proven nothing of the successor, though it ended with that one."""
    node.has(internal=50)
    node.on("-B", "mv $world/ctl $world/old; : >$world/ctl")
    assert node.run("primary").event["outcome"] == "degraded"

    assert keeper.found().cause == "conntrackd was restarted: its caches are new"


def test_a_need_is_not_met_again_at_once(node: Node, keeper: Keeper) -> None:
    """A daemon that keeps dying is no reason for a storm: one act, and one event."""
    node.run("backup")
    node.on("any", "unreached")
    assert keeper.poll() is not None
    assert keeper.finds_nothing()
    assert len(keeper.events) == 1


def test_a_transition_that_was_killed_is_finished(node: Node, keeper: Keeper) -> None:
    """All of it, as if its notification had just come."""
    node.on("-c", WAITS)
    hook = node.start("primary")
    until((node.world / "asking").exists, "the commit runs")
    hook.signal(signal.SIGKILL)
    hook.process.wait()
    node.release("go")
    intent = keeper.poll()
    assert intent is not None
    assert (intent.state, intent.kind) == (State.PRIMARY, Kind.BECOME)


def test_a_transition_that_failed_is_made_again(node: Node, keeper: Keeper) -> None:
    """The client did not take its configuration then, and does now."""
    node.on("-c", 'refuse "no"')
    assert node.run("primary").code == 1
    (node.world / "on" / "-c").unlink()
    intent = keeper.poll()
    assert intent is not None
    assert (intent.state, intent.kind) == (State.PRIMARY, Kind.BECOME)


@pytest.mark.parametrize("accident", ["dead", "restarted"])
def test_a_promotion_that_failed_is_made_again_whatever_its_daemon_met(
    node: Node, keeper: Keeper, accident: str
) -> None:
    """It has not brought back what it should: the daemon alone is not what is missing."""
    node.on("-c", 'refuse "no"')
    assert node.run("primary").code == 1
    (node.world / "on" / "-c").unlink()
    if accident == "dead":
        node.on("any", "unreached")
    else:
        replace_daemon(node)
    intent = keeper.poll()
    assert intent is not None
    assert (intent.state, intent.kind) == (State.PRIMARY, Kind.BECOME)


def test_a_transition_that_is_under_way_is_left_alone(node: Node, keeper: Keeper) -> None:
    """Nothing is even polled."""
    node.on("-c", WAITS)
    hook = node.start("primary")
    until((node.world / "asking").exists, "the commit runs")
    calls = node.calls
    assert keeper.finds_nothing()
    assert node.calls == calls
    node.release("go")
    assert hook.wait().code == 0


def test_a_backup_whose_peer_is_back_asks_it(node: Node, keeper: Keeper) -> None:
    """No packets came when it asked: once some do, it asks again, once."""
    node.has(peer=0, holds=0)
    assert node.run("backup").code == 3
    assert keeper.finds_nothing()
    node.has(peer=1)
    intent = keeper.found()
    assert (intent.state, intent.kind) == (State.BACKUP, Kind.REFRESH)
    assert "peer" in keeper.events[-1].reason


def test_a_primary_whose_peer_was_away_sends_it_everything(node: Node, keeper: Keeper) -> None:
    """Its packets stopped for two seconds, and came back; a link that flaps then has to wait."""
    assert node.run("primary").code == 0
    assert keeper.finds_nothing()
    node.has(peer=0)
    silence = boot_seconds() + SILENCE_SECONDS
    until(lambda: keeper.poll() is not None or boot_seconds() > silence, "it was away for so long")
    assert keeper.events == []
    node.has(peer=1)
    intent = keeper.found()
    assert (intent.state, intent.kind) == (State.PRIMARY, Kind.REFRESH)
    assert keeper.finds_nothing()
    assert len(keeper.events) == 1


def test_a_deferred_purge_is_resumed_once_it_is_safe(node: Node, keeper: Keeper) -> None:
    """The peer held less than is here; now it holds it all, and sends. It has its own event."""
    node.has(internal=300, external=3)
    node.run("fault")
    assert "-t" not in node.asked
    assert keeper.finds_nothing()
    node.has(external=300)
    intent = keeper.found()
    assert (intent.state, intent.kind) == (State.FAULT, Kind.PURGE)
    assert [(event.name, event.outcome) for event in keeper.events] == [
        ("purge.resumed", Outcome.OK)
    ]


def test_a_purge_that_fires_is_reported(node: Node, keeper: Keeper) -> None:
    """conntrackd itself logs nothing: what is left then is in the event; once for each."""
    node.has(flushes=1)
    node.on("-s runtime", FLUSHES)
    node.run("fault")
    assert "-t" in node.asked
    assert keeper.finds_nothing()
    assert keeper.events == []
    node.has(flushes=2)
    assert keeper.finds_nothing()
    assert [(event.name, event.outcome) for event in keeper.events] == [("purge.fired", Outcome.OK)]


@pytest.mark.parametrize("trouble", ["refused", "broken", "gone"])
def test_a_daemon_that_cannot_be_read_is_reported_once(
    node: Node, keeper: Keeper, trouble: str
) -> None:
    """Nothing is done about it; when it is over, and comes back, it is reported again."""
    node.run("backup")
    for times in (1, 2):
        if trouble == "refused":
            node.on("-s", 'refuse "no"')
        elif trouble == "broken":
            node.config.write_text("Sync {")
        else:
            node.config.unlink()
        assert keeper.finds_nothing()
        names = [(event.name, event.outcome) for event in keeper.events]
        assert names == [("conntrackd.unreadable", Outcome.DEGRADED)] * times
        if trouble == "refused":
            (node.world / "on" / "-s").unlink()
        node.configure("Mode FTFW { }")
        assert keeper.finds_nothing()


def test_a_poll_ends_with_a_newer_notification(node: Node, keeper: Keeper) -> None:
    """A daemon that hangs holds up no notification, and nothing is reported of it."""
    node.run("backup")
    node.on("any", WAITS)
    keeper.newer = True
    assert keeper.poll() is None
    assert keeper.events == []


@pytest.mark.parametrize("kind", ["a file", "others can write"])
def test_a_run_directory_that_cannot_be_used_is_no_reason_to_act(
    node: Node, keeper: Keeper, kind: str
) -> None:
    """Every transition reports it."""
    if kind == "a file":
        node.run_dir.touch()
    else:
        node.run_dir.mkdir()
        node.run_dir.chmod(0o777)
    assert keeper.poll() is None
    assert keeper.events == []


def test_a_poll_leaves_no_file_open(node: Node, keeper: Keeper) -> None:
    """It polls every five seconds, for months."""
    node.run("backup")
    keeper.finds_nothing()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        keeper.finds_nothing()
    assert len(os.listdir("/proc/self/fd")) - before < 10
