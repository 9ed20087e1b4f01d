"""``primary``, ``backup``, ``fault`` and ``stop``: one transition, and its exit status."""

import os
import signal
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
from primary_backup.conntrackd.accepted import Invalid
from primary_backup.controller import enter
from primary_backup.intent import Intent
from primary_backup.plan import PURGES, State
from primary_backup.rundir.turn import Caller
from primary_backup.system.identity import is_installed
from primary_backup.system.proc import own_start

dry_run = click.option(
    "--dry-run", is_flag=True, help="Print what would be asked on this node now, touch nothing."
)
force = click.option(
    "--force",
    is_flag=True,
    help="Purge even where keepalived reports that this node is master, or does not answer.",
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
    """Carry out an intent whose cause is its command line, or print its plan, and exit."""
    if dry_run:
        from primary_backup.commands.dry_run import describe  # a promotion needs nothing of it

        try:
            print_lines(*describe(intent, common.settings))
        except Invalid as error:
            fail(*error.args)
        return
    is_hook = is_installed(os.getppid(), common.settings.keepalived, "keepalived")
    cause = f"{'keepalived hook' if is_hook else 'command'}: {intent.cause}"
    emitter = Emitter(common.log_level)
    intent = intent._replace(cause=cause, force=force)
    ending = enter(intent, common.settings, emitter, _caller())
    # All is done and written down: now a terminal may take its time.
    try:
        emitter.show()
        complain(*ending.trouble)
        if as_json:
            echo(ending.line)
    except OSError:
        pass  # standard output is closed; the record stands in the log
    sys.exit(EXIT_STATUS[ending.outcome])


def _caller() -> Caller:
    """This whole process, which ends when it receives a signal."""
    signals: list[str] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda n, _: signals.append(signal.Signals(n).name))
    return Caller(own_start(), signals)


def _command(state: State, text: str) -> click.Command:
    def transition(common: Common, /, **options: bool) -> None:
        become(Intent(state, state.value), common, **options)

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
