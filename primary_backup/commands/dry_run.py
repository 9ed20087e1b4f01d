"""``--dry-run``: what a command would ask of conntrackd on this node now."""

import contextlib
import os

from primary_backup.conntrackd.accepted import Accepted, Invalid
from primary_backup.conntrackd.client import Daemon
from primary_backup.decide import Decision, Observed, decide
from primary_backup.intent import Intent
from primary_backup.memory import Memory
from primary_backup.past import Past
from primary_backup.plan import STARTS_DAEMON, Replication, State
from primary_backup.rundir.directory import RunDir, Unusable
from primary_backup.rundir.tickets import under_way
from primary_backup.settings import Settings
from primary_backup.system.proc import boot_seconds, own_start


def describe(intent: Intent, settings: Settings) -> list[str]:
    """The lines for a terminal, by the same decision as a transition's; raises Invalid."""
    with contextlib.ExitStack() as opened:
        trouble, run_dir = "", None
        try:
            run_dir = RunDir(settings.run_dir, changes=False)
            opened.callback(run_dir.close)
        except Unusable as error:
            if os.path.lexists(settings.run_dir):
                trouble = f"nothing is remembered: {error}"
        accepted = Accepted(settings, intent.state, run_dir)
        accepted.load()
        if accepted.daemon.conf is None or accepted.replication is None:
            why = accepted.invalid or f"{settings.config} has no Sync section"
            raise Invalid(why)
        memory, others = Memory(), False
        if run_dir is not None:
            memory = run_dir.recall()
            others = any(ticket.state is not intent.state for ticket in under_way(run_dir))
        if intent.ends_promotion:
            memory = memory._replace(promotion=None)
        known = memory.of(accepted.daemon.identity())
        now = boot_seconds()
        observed = Observed(own_start(), now, other_states=others)
        decision = decide(intent, known, accepted.replication, observed)
        if intent.state is State.STOP:
            decision = Decision(nothing="keepalived is stopping: nothing to do")
        return [
            f"Decided by {accepted.daemon.config} and {settings.run_dir}:",
            f"  {_mode(accepted.replication)}",
            *(
                f"  {line}"
                for line in (trouble or _remembered(memory, known, now), accepted.note)
                if line
            ),
            f"{intent.state.value}:",
            *_steps(decision, accepted.daemon, known.past(intent.state, now)),
            *(_STARTS if intent.state in STARTS_DAEMON and decision.steps else ()),
        ]


_STARTS = ("A conntrackd that is down is started first: systemctl start, or conntrackd -d.",)


def _mode(replication: Replication) -> str:
    caches = [] if replication.internal_cache else ["DisableInternalCache On"]
    caches += [] if replication.external_cache else ["DisableExternalCache On"]
    return ", ".join([f"Mode {replication.mode.value}", *caches])


def _remembered(memory: Memory, known: Memory, now: float) -> str:
    """What the decision depends on, of what earlier transitions left."""
    last = memory.last
    if last is None:
        return "no transition is remembered of this boot"
    outcome = last.outcome.value if last.outcome is not None else "unfinished"
    parts = [f"the last transition was {last.state.value}: {outcome}"]
    if known.last is None:
        parts.append("conntrackd was restarted since, or its socket is gone")
    if known.left.copies:
        parts.append("uncommitted copies are left")
    if known.purge is not None and known.has_pending_purge(now):
        parts.append(f"a purge is pending for {known.purge.due - now:.0f} s at most")
    return "; ".join(parts)


def _steps(decision: Decision, daemon: Daemon, past: Past) -> list[str]:
    if decision.nothing is not None or not decision.steps:
        return [f"   nothing is asked of conntrackd: {decision.nothing or 'nothing in this mode'}"]
    lines = []
    for number, step in enumerate(decision.steps, 1):
        needless = past.needless(step)
        lines += [
            f"{number}. {step.name.value}: {daemon.command(step.options)}",
            f"   when:  {step.when.value if needless is None else f'not now: {needless}'}",
            f"   why:   {step.why}",
            f"   proof: {step.proof}",
        ]
    return lines
