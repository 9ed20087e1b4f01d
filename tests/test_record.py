"""record.py: how a transition ended, from the results of its steps."""

from typing import Any

import pytest

from primary_backup.intent import Intent
from primary_backup.plan import State, StepName
from primary_backup.proof import Commit, Outcome, Verdict
from primary_backup.record import conclude, final_event, step_event
from primary_backup.result import StepResult

OK, DEGRADED, FAILED, SUPERSEDED = (
    Outcome.OK, Outcome.DEGRADED, Outcome.FAILED, Outcome.SUPERSEDED,
)  # fmt: skip


def step(
    name: str, outcome: Outcome = OK, reason: str = "", attempts: int = 1, advice: str = ""
) -> StepResult:
    """One step that was asked, or with 0 attempts was not."""
    return StepResult(StepName(name), f"conntrackd {name}", outcome, reason, advice, attempts, 0.25)


def concluded(state: State, *steps: StepResult, signals: tuple[str, ...] = ()) -> Verdict:
    """How a transition with these results ended."""
    return conclude(state, steps, list(signals))


def advised(state: State, verdict: Verdict) -> Any:
    """What the final event advises."""
    return final_event("id", Intent(state, "test"), verdict, ())["advice"]


@pytest.mark.parametrize("worst", [DEGRADED, FAILED, SUPERSEDED])
def test_a_transition_ends_as_its_worst_step(worst: Outcome) -> None:
    """The record names the step, its reason, and what its proof advises."""
    verdict = concluded(
        State.BACKUP, step("flush", OK, "flushed"), step("purge", worst, "why", advice="do this")
    )

    assert verdict == Verdict(worst, "purge: why", "do this")


@pytest.mark.parametrize(("one", "worse"), [(DEGRADED, FAILED), (FAILED, SUPERSEDED)])
def test_the_worse_of_two_steps_decides(one: Outcome, worse: Outcome) -> None:
    """Whichever of them came first."""
    first, second = step("resync", one, "one"), step("bulk-send", worse, "worse")

    assert concluded(State.BACKUP, first, second) == Verdict(worse, "bulk-send: worse")
    assert concluded(State.BACKUP, second, first) == Verdict(worse, "bulk-send: worse")


def test_of_two_that_failed_the_first_is_named() -> None:
    """The second may follow from it."""
    verdict = concluded(State.FAULT, step("purge", FAILED, "1"), step("disarm", FAILED, "2"))

    assert verdict == Verdict(FAILED, "purge: 1")


def test_a_promotion_that_recovered_is_degraded_at_worst() -> None:
    """The connections are in the kernel table; only the peer lacks them."""
    verdict = concluded(State.PRIMARY, step("commit", OK, "2 of 2"), step("resync", FAILED, "no"))

    assert verdict == Verdict(DEGRADED, "resync: no")


@pytest.mark.parametrize(
    ("state", "commit"), [(State.PRIMARY, DEGRADED), (State.PRIMARY, FAILED), (State.BACKUP, OK)]
)
def test_any_other_failure_is_one(state: State, commit: Outcome) -> None:
    """A commit that is not proven excuses nothing, and a standby brings nothing back."""
    verdict = concluded(state, step("commit", commit, "none"), step("resync", FAILED, "no"))

    assert verdict.outcome is FAILED


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ((), "nothing is asked in this mode"),
        ((step("resync"),), "nothing is asked in this mode"),
        ((step("resync", reason="sent"), step("bulk-send", reason="sent too")), "sent; sent too"),
        ((step("commit", reason="2 of 2"), step("resync", reason="sent")), "2 of 2"),
        ((step("resync", reason="sent"), step("flush", reason="later", attempts=0)), "sent"),
        ((step("commit", reason="not now", attempts=0), step("resync", reason="sent")), "sent"),
        ((step("purge", reason="deferred", attempts=0), step("resync", reason="x")), "deferred"),
    ],
    ids=[
        "no step", "no reason", "all reasons", "the commit's", "what was asked",
        "no commit that was not asked", "the purge's in any case",
    ],
)  # fmt: skip
def test_the_reason_of_success_is_what_was_recovered_or_asked(
    steps: tuple[StepResult, ...], reason: str
) -> None:
    """The commit's or the purge's where there is one; else those of all that was asked."""
    assert concluded(State.PRIMARY, *steps) == Verdict(OK, reason)


def test_a_signal_that_came_is_named() -> None:
    """Its sender can see that the transition was finished all the same."""
    verdict = concluded(State.BACKUP, step("resync", OK, "sent"), signals=("SIGTERM", "SIGINT"))

    assert verdict.outcome is OK
    assert verdict.reason.startswith("sent; ")
    assert "SIGTERM" in verdict.reason
    assert "SIGINT" not in verdict.reason


@pytest.mark.parametrize("result", [step("purge", SUPERSEDED, "x"), step("purge", OK, "SIGTERM")])
def test_a_signal_is_not_named_twice_nor_where_a_newer_one_took_over(result: StepResult) -> None:
    """It is then the reason itself, or no longer the news."""
    with_signal = concluded(State.BACKUP, result, signals=("SIGTERM",))

    assert with_signal == concluded(State.BACKUP, result)


@pytest.mark.parametrize("outcome", [FAILED, DEGRADED])
def test_a_promotion_that_did_not_end_well_always_has_advice(outcome: Outcome) -> None:
    """Its own if the proof gave one."""
    assert advised(State.PRIMARY, Verdict(outcome, "why"))
    assert advised(State.PRIMARY, Verdict(outcome, "why", "do this")) == "do this"


@pytest.mark.parametrize(
    ("state", "outcome"), [(State.PRIMARY, OK), (State.PRIMARY, SUPERSEDED), (State.BACKUP, FAILED)]
)
def test_there_is_no_advice_where_there_is_nothing_to_type(state: State, outcome: Outcome) -> None:
    """Nothing is wrong, or the step itself would have reported what to do."""
    assert advised(state, Verdict(outcome, "why")) == ""


def test_the_event_of_a_commit_has_what_was_observed_of_it() -> None:
    """In entries, beside what every step's event has."""
    event = step_event(
        "id", State.PRIMARY, step("commit", OK, "2 of 3")._replace(commit=Commit(3, 2, 7))
    )

    assert event == {
        "transition": "id", "state": "primary", "step": "commit", "command": "conntrackd commit",
        "outcome": "ok", "reason": "2 of 3", "attempts": 1, "seconds": 0.25,
        "expected": 3, "recovered": 2, "kernel_entries": 7,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["commit", "flush"])
def test_no_other_event_has_it(name: str) -> None:
    """A commit that was not observed has no figures, nor has any other step."""
    event = step_event("id", State.PRIMARY, step(name))

    assert {"expected", "recovered", "kernel_entries"}.isdisjoint(event)


def test_the_final_event_has_the_commit_s_figures_and_every_step() -> None:
    """Nothing was expected, and nothing recovered, where no commit was observed."""
    commit = step("commit", OK, "2 of 3")._replace(commit=Commit(3, 2, 7))
    event = final_event("id", Intent(State.PRIMARY, "typed"), Verdict(OK, "why"), (commit,))
    blank = final_event("id", Intent(State.FAULT, "typed"), Verdict(OK, "why"), ())

    assert (event["expected"], event["recovered"]) == (3, 2)
    assert [each["name"] for each in event["steps"]] == ["commit"]
    assert (blank["expected"], blank["recovered"], blank["steps"]) == (None, 0, [])
    assert (blank["state"], blank["cause"], blank["reason"]) == ("fault", "typed", "why")
