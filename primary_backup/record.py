"""How a transition ended: from its steps to the one event that carries it all."""

from typing import Any

from primary_backup.intent import Intent
from primary_backup.plan import State, StepName
from primary_backup.proof import Outcome, Verdict
from primary_backup.result import StepResult

_REPORTED = frozenset(
    {StepName.COMMIT, StepName.DROP_UNCOMMITTED, StepName.REQUEST_RESYNC, StepName.DISARM}
)
"""The steps whose reasons are that of a transition that ended ok; a purge's always is."""
_ADVICE = {
    Outcome.FAILED: "fix the cause, then run `ftfw-transition primary` again",
    Outcome.DEGRADED: "fix the cause; `conntrackd -s` shows what both caches hold now",
}


def conclude(state: State, steps: tuple[StepResult, ...], signals: list[str]) -> Verdict:
    """How a transition ended, by its worst step; ``signals`` are those that were received."""
    verdict = _worst(state, steps) or Verdict(Outcome.OK, _reason(steps))
    if signals and verdict.outcome is not Outcome.SUPERSEDED and signals[0] not in verdict.reason:
        verdict = verdict._replace(reason=f"{verdict.reason}; received {signals[0]}")
    return verdict


def _advice(state: State, verdict: Verdict) -> str:
    """What to type next; a promotion that did not end well always has some."""
    return verdict.advice or (_ADVICE.get(verdict.outcome, "") if state is State.PRIMARY else "")


def final_event(
    transition: str, intent: Intent, verdict: Verdict, steps: tuple[StepResult, ...]
) -> dict[str, Any]:
    """The final event, but for its times and the kernel table's size."""
    commit = next((step.commit for step in steps if step.commit), None)
    return {
        "transition": transition,
        "state": intent.state.value,
        "cause": intent.cause,
        "outcome": verdict.outcome.value,
        "reason": verdict.reason,
        "advice": _advice(intent.state, verdict),
        "expected": commit.expected if commit else None,
        "recovered": commit.recovered if commit else 0,
        "steps": [_step_fields(step) for step in steps],
    }


def _step_fields(result: StepResult) -> dict[str, Any]:
    """One step, as the final event lists it."""
    return {
        "name": result.name.value,
        "command": result.command,
        "outcome": result.outcome.value,
        "reason": result.reason,
        "attempts": result.attempts,
        "seconds": result.seconds,
    }


def step_event(transition: str, state: State, result: StepResult) -> dict[str, Any]:
    """One step, as it is logged; of a commit, with what was observed of it."""
    fields = _step_fields(result)
    step = fields.pop("name")  # a name that logging keeps for itself
    fields = {"transition": transition, "state": state.value, "step": step, **fields}
    if result.commit is not None:
        fields["expected"] = result.commit.expected
        fields["recovered"] = result.commit.recovered
        fields["kernel_entries"] = result.commit.entries
    return fields


def _worst(state: State, steps: tuple[StepResult, ...]) -> Verdict | None:
    found = {step.outcome: step for step in reversed(steps)}  # the first of each outcome
    for outcome in (Outcome.SUPERSEDED, Outcome.FAILED, Outcome.DEGRADED):
        step = found.get(outcome)
        if step is not None:
            recovered = any(
                done.name is StepName.COMMIT and done.outcome is Outcome.OK for done in steps
            )
            if outcome is Outcome.FAILED and state is State.PRIMARY and recovered:
                outcome = Outcome.DEGRADED  # noqa: PLW2901  # only the peer lacks them
            return Verdict(outcome, f"{step.name.value}: {step.reason}", step.advice)
    return None


def _reason(steps: tuple[StepResult, ...]) -> str:
    """The reasons of what was asked, or only those that matter where there are any."""
    asked = [step for step in steps if step.reason and step.attempts]
    reported = [
        step
        for step in steps
        if step.name is StepName.PURGE or (step in asked and step.name in _REPORTED)
    ]
    return "; ".join(step.reason for step in reported or asked) or "nothing is asked in this mode"
