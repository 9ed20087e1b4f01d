"""history.py: what one transition leaves, and what the next one makes of it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from primary_backup.history import History
from primary_backup.plan import Mode, Replication, State, Step, plan
from primary_backup.proof import Kernel, Outcome
from primary_backup.requests import Requests
from primary_backup.rundir.directory import RunDir, Ticket
from primary_backup.system.proc import TICKS_PER_SECOND, Issued, boot_seconds, own_start
from primary_backup.transition import Past, StepResult, Transition

DAEMON = (1, 2, 3)
BEFORE = Kernel(inserted=7, entries=5)
PROMOTION = plan(State.PRIMARY, Replication(Mode.FTFW))
REASSERTION = plan(State.PRIMARY, Replication(Mode.FTFW), again=True)
STANDBY = plan(State.BACKUP, Replication(Mode.FTFW))
FOREVER = 10_000


def ago(seconds: float) -> Issued:
    """A issued that was so many seconds ago."""
    return Issued(int((boot_seconds() - seconds) * TICKS_PER_SECOND), own_start().pid)


class Told:
    """One intent after the other, each with a history of its own, as processes have."""

    def __init__(self, path: Path) -> None:
        self.path = str(path / "run")
        self.daemon: tuple[int, ...] | None = DAEMON
        self._ago = 100.0

    def begins(
        self, state: State, steps: tuple[Step, ...] | None = None, *, issued: Issued | None = None
    ) -> tuple[History, Past]:
        """One that knows what was left, and has written down what it is about to do."""
        history = self.knows(state, issued=issued)
        if state is not State.PRIMARY:
            history.step_down()
        return history, history.begin(STANDBY if steps is None else steps, live=False)

    def knows(self, state: State, *, issued: Issued | None = None) -> History:
        """One that knows what was left; each is a second younger than the last."""
        self._ago -= 1
        history = History(RunDir(self.path), Ticket(issued or ago(self._ago), state))
        history.recall(lambda: self.daemon)
        return history

    def does(
        self, state: State, outcome: Outcome = Outcome.OK, steps: Iterable[Step] | None = None
    ) -> History:
        """One that asks its steps and comes to its end."""
        steps = tuple(steps or (PROMOTION if state is State.PRIMARY else STANDBY))
        history, past = self.begins(state, steps)
        for step in steps:
            asks(history, past, step, outcome)
        history.finish("{}", outcome, proven=outcome is Outcome.OK)
        return history


def asks(history: History, past: Past, step: Step, outcome: Outcome = Outcome.OK) -> None:
    """One step is asked, with this outcome."""
    history.about_to(step, 60, BEFORE)
    transition = nothing(past)
    transition.purged = step.name == "purge"
    history.learn(StepResult(step.name, "", outcome, attempts=1), transition)


def nothing(past: Past) -> Transition:
    """A transition that has seen nothing."""
    requests = Requests(
        None,  # type: ignore[arg-type]  # it asks nothing
        start=None,
        halted=lambda: None,
        pause=lambda _: None,
    )
    return Transition((), requests, past)


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


# -- what was done already ----------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.PRIMARY, State.BACKUP, State.FAULT])
def test_who_waited_for_the_same_finds_it_done(told: Told, state: State) -> None:
    """Born before the work was done, and wanted just that."""
    waiting = Issued(ago(0).ticks - 2, FOREVER)
    done = told.does(state)
    assert told.knows(state, issued=waiting).done_by() == done.transition


@pytest.mark.parametrize("state", [State.PRIMARY, State.BACKUP])
def test_who_is_born_later_finds_nothing_done(told: Told, state: State) -> None:
    """What was proven before it may not hold any more."""
    told.does(state)
    later = Issued(int(boot_seconds() * TICKS_PER_SECOND) + 1, FOREVER)
    assert told.knows(state, issued=later).done_by() is None


def test_who_is_born_in_the_same_tick_finds_nothing_done(told: Told) -> None:
    """A issued is told in ticks, and may well have come after the work within its own."""
    told.does(State.BACKUP)
    done = RunDir(told.path).recall().done
    issued = Issued(int(done * TICKS_PER_SECOND), FOREVER)
    assert told.knows(State.BACKUP, issued=issued).done_by() is None


@pytest.mark.parametrize(
    "outcome", [Outcome.DEGRADED, Outcome.FAILED, Outcome.SUPERSEDED], ids=lambda o: o.value
)
def test_what_was_not_proven_is_not_done(told: Told, outcome: Outcome) -> None:
    """Only an ok is a proof."""
    told.does(State.BACKUP, outcome)
    assert told.knows(State.BACKUP, issued=ago(50)).done_by() is None


def test_another_state_s_work_is_not_ours(told: Told) -> None:
    """A backup's for a fault."""
    told.does(State.BACKUP)
    assert told.knows(State.FAULT, issued=ago(50)).done_by() is None


def test_another_daemon_s_work_is_gone(told: Told) -> None:
    """A daemon that was restarted has nothing of it."""
    told.does(State.BACKUP)
    told.daemon = (1, 2, 4)
    history = told.knows(State.BACKUP, issued=ago(50))
    assert (history.done_by(), history.is_blank) == (None, True)


