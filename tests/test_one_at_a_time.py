"""One transition at a time: order, supersession, signals, and which primary is a second one."""

from __future__ import annotations

import fcntl
import json
import signal
import sys

import pytest

from tests.fake.cli import FIRST_WAITS, REFUSES, WAITS, in_mid_commit, promoted
from tests.fake.node import Hook, Node, later
from tests.waiting import until


def holds(node: Node) -> bool:
    """Whether somebody holds the lock."""
    with (node.run_dir / "lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# -- one at a time ------------------------------------------------------------------------------


def test_a_second_primary_commits_nothing(node: Node) -> None:
    """The last request to this daemon was a primary's that committed: the entries are live."""
    promoted(node)
    node.has(external=1_000)
    ended = node.run("primary")
    assert node.asked[4:] == ["-f internal", "-R", "-B"]
    assert ended.code == 0


def test_a_second_primary_is_degraded_while_uncommitted_copies_are_there(node: Node) -> None:
    """The connections of these copies may be missing in the kernel table: ok would hide it."""
    node.has(external=1_000)
    assert node.run("primary").code == 3
    second = node.run("primary")
    assert (second.code, second.step("poll")["outcome"]) == (3, "degraded")
    assert "1000 uncommitted copies" in second.event["reason"]
    assert "conntrackd -c" in second.event["advice"]
    node.has(external=0)
    third = node.run("primary")
    assert (third.code, third.step("poll")["outcome"]) == (0, "ok")
    assert node.run("primary").step("poll")["outcome"] == "skipped"


def test_a_primary_that_received_a_rival_commits_nothing_whatever_was_typed(node: Node) -> None:
    """keepalived has called it master all along."""
    promoted(node)
    node.run("backup")
    before = len(node.asked)
    assert node.run("notify", "INSTANCE", "VI_1", "MASTER_RX_LOWER_PRI").code == 0
    assert node.asked[before:] == ["-f internal", "-R", "-B"]


def test_a_third_primary_commits_nothing_either(node: Node) -> None:
    """However often it is reported."""
    for _ in range(3):
        promoted(node)
    assert node.asked.count("-c") == 1


def test_a_re_assertion_is_no_promotion(node: Node) -> None:
    """A primary after a re-assertion alone has never committed, and does."""
    node.run("notify", "INSTANCE", "VI_1", "MASTER_RX_LOWER_PRI", "150")
    promoted(node)
    assert node.asked.count("-c") == 1


def test_a_stop_in_the_middle_of_a_promotion_makes_the_next_a_first_one(node: Node) -> None:
    """keepalived has stopped: what the promotion still records does not bring it back."""
    node.on("-c", WAITS)
    hook = node.start("primary")
    until((node.world / "committing").exists, "the commit runs")
    assert node.run("stop").code == 0
    node.release("go")
    assert hook.wait().code == 0
    promoted(node)
    assert node.asked.count("-c") == 2


@pytest.mark.parametrize("between", ["backup", "fault"])
def test_a_backup_or_fault_since_makes_a_primary_a_first_one(node: Node, between: str) -> None:
    """The peer was primary meanwhile: its connections are committed."""
    promoted(node)
    node.has(internal=3, holds=3)
    node.run(between)
    promoted(node)
    assert node.asked.count("-c") == 2


def test_a_fault_that_asked_nothing_makes_a_primary_a_first_one(node: Node) -> None:
    """A fault with nothing to purge or cancel is a fault all the same."""
    promoted(node)
    node.has(peer=0, internal=3)
    node.run("fault")
    node.has(peer=1)
    promoted(node)
    assert node.asked.count("-c") == 2


def test_another_daemon_makes_a_primary_a_first_one(node: Node) -> None:
    """A daemon is known by its socket: another one has committed nothing yet."""
    promoted(node)
    node.socket.rename(node.world / "old")
    node.socket.touch()
    promoted(node)
    assert node.asked.count("-c") == 2


def test_a_daemon_without_a_socket_makes_a_primary_a_first_one(node: Node) -> None:
    """In doubt the commit is made: an entry costs little, a connection cannot be brought back."""
    node.socket.unlink()
    promoted(node)
    promoted(node)
    assert node.asked.count("-c") == 2


def test_another_boot_makes_a_primary_a_first_one(node: Node) -> None:
    """What is remembered of another boot is nothing."""
    promoted(node)
    path = node.run_dir / "memory.json"
    memory = json.loads(path.read_text())
    path.write_text(json.dumps({**memory, "boot": "of yesterday"}))
    promoted(node)
    assert node.asked.count("-c") == 2


def test_a_promotion_that_failed_makes_a_primary_a_first_one(node: Node) -> None:
    """A commit that was not attempted to the end is no commit."""
    node.on("-c", REFUSES)
    assert node.run("primary").code == 1
    (node.world / "on" / "-c").unlink()
    promoted(node)
    assert node.asked == ["-c", "-c", "-f", "-R", "-B"]


def frozen(node: Node, state: str) -> Hook:
    """A hook that was started, and is stopped before it has done anything; SIGCONT thaws it."""
    hook = node.spawn(["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *node.arguments(state)])
    until(lambda: hook.stopped, f"the {state} is stopped")
    later()  # within a tick the process numbers decide, and they start again at 32,768
    return hook


@pytest.mark.parametrize("state", ["backup", "fault"])
def test_a_late_backup_never_purges_a_primary(node: Node, state: str) -> None:
    """Frozen before it acts, overtaken by a primary: it asks nothing, and exits 4."""
    node.has(internal=3, external=0, holds=3)
    late = frozen(node, state)
    promoted(node)
    node.has(external=3)
    asked = node.asked
    late.signal(signal.SIGCONT)
    ended = late.wait()
    assert (ended.code, ended.event["outcome"]) == (4, "superseded")
    assert node.asked == asked


def test_a_late_primary_commits_nothing_over_a_backup(node: Node) -> None:
    """An older one that gets the lock late is superseded, whatever it is."""
    node.has(holds=3)
    late = frozen(node, "primary")
    assert node.run("backup").code == 0
    asked = node.asked
    late.signal(signal.SIGCONT)
    assert late.wait().code == 4
    assert node.asked == asked


def test_a_newer_one_supersedes_before_the_next_request(node: Node) -> None:
    """A fault comes while -c runs: the promotion ends after it, superseded, and asks no more."""
    older = in_mid_commit(node)
    newer = node.start("fault")
    until(lambda: node.shows("fault"), "the fault waits")
    node.release("go")
    ended = older.wait()
    assert (ended.code, ended.event["outcome"]) == (4, "superseded")
    assert newer.wait().code == 0
    assert not {"-f", "-R", "-B"} & set(node.asked)


def test_a_promotion_cut_short_stops_the_next_purge(node: Node) -> None:
    """It committed but flushed nothing: the old copy is not taken for the peer's."""
    node.has(external=5, internal=5)
    older = in_mid_commit(node)
    newer = node.start("fault")
    until(lambda: node.shows("fault"), "the fault waits")
    node.release("go")
    older.wait()
    newer.wait()
    assert "-t" not in node.asked


def test_a_newer_one_that_died_supersedes_nobody(node: Node) -> None:
    """Killed with SIGKILL while it waited: the live promotion goes on to its end."""
    older = in_mid_commit(node)
    newer = node.start("backup")
    until(lambda: node.shows("backup"), "the backup waits")
    newer.signal(signal.SIGKILL)
    newer.wait()
    node.release("go")
    assert older.wait().code == 0


def test_a_newer_one_that_was_refused_supersedes_nobody(node: Node) -> None:
    """It died on bad input: the live promotion goes on to its end."""
    older = in_mid_commit(node)
    assert node.run("--config", str(node.world / "missing.conf"), "backup").code == 1
    node.release("go")
    assert older.wait().code == 0


def test_a_newer_one_that_has_read_nothing_yet_supersedes_nobody(node: Node) -> None:
    """Only once all its input is read it counts."""
    older = in_mid_commit(node)
    late = frozen(node, "fault")
    node.release("go")
    assert older.wait().code == 0
    late.signal(signal.SIGCONT)
    assert late.wait().code == 0


def test_the_same_state_waits_and_finds_the_work_done(node: Node) -> None:
    """Group and instances all tell a hook: one works, the others wait, and ask nothing."""
    first = in_mid_commit(node)
    others = [node.start("primary") for _ in range(3)]
    until(lambda: len(list(node.run_dir.glob("ticket.*.primary"))) == 4, "all of them wait")
    node.release("go")
    assert [hook.wait().code for hook in (first, *others)] == [0, 0, 0, 0]
    assert node.asked == ["-c", "-f", "-R", "-B"]


def test_the_same_state_does_what_the_first_did_not(node: Node) -> None:
    """The first one was killed: nothing is done yet, and the second does it."""
    first = in_mid_commit(node)
    second = node.start("primary")
    until(lambda: len(list(node.run_dir.glob("ticket.*.primary"))) == 2, "the second waits")
    first.signal(signal.SIGKILL)
    first.process.wait()
    node.release("go")
    assert second.wait().code == 0
    assert node.asked == ["-c", "-c", "-f", "-R", "-B"]


def test_a_hook_that_was_killed_blocks_nobody(node: Node) -> None:
    """SIGKILL in the middle of a commit: the next one acts at once, and commits."""
    killed = in_mid_commit(node)
    killed.signal(signal.SIGKILL)
    killed.process.wait()
    node.release("go")
    ended = node.run("primary")
    assert ended.code == 0
    assert ended.event["waited_seconds"] < 5
    assert node.asked.count("-c") == 2


def test_a_stopped_backup_does_not_hold_up_a_promotion(node: Node) -> None:
    """A lock that is held by a stopped process must not stand before a commit."""
    node.has(holds=3)
    node.on("-n", FIRST_WAITS)
    older = node.start("backup")
    until((node.world / "committing").exists, "the backup asks for a resync")
    older.signal(signal.SIGSTOP)
    until(lambda: older.stopped, "the backup is stopped")
    ended = node.run("primary")
    older.signal(signal.SIGCONT)
    node.release("go")
    assert "-c" in node.asked
    assert ended.event["outcome"] == "degraded"
    assert older.wait().code == 4


def test_one_that_was_overtaken_does_not_overwrite_what_is_remembered(node: Node) -> None:
    """A stopped backup goes on after a primary overtook it: the primary stays the newest one."""
    node.has(holds=3)
    node.on("-n", FIRST_WAITS)
    older = node.start("backup")
    until((node.world / "committing").exists, "the backup asks for a resync")
    older.signal(signal.SIGSTOP)
    until(lambda: older.stopped, "the backup is stopped")
    node.run("primary")
    commits = node.asked.count("-c")
    older.signal(signal.SIGCONT)
    node.release("go")
    older.wait()
    promoted(node)
    assert node.asked.count("-c") == commits > 0


SLOW = """
import json, os, sys, time
from primary_backup.controller import enter
from primary_backup.intent import Intent
from primary_backup.plan import State
from primary_backup.rundir.turn import Caller
from primary_backup.settings import Settings
from primary_backup.system.proc import own_start

world, *settings, message, outcome = sys.argv[1:]

def emit(name, fields):
    if (name, fields["outcome"]) == (message, outcome):
        open(f"{world}/logging", "w").close()
        while not os.path.exists(f"{world}/logged"):
            time.sleep(0.005)
    return json.dumps(fields)

caller = Caller(own_start(), [])
print(enter(Intent(State.PRIMARY, "test"), Settings(*settings), emit, caller).outcome.value)
"""


def slow(node: Node, message: str, outcome: str) -> list[str]:
    """A promotion that is slow to log one event: until released."""
    settings = map(str, (node.world, node.config, node.client, node.run_dir, "/no/keepalived"))
    return [sys.executable, "-c", SLOW, *settings, message, outcome]


def test_one_that_is_slow_to_log_its_end_does_not_overwrite_the_next(node: Node) -> None:
    """A fault that followed a promotion is the newest, however slow the promotion's log is."""
    node.has(internal=3, external=3)
    promotion = node.spawn(slow(node, "transition.finished", "ok"))
    until((node.world / "logging").exists, "the promotion is about to log its end")
    held = holds(node)
    fault = node.start("fault")
    if held:
        until(lambda: node.shows("fault"), "the fault waits for the lock")
    else:
        until(lambda: fault.ended, "the fault has ended")
    node.release("logged")
    assert promotion.wait().code == 0
    assert fault.wait().code == 0
    promoted(node)
    assert node.asked.count("-c") == 2


def test_one_whose_successor_is_gone_was_superseded_all_the_same(node: Node) -> None:
    """The newer one was superseded itself, or has ended: nothing failed here."""
    node.has(holds=3)
    node.on("-c", WAITS)
    older = node.spawn(slow(node, "step.finished", "superseded"))
    until((node.world / "committing").exists, "the commit runs")
    newer = node.start("backup")
    until(lambda: node.shows("backup"), "the backup waits")
    node.release("go")
    until((node.world / "logging").exists, "the promotion is superseded")
    newer.signal(signal.SIGKILL)
    newer.wait()
    node.release("logged")
    assert older.wait().out == "superseded\n"


def test_many_hooks_at_once_leave_the_newest_s_state(node: Node) -> None:
    """Whatever order they run in, the last notification has the newest notification."""
    node.has(internal=3, holds=3)
    hooks = [node.start(state) for state in ("backup", "primary", "backup", "primary", "backup")]
    later()
    hooks.append(node.start("primary"))
    ends = [hook.wait() for hook in hooks]
    assert ends[-1].code == 0
    assert json.loads((node.run_dir / "memory.json").read_text())["last"][2] == "primary"
    assert {ended.code for ended in ends} <= {0, 4}, [ended.lines for ended in ends]
    assert node.asked[-1] == "-B"


# -- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_transition_after_the_step_in_hand(
    node: Node, number: signal.Signals
) -> None:
    """The final event reports superseded or failed, with the signal."""
    hook = in_mid_commit(node)
    hook.signal(number)
    node.release("go")
    ended = hook.wait()
    assert ended.event["outcome"] in ("superseded", "failed")
    assert number.name in ended.event["reason"]
    assert node.asked == ["-c"]
    assert json.loads(node.last)["outcome"] == ended.event["outcome"]


def test_a_signal_leaves_the_lock_free(node: Node) -> None:
    """And no ticket, so that the next one waits for nobody."""
    hook = in_mid_commit(node)
    hook.signal(signal.SIGTERM)
    node.release("go")
    hook.wait()
    assert not holds(node)
    assert not node.shows("primary")


def test_a_signal_ends_the_wait_for_the_lock(node: Node) -> None:
    """One that waits has nothing in hand: it ends at once, and names the signal."""
    primary = in_mid_commit(node)
    waiting = node.start("primary")
    until(lambda: len(list(node.run_dir.glob("ticket.*.primary"))) == 2, "the second waits")
    waiting.signal(signal.SIGTERM)
    ended = waiting.wait(within=5)
    assert ended.event["outcome"] in ("superseded", "failed")
    assert "SIGTERM" in ended.event["reason"]
    node.release("go")
    assert primary.wait().code == 0


@pytest.mark.parametrize("full", ["stdout", "stderr"])
@pytest.mark.parametrize(
    ("arguments", "code"), [(("primary", "--json"), 0), (("backup",), 1), (("bogus",), 2)]
)
def test_a_full_disk_behind_an_output_changes_no_exit_status(
    node: Node, arguments: tuple[str, ...], code: int, full: str
) -> None:
    """A script goes by the outcome of the transition, not by that of printing it."""
    node.on("-s", "[ ! -e $world/refuses ] || refuse no")
    if arguments == ("backup",):
        node.release("refuses")
    with open("/dev/full", "wb") as file:
        assert node.start(*arguments, **{full: file}).wait().code == code


# -- who is second ------------------------------------------------------------------------------


def fill_the_disk(node: Node) -> None:
    """Let the run directory's file system have room for nothing more."""
    node.sh(f"head -c 1m /dev/zero >{node.run_dir}/filler 2>/dev/null || :")


def test_a_backup_that_could_write_nothing_makes_the_next_primary_a_first_one(node: Node) -> None:
    """/run is full: what the peer opened meanwhile must be committed all the same."""
    node.run_dir.mkdir(mode=0o700)
    node.sh(f"mount -t tmpfs -o mode=700,size=64k none {node.run_dir}")
    promoted(node)
    fill_the_disk(node)
    node.has(holds=500)
    node.run("backup")
    node.run("primary")
    assert node.asked.count("-c") == 2


@pytest.mark.parametrize("state", ["backup", "fault", "stop"])
def test_a_notification_that_asked_nothing_makes_the_next_primary_a_first_one(
    node: Node, state: str
) -> None:
    """A half-edited file, nothing to ask: another node was primary all the same."""
    promoted(node)
    node.on("-s", 'refuse "parsing config file in line (3)"')
    node.run(state)
    node.on("-s", "")
    node.run("primary")
    assert node.asked.count("-c") == 2


def test_a_re_assertion_that_comes_first_leaves_the_commit_to_its_promotion(node: Node) -> None:
    """keepalived's hooks run out of order: the older one is the promotion."""
    node.has(holds=3)
    node.run("backup")
    promotion = node.start("primary")
    promotion.signal(signal.SIGSTOP)
    node.run("notify", "INSTANCE", "VI_1", "MASTER_RX_LOWER_PRI", "150")
    promotion.signal(signal.SIGCONT)
    promotion.wait()
    assert node.asked.count("-c") == 1


def test_a_lock_of_nobody_s_refuses_no_promotion(node: Node) -> None:
    """Whoever holds it, and does not say who it is, does not stand before a commit for long."""
    node.run_dir.mkdir(mode=0o700)
    with open(node.run_dir / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = node.run("primary")
    assert node.asked == ["-c", "-f", "-R", "-B"]
    assert (ended.code, ended.event["waited_seconds"] < 30) == (3, True)
