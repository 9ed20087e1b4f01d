"""``primary``, ``backup``, ``fault`` and ``stop``: one transition, and its exit status."""

import sys

import click

from primary_backup.commands.console import (
    EXIT_STATUS,
    Common,
    Emitter,
    complain,
    echo,
    fail,
    print_lines,
)
from primary_backup.conntrackd.client import Daemon
from primary_backup.conntrackd.conf import ConfError, read_conf, replication
from primary_backup.controller import enter
from primary_backup.intent import Intent, Kind
from primary_backup.plan import PURGES, STARTS_DAEMON, State, plan
from primary_backup.settings import Settings

dry_run = click.option(
    "--dry-run", is_flag=True, help="Print the steps for this conntrackd.conf, touch nothing."
)
force = click.option(
    "--force",
    is_flag=True,
    help="Purge even where keepalived says that this node is master, or does not answer.",
)
json = click.option("--json", "as_json", is_flag=True, help="Print the final event as JSON.")


def become(
    intent: Intent,
    common: Common,
    *,
    dry_run: bool,
    as_json: bool,
    force: bool = False,
) -> None:
    """Carry out an intent, or print its plan, and exit."""
    if dry_run:
        _print_plan(intent.state, common.settings, reassert=intent.kind is Kind.REASSERT)
        return
    emitter = Emitter(common.log_level)
    ending = enter(intent._replace(force=force), common.settings, emitter)
    # All is done and written down, nobody waits for us: now a terminal may take its time.
    try:
        emitter.show()
        complain(*ending.trouble)
        if as_json:
            echo(ending.line)
    except OSError:
        pass  # nobody reads it; the record stands in the log
    sys.exit(EXIT_STATUS[ending.outcome])


def _command(state: State, text: str) -> click.Command:
    def transition(common: Common, /, **options: bool) -> None:
        become(Intent(state, f"command: {state.value}"), common, **options)

    function = click.pass_obj(transition)
    for option in (json, dry_run, *([force] if state in PURGES else [])):
        function = option(function)
    return click.command(state.value, help=text)(function)


COMMANDS = {
    state.value: _command(state, text)
    for state, text in (
        (State.PRIMARY, "Commit what the peer replicated, and take over."),
        (State.BACKUP, "Ask the peer for its connections, and stand by."),
        (State.FAULT, "Stand aside; nothing is purged unless the peer has it all."),
        (State.STOP, "Record that keepalived stops; conntrackd is asked nothing."),
    )
}


def _print_plan(state: State, settings: Settings, *, reassert: bool) -> None:
    try:
        conf = read_conf(settings.config)
    except ConfError as error:
        fail(str(error))
    replicated = replication(conf)
    if replicated is None:
        fail(f"{settings.config} has no Sync section")
    steps = plan(state, replicated, again=reassert)
    caches = [] if replicated.internal_cache else ["DisableInternalCache On"]
    caches += [] if replicated.external_cache else ["DisableExternalCache On"]
    lines = [f"{state.value}, {', '.join([f'Mode {replicated.mode.value}', *caches])}:"]
    daemon = Daemon(settings.conntrackd, settings.config, conf)
    for number, step in enumerate(steps, 1):
        lines += [
            f"{number}. {step.name}: {daemon.command(step.options)}",
            f"   when:  {step.when.value}",
            f"   why:   {step.why}",
            f"   proof: {step.proof}",
        ]
    if not steps:
        lines.append("   nothing is asked of conntrackd")
    if state in STARTS_DAEMON:
        down = "A conntrackd that is down is started first: systemctl start, or conntrackd -d."
        lines.append(down)
    print_lines(*lines)