def test_a_promotion_after_which_one_stepped_down_is_not_done(told: Told) -> None:
    """Whoever stepped down asked nothing: the promotion is a first one all the same."""
    told.does(State.PRIMARY)
    told.knows(State.STOP).step_down()
    assert told.knows(State.PRIMARY, issued=ago(50)).done_by() is None


def test_one_that_is_older_steps_nobody_down(told: Told) -> None:
    """A stop that is late must not undo a younger promotion."""
    late = told.knows(State.STOP)
    told.does(State.PRIMARY)
    late.step_down()
    assert told.knows(State.PRIMARY).is_second()


# -- whether it is a second promotion -----------------------------------------------------------


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.DEGRADED])
def test_a_promotion_after_a_promotion_is_a_second_one(told: Told, outcome: Outcome) -> None:
    """It was brought to its end, be it degraded."""
    told.does(State.PRIMARY, outcome)
    assert told.knows(State.PRIMARY).is_second()


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.SUPERSEDED])
def test_a_promotion_that_did_not_end_well_has_no_second(told: Told, outcome: Outcome) -> None:
    """Its commit may not have been made."""
    told.does(State.PRIMARY, outcome)
    assert not told.knows(State.PRIMARY).is_second()


@pytest.mark.parametrize("live", [True, False])
def test_who_only_brought_a_primary_back_in_sync_has_nothing_to_commit(
    told: Told, *, live: bool
) -> None:
    """Its resync failed: it is repeated, while a re-assertion has yet to be a promotion."""
    history = told.knows(State.PRIMARY)
    history.begin(REASSERTION, live=live)
    history.finish("{}", Outcome.FAILED, proven=False)
    assert told.knows(State.PRIMARY).is_second() is live


def test_a_primary_makes_up_for_no_purge(told: Told) -> None:
    """What a backup has held back would empty the live table."""
    history, past = told.begins(State.BACKUP)
    transition = nothing(past)
    transition.held = True
    history.learn(StepResult("purge", "", Outcome.SKIPPED, attempts=1), transition)
    history.finish("{}", Outcome.OK, proven=True)
    assert RunDir(told.path).recall().held
    told.begins(State.PRIMARY, REASSERTION)
    assert not RunDir(told.path).recall().held


def test_a_re_assertion_leaves_no_old_commit_to_judge(told: Told) -> None:
    """Hours after the promotion its counters say nothing any more."""
    told.does(State.PRIMARY)
    history, _ = told.begins(State.PRIMARY, REASSERTION)
    history.finish("{}", Outcome.FAILED, proven=False)
    assert told.knows(State.PRIMARY).is_second()
    assert told.begins(State.PRIMARY, PROMOTION)[1].earlier is None


def test_a_backup_in_between_leaves_no_second_promotion(told: Told) -> None:
    """Its entries are not live any more."""
    told.does(State.PRIMARY)
    told.does(State.BACKUP)
    assert not told.knows(State.PRIMARY).is_second()


# -- whether keepalived's state stands ----------------------------------------------------------


@pytest.mark.parametrize("state", [State.PRIMARY, State.BACKUP, State.FAULT])
def test_what_was_brought_to_its_end_stands(told: Told, state: State) -> None:
    """keepalived has been in that state since before, and nothing is to be asked."""
    since = time.time()
    told.does(state)
    assert told.knows(state).is_standing(since)


@pytest.mark.parametrize("state", [State.PRIMARY, State.BACKUP, State.FAULT])
def test_what_keepalived_has_left_since_does_not_stand(told: Told, state: State) -> None:
    """It has changed its state since then, and is in the same one again."""
    told.does(state)
    history = told.knows(state)
    assert history.has_missed(time.time() + 1)
    assert not history.is_standing(time.time() + 1)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.SUPERSEDED])
@pytest.mark.parametrize("state", [State.PRIMARY, State.BACKUP, State.FAULT])
def test_what_did_not_end_well_does_not_stand(told: Told, state: State, outcome: Outcome) -> None:
    """Then it is asked again."""
    told.does(state, outcome)
    assert not told.knows(state).is_standing(0)


@pytest.mark.parametrize(
    ("state", "stands"), [(State.PRIMARY, True), (State.BACKUP, False), (State.FAULT, True)]
)
def test_a_degraded_backup_does_not_stand(told: Told, state: State, *, stands: bool) -> None:
    """It may hold no copy; a degraded promotion is over, and a fault holds none anyway."""
    told.does(state, Outcome.DEGRADED)
    assert told.knows(state).is_standing(0) == stands


@pytest.mark.parametrize("state", [State.PRIMARY, State.BACKUP, State.FAULT])
def test_what_was_killed_does_not_stand(told: Told, state: State) -> None:
    """Its first request was about to be made."""
    told.begins(state)
    assert not told.knows(state).is_standing(0)


def test_a_primary_that_stepped_down_does_not_stand(told: Told) -> None:
    """keepalived stopped, and is master again: its last change is not always seen."""
    told.does(State.PRIMARY)
    told.knows(State.STOP).step_down()
    assert not told.knows(State.PRIMARY).is_standing(0)


