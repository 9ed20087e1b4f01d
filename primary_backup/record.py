"""How a transition ended: from its steps to the one event that carries it all."""

from typing import Any

from primary_backup.plan import State
from primary_backup.proof import Commit, Outcome, Verdict
from primary_backup.transition import StepResult

_TELLING = frozenset({"commit", "drop-kept", "request-resync", "disarm"})
"""The steps whose reasons are that of a transition that ended ok; a purge's always is."""
_ADVICE = {
    Outcome.FAILED: "mend the cause, then run `ftfw-transition primary` again",
    Outcome.DEGRADED: "mend the cause; `conntrackd -s` shows what both caches hold now",
}


def conclude(state: State, steps: list[StepResult], signals: list[str]) -> Verdict:
    """How a transition ended, by its worst step; ``signals`` are those that it was sent."""
    verdict = _worst(state, steps) or Verdict(Outcome.OK, _told(steps))
    if signals and verdict.outcome is not Outcome.SUPERSEDED and signals[0] not in verdict.reason:
        verdict = verdict._replace(reason=f"{verdict.reason}; {signals[0]} came meanwhile")
    return verdict


def advice(state: State, verdict: Verdict) -> str:
    """What to type next; a promotion that did not end well always says something."""
    return verdict.advice or (_ADVICE.get(verdict.outcome, "") if state is State.PRIMARY else "")


def step_fields(result: StepResult) -> dict[str, Any]:
    """One step, as the final event lists it."""
    return {
        "name": result.name,
        "command": result.command,
        "outcome": result.outcome.value,
        "reason": result.reason,
        "attempts": result.attempts,
        "seconds": result.seconds,
    }


def step_event(
    transition: str, state: State, result: StepResult, commit: Commit | None
) -> dict[str, Any]:
    """One step, as it is logged; of a commit, with what was seen of it."""
    fields = step_fields(result)
    step = fields.pop("name")  # a name that logging keeps for itself
    fields = {"transition": transition, "state": state.value, "step": step, **fields}
    if result.name == "commit" and commit is not None:
        fields["expected"] = commit.expected
        fields["recovered"] = commit.recovered
        fields["kernel_entries"] = commit.entries
    return fields


def _worst(state: State, steps: list[StepResult]) -> Verdict | None:
    found = {step.outcome: step for step in reversed(steps)}  # the first of each outcome
    for outcome in (Outcome.SUPERSEDED, Outcome.FAILED, Outcome.DEGRADED):
        step = found.get(outcome)
        if step is not None:
            recovered = any(done.name == "commit" and done.outcome is Outcome.OK for done in steps)
            if outcome is Outcome.FAILED and state is State.PRIMARY and recovered:
                outcome = Outcome.DEGRADED  # noqa: PLW2901  # they live, only the peer lacks them
            return Verdict(outcome, f"{step.name}: {step.reason}", step.advice)
    return None


def _told(steps: list[StepResult]) -> str:
    asked = [step for step in steps if step.reason and step.attempts]
    telling = [
        step for step in steps if step.name == "purge" or (step in asked and step.name in _TELLING)
    ]
    return "; ".join(step.reason for step in telling or asked) or "nothing is asked in this mode"
