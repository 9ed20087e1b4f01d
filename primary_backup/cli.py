"""The command line: options in, exit status out."""

import sys
from typing import Any

import click

from primary_backup.conf import ConfError
from primary_backup.conntrackd import Daemon
from primary_backup.controller import Settings, enter, read_conf, replication
from primary_backup.notify import read_arguments
from primary_backup.plan import STARTS_DAEMON, State, plan
from primary_backup.proof import Outcome

EXIT_STATUS = {
    Outcome.OK: 0,
    Outcome.FAILED: 1,
    Outcome.DEGRADED: 3,
    Outcome.SUPERSEDED: 4,
}
USAGE = 2


def _absolute(_: click.Context, parameter: click.Parameter, value: str) -> str:
    if not value.startswith("/"):
        raise click.BadParameter(f"{value!a} is not an absolute path", param=parameter)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter(f"{value!a} is not UTF-8", param=parameter) from error
    return value


def _show_version(context: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value:
        from importlib.metadata import version  # slow to import, and only needed here

        click.echo(f"ftfw-transition {version('ftfw-transition')}")
        context.exit()


@click.group(
    context_settings={"auto_envvar_prefix": "FTFW_TRANSITION"},
    no_args_is_help=False,
    subcommand_metavar="primary|backup|fault|stop|notify [OPTIONS]",
)
@click.option(
    "--config", metavar="PATH", callback=_absolute, show_default=True, show_envvar=True,
    default="/etc/conntrackd/conntrackd.conf",
    help="The conntrackd.conf that decides the steps.",
)  # fmt: skip
@click.option(
    "--conntrackd", metavar="PATH", callback=_absolute, show_default=True, show_envvar=True,
    default="/usr/sbin/conntrackd",
    help="The conntrackd client.",
)  # fmt: skip
@click.option(
    "--run-dir", metavar="PATH", callback=_absolute, show_default=True, show_envvar=True,
    default="/run/ftfw-transition",
    help="Where the lock and the record live.",
)  # fmt: skip
@click.option(
    "--log-level", default="info", show_default=True, show_envvar=True,
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    help="Which events are logged: info is every step.",
)  # fmt: skip
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
    help="Show the version and exit.",
)  # fmt: skip
@click.pass_context
def command(
    context: click.Context, config: str, conntrackd: str, run_dir: str, log_level: str
) -> None:
    """Drive conntrackd through keepalived's state changes, and prove what was recovered.

    Exit status: 0 ok, 1 failed, 2 usage, 3 degraded, 4 superseded.
    """
    context.obj = (Settings(config, conntrackd, run_dir), log_level)


_dry_run = click.option(
    "--dry-run", is_flag=True, help="Print the steps for this conntrackd.conf, touch nothing."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the final event as JSON.")


def _transition_command(state: State, text: str) -> None:
    @command.command(state.value, help=text)
    @_dry_run
    @_json
    @click.pass_obj
    def transition(obj: tuple[Settings, str], dry_run: bool, as_json: bool) -> None:  # noqa: FBT001
        _become(state, *obj, dry_run=dry_run, as_json=as_json)


_transition_command(State.PRIMARY, "Commit what the peer replicated, and take over.")
_transition_command(State.BACKUP, "Ask the peer for its connections, and stand by.")
_transition_command(State.FAULT, "Stand aside; nothing is purged unless the peer has it all.")
_transition_command(State.STOP, "Record that keepalived stops; conntrackd is asked nothing.")


@command.command(context_settings={"ignore_unknown_options": True})
@_dry_run
@_json
@click.argument("words", nargs=-1, metavar="[GROUP|INSTANCE] NAME STATE [PRIORITY]")
@click.pass_obj
def notify(
    obj: tuple[Settings, str],
    words: tuple[str, ...],
    dry_run: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Do the same from the arguments of keepalived's generic notify."""
    try:
        notification = read_arguments(words)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _become(
        notification.state, *obj,
        reassert=notification.reassert, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip


def _become(
    state: State,
    settings: Settings,
    log_level: str,
    *,
    dry_run: bool,
    as_json: bool,
    reassert: bool = False,
) -> None:
    if dry_run:
        _print_plan(state, settings, reassert=reassert)
        return
    emitter = _Emitter(log_level)
    ending = enter(state, settings, emitter, reassert=reassert)
    # All is done and written down, nobody waits for us: now a terminal may take its time.
    try:
        emitter.show()
        for line in ending.trouble:
            click.echo(f"ftfw-transition: {line}", err=True)
        if as_json:
            click.echo(ending.line)
    except OSError:
        pass  # nobody reads it; the record stands in the log
    sys.exit(EXIT_STATUS[ending.outcome])


class _Emitter:
    """Opens the log with the first event: a commit does not wait for its import."""

    def __init__(self, level: str) -> None:
        self._level = level
        self._log: Any = None

    def __call__(self, name: str, fields: dict[str, Any]) -> str:
        if self._log is None:
            from primary_backup.log import Log

            self._log = Log(self._level)
        line: str = self._log.event(name, fields)
        return line

    def show(self) -> None:
        """Write to stderr what is meant for it."""
        if self._log is not None:
            self._log.show()


def _print_plan(state: State, settings: Settings, *, reassert: bool) -> None:
    try:
        conf = read_conf(settings.config)
    except ConfError as error:
        click.echo(f"ftfw-transition: {error}", err=True)
        sys.exit(EXIT_STATUS[Outcome.FAILED])
    replicated = replication(conf)
    if replicated is None:
        click.echo(f"ftfw-transition: {settings.config} has no Sync section", err=True)
        sys.exit(EXIT_STATUS[Outcome.FAILED])
    steps = plan(state, replicated, again=reassert)
    caches = [] if replicated.internal_cache else ["DisableInternalCache On"]
    caches += [] if replicated.external_cache else ["DisableExternalCache On"]
    click.echo(f"{state.value}, {', '.join([f'Mode {replicated.mode.value}', *caches])}:")
    daemon = Daemon(settings.conntrackd, settings.config, conf)
    for number, step in enumerate(steps, 1):
        click.echo(f"{number}. {step.name}: {daemon.command(step.options)}")
        click.echo(f"   when:  {step.when.value}")
        click.echo(f"   why:   {step.why}")
        click.echo(f"   proof: {step.proof}")
    if not steps:
        click.echo("   nothing is asked of conntrackd")
    if state in STARTS_DAEMON:
        click.echo("A conntrackd that is down is started first: systemctl start, or conntrackd -d.")


def main() -> None:
    """Run the command; what is wrong with its usage is one line on stderr and in the log."""
    try:
        command.main(standalone_mode=False)
    except click.UsageError as error:
        reason = error.format_message().replace("\n", " ").rstrip(".")
        line = f"{reason}: say primary, backup, fault, stop or notify; `--help` tells more"
        click.echo(f"ftfw-transition: {line}", err=True)
        emitter = _Emitter("info")
        emitter("usage.refused", {"outcome": Outcome.FAILED.value, "reason": line})
        emitter.show()
        sys.exit(USAGE)
    except click.Abort:
        sys.exit(EXIT_STATUS[Outcome.FAILED])