def test_another_state_does_not_stand(told: Told) -> None:
    """A backup is no primary."""
    told.does(State.BACKUP)
    assert not told.knows(State.PRIMARY).is_standing(0)


def test_who_knows_nothing_has_missed_nothing(told: Told) -> None:
    """Nothing stands, and nobody can tell what was missed."""
    history = told.knows(State.PRIMARY)
    assert history.is_blank
    assert not history.is_standing(0)
    assert not history.has_missed(time.time())


def test_without_a_run_directory_nothing_is_known() -> None:
    """No promotion is a second one, nothing is done, nothing stands."""
    history = History(None, Ticket(own_start(), State.PRIMARY))
    history.recall(lambda: DAEMON)
    history.step_down()
    assert history.begin(PROMOTION, live=False) == Past()
    history.finish("{}", Outcome.OK, proven=True)
    again = History(None, Ticket(own_start(), State.PRIMARY))
    again.recall(lambda: DAEMON)
    assert (again.done_by(), again.is_second(), again.is_standing(0)) == (None, False, False)


# -- a commit whose process was killed ----------------------------------------------------------


def test_a_killed_promotion_leaves_the_counters_before_its_commit(told: Told) -> None:
    """Killed while -c was asked: whether it did anything, these tell."""
    history, _ = told.begins(State.PRIMARY, PROMOTION)
    history.about_to(PROMOTION[0], 60, BEFORE)
    _, past = told.begins(State.PRIMARY, PROMOTION)
    assert past.earlier is not None
    assert (past.earlier.before, past.earlier.ended) == (BEFORE, False)
    assert past.kept


def test_a_commit_that_came_to_its_end_is_known_to_have(told: Told) -> None:
    """Killed after -c."""
    history, before = told.begins(State.PRIMARY, PROMOTION)
    asks(history, before, PROMOTION[0])
    _, past = told.begins(State.PRIMARY, PROMOTION)
    assert past.earlier is not None
    assert past.earlier.ended


def test_a_promotion_that_was_killed_twice_is_judged_from_its_beginning(told: Told) -> None:
    """The counters of the second would hide what the first has made."""
    history, _ = told.begins(State.PRIMARY, PROMOTION)
    history.about_to(PROMOTION[0], 60, BEFORE)
    second, _ = told.begins(State.PRIMARY, PROMOTION)
    second.about_to(PROMOTION[0], 60, Kernel(inserted=1_000, entries=1_000))
    _, past = told.begins(State.PRIMARY, PROMOTION)
    assert past.earlier is not None
    assert past.earlier.before == BEFORE


def test_a_promotion_that_was_killed_before_its_commit_left_nothing(told: Told) -> None:
    """Nothing was asked: this one is a first one."""
    told.begins(State.PRIMARY, PROMOTION)
    _, past = told.begins(State.PRIMARY, PROMOTION)
    assert past.earlier is None


def test_a_promotion_that_was_finished_left_nothing(told: Told) -> None:
    """There is nothing to judge."""
    told.does(State.PRIMARY)
    _, past = told.begins(State.PRIMARY, REASSERTION)
    assert past.earlier is None


@pytest.mark.parametrize("how", ["stepped down", "a backup", "another daemon"])
def test_a_commit_of_another_promotion_is_too_old(told: Told, how: str) -> None:
    """Whatever it has made, keepalived or the daemon has changed since."""
    history, _ = told.begins(State.PRIMARY, PROMOTION)
    history.about_to(PROMOTION[0], 60, BEFORE)
    if how == "stepped down":
        told.knows(State.STOP).step_down()
    elif how == "a backup":
        told.does(State.BACKUP)
    else:
        told.daemon = (1, 2, 4)
    _, past = told.begins(State.PRIMARY, PROMOTION)
    assert past.earlier is None


def test_a_backup_finishes_no_commit(told: Told) -> None:
    """A killed promotion is not for it to judge."""
    history, _ = told.begins(State.PRIMARY, PROMOTION)
    history.about_to(PROMOTION[0], 60, BEFORE)
    _, past = told.begins(State.BACKUP)
    assert past.earlier is None
    assert past.kept


# -- what is written ----------------------------------------------------------------------------


def test_one_that_was_overtaken_writes_nothing(told: Told) -> None:
    """A younger one has acted: its record is the last word."""
    slow, _ = told.begins(State.BACKUP)
    told.does(State.PRIMARY)
    slow.finish("{}", Outcome.OK, proven=True)
    assert RunDir(told.path).recall().state == "primary"


def test_a_purge_is_pending_until_it_is_cancelled(told: Told) -> None:
    """Armed by a backup, disarmed by the commit of the next promotion."""
    told.does(State.BACKUP, steps=[step for step in STANDBY if step.name == "purge"])
    _, past = told.begins(State.FAULT)
    assert past.purge_pending is True
    told.does(State.PRIMARY, steps=PROMOTION[:1])
    _, past = told.begins(State.FAULT)
    assert past.purge_pending is False
