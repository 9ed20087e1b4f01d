"""In what two nodes of a pair differ that must not: from their reports alone."""

from primary_backup.pair.report import Report
from primary_backup.plan import State

BOTH_SECONDS = 3.0
"""So long may both be primary: one has sent its report before its adverts arrived."""


def differences(ours: Report, theirs: Report) -> dict[str, str]:
    """What differs, each with one sentence of what it means and what to do."""
    found: dict[str, str] = {}
    nodes = f"{ours.node} and {theirs.node}"
    both = ours.state is theirs.state is State.PRIMARY
    if both and min(ours.since, theirs.since) >= BOTH_SECONDS:
        found["primary"] = (
            f"{nodes} are both primary: their adverts do not reach each other, "
            "fix the network between them"
        )
    if None not in (ours.mode, theirs.mode) and ours.mode != theirs.mode:
        found["mode"] = (
            f"conntrackd replicates in mode {ours.mode} here and {theirs.mode} on {theirs.node}: "
            "make both conntrackd.conf the same"
        )
    if ours.program != theirs.program:
        found["program"] = (
            f"ftfw-transition {ours.program} runs here and {theirs.program} on {theirs.node}: "
            "upgrade the older one"
        )
    return found
