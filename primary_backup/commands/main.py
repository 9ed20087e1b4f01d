"""The command line: options in, exit status out."""

import contextlib
import os
import sys
from functools import partial
from typing import Any, NoReturn

import click

from primary_backup.conntrackd.client import DEFAULT_CONFIG, Daemon
from primary_backup.conntrackd.conf import ConfError
from primary_backup.controller import enter
from primary_backup.intent import Intent, Kind
from primary_backup.keepalived.notify import read_arguments
from primary_backup.plan import PURGES, STARTS_DAEMON, State, plan
from primary_backup.proof import Outcome
from primary_backup.requests import Unstartable
from primary_backup.settings import (
    KEEPALIVED,
    Settings,
    installed_keepalived,
    read_conf,
    replication,
)
from primary_backup.system.printable import printable

EXIT_STATUS = {
    Outcome.OK: 0,
    Outcome.FAILED: 1,
    Outcome.DEGRADED: 3,
    Outcome.SUPERSEDED: 4,
}
USAGE = 2
_PROGRAM = "ftfw-transition"
_COMPLETION = "_FTFW_TRANSITION_COMPLETE"
"""The variable by which a shell asks for completions; see click's documentation."""


def _absolute(_: click.Context, parameter: click.Parameter, value: str) -> str:
    if not value.startswith("/"):
        raise click.BadParameter(f"{value!a} is not an absolute path", param=parameter)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter(f"{value!a} is not UTF-8", param=parameter) from error
    if "\n" in value:  # it begins the saved conntrackd.conf, in a comment that ends with the line
        raise click.BadParameter(f"{value!a} is more than one line", param=parameter)
    return value


def _show_version(context: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value:
        from importlib.metadata import version  # slow to import, and only needed here

        _print(f"ftfw-transition {version('ftfw-transition')}")
        context.exit()


# Each variable is named here, and there is no prefix for all: a variable that made `backup` purge
# a live master, or turned `primary` into a dry run, could lie in /etc/default/keepalived.
@click.group(no_args_is_help=False, subcommand_metavar="COMMAND [OPTIONS]")
@click.option(
    "--config", metavar="PATH", callback=_absolute, show_default=True, show_envvar=True,
    envvar="FTFW_TRANSITION_CONFIG",
    default="/etc/conntrackd/conntrackd.conf",
    help="The conntrackd.conf that decides the steps.",
)  # fmt: skip
@click.option(
    "--conntrackd", metavar="PATH", callback=_absolute, show_default=True, show_envvar=True,
    envvar="FTFW_TRANSITION_CONNTRACKD",
    default="/usr/sbin/conntrackd",
    help="The conntrackd client.",
)  # fmt: skip
@click.option(
    "--keepalived", metavar="PATH", callback=_absolute, show_envvar=True,
    envvar="FTFW_TRANSITION_KEEPALIVED",
    default=installed_keepalived, show_default=", else ".join(KEEPALIVED),
    help="The installed keepalived: no process that runs another program is asked for its state.",
)  # fmt: skip
@click.option(
    "--run-dir", metavar="PATH", callback=_absolute, show_default=True, show_envvar=True,
    envvar="FTFW_TRANSITION_RUN_DIR",
    default="/run/ftfw-transition",
    help="Where the lock and the record live.",
)  # fmt: skip
@click.option(
    "--log-level", default="info", show_default=True, show_envvar=True,
    envvar="FTFW_TRANSITION_LOG_LEVEL",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    help="Which events are logged: info is every step.",
)  # fmt: skip
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
    help="Show the version and exit.",
)  # fmt: skip
@click.pass_context
def command(context: click.Context, /, log_level: str, **paths: str) -> None:
    """Drive conntrackd through keepalived's state changes, and prove what was recovered.

    Exit status: 0 ok, 1 failed, 2 usage, 3 degraded, 4 superseded.
    """
    context.obj = (Settings(**paths), log_level)


_dry_run = click.option(
    "--dry-run", is_flag=True, help="Print the steps for this conntrackd.conf, touch nothing."
)
_force = click.option(
    "--force",
    is_flag=True,
    help="Purge even where keepalived says that this node is master, or does not answer.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the final event as JSON.")


def _transition_command(state: State, text: str) -> None:
    def transition(obj: tuple[Settings, str], /, **options: bool) -> None:
        _become(Intent(state, f"command: {state.value}"), obj, **options)

    function = click.pass_obj(transition)
    for option in (_json, _dry_run, *([_force] if state in PURGES else [])):
        function = option(function)
    command.command(state.value, help=text)(function)


_transition_command(State.PRIMARY, "Commit what the peer replicated, and take over.")
_transition_command(State.BACKUP, "Ask the peer for its connections, and stand by.")
_transition_command(State.FAULT, "Stand aside; nothing is purged unless the peer has it all.")
_transition_command(State.STOP, "Record that keepalived stops; conntrackd is asked nothing.")


@command.command(context_settings={"ignore_unknown_options": True})
@_dry_run
@_force
@_json
@click.argument("words", nargs=-1, metavar="[GROUP|INSTANCE] NAME STATE [PRIORITY]")
@click.pass_obj
def notify(
    obj: tuple[Settings, str],
    /,
    words: tuple[str, ...],
    **options: bool,
) -> None:
    """Do the same from the arguments of keepalived's generic notify."""
    try:
        notification = read_arguments(words)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    kind = Kind.REASSERT if notification.reassert else Kind.BECOME
    cause = f"command: notify {' '.join(words)}"
    _become(Intent(notification.state, cause, kind), obj, **options)


@command.command()
@click.option("--group", metavar="NAME", help="Follow the words of this sync group.")
@click.option("--instance", metavar="NAME", help="Follow the words of this VRRP instance.")
@click.argument("path", default="/run/ftfw-transition/notify.fifo", callback=_absolute)
@click.pass_obj
def follow(obj: tuple[Settings, str], group: str | None, instance: str | None, path: str) -> None:
    """Stay, follow keepalived's notify FIFO, and keep conntrackd in sync.

    PATH is that of keepalived's vrrp_notify_fifo; without it
    /run/ftfw-transition/notify.fifo.
    """
    if bool(group) == bool(instance):
        raise click.UsageError("follow needs either --group NAME or --instance NAME")
    from primary_backup.follower.loop import Follower
    from primary_backup.keepalived.fifo import Fifo, NoFifo
    from primary_backup.keepalived.notify import Followed
    from primary_backup.rundir.directory import RunDir, Unusable

    settings, log_level = obj
    followed = Followed("GROUP", group) if group else Followed("INSTANCE", instance or "")
    emitter = _Emitter(log_level)
    with contextlib.suppress(Unusable):  # every transition says so, and goes on
        RunDir(settings.run_dir).close()  # the FIFO may lie in it
    try:
        Follower(Fifo(path), followed, settings, emitter, partial(emitter.show, wait=False)).run()
        emitter.show()
    except NoFifo as error:
        _complain(str(error))
        emitter("follow.ended", {"outcome": Outcome.FAILED.value, "reason": str(error)})
        emitter.show()
        sys.exit(EXIT_STATUS[Outcome.FAILED])


@command.command()
@click.pass_obj
def unlock(obj: tuple[Settings, str]) -> None:
    """Remove the lock file that a killed conntrackd has left, before its next start.

    Nothing is removed while a conntrackd lives. Where no --config is given, it is that of systemd's
    conntrackd.service.
    """
    settings, _ = obj
    config = settings.config
    try:
        if config == DEFAULT_CONFIG:
            config = Daemon(settings.conntrackd, config, None).unit_config() or config
        removed = Daemon(settings.conntrackd, config, read_conf(config)).unlock()
    except (ConfError, Unstartable) as error:
        _fail(str(error))
    if removed:
        _print(removed)


def _show_example(context: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value:
        from primary_backup.site.render import EXAMPLE

        with open(EXAMPLE, encoding="utf-8") as file:
            _print(*file.read().splitlines())
        context.exit()


def _given(_: click.Context, parameter: click.Parameter, value: str) -> str:
    if not value:  # an unset shell variable; the current directory is `.`
        raise click.BadParameter("it is empty", param=parameter)
    return value


@command.command(name="render")
@click.option(
    "--site", metavar="PATH", required=True, callback=_given,
    help="The site file (TOML): two nodes, their networks and virtual addresses.",
)  # fmt: skip
@click.option("--node", metavar="NAME", required=True, help="The node whose files are wanted.")
@click.option(
    "--output", metavar="DIR", required=True, callback=_given,
    help="Where they go; made if missing.",
)  # fmt: skip
@click.option(
    "--example", is_flag=True, is_eager=True, expose_value=False, callback=_show_example,
    help="Print a commented site file and exit.",
)  # fmt: skip
def render_command(site: str, node: str, output: str) -> None:
    """Write the configuration of one node of a pair, from one small site file.

    Files that are there and differ are never touched.
    """
    from primary_backup.site.model import SiteError, read_site
    from primary_backup.site.render import Existing, Linked, render, write

    try:
        with open(site, encoding="utf-8") as file:
            written = write(render(read_site(file.read()), node), output)
    except SiteError as error:
        _fail(*(f"{site}: {line}" for line in error.args))
    except ValueError as error:  # no such node, or not UTF-8
        _fail(f"{site}: {error}")
    except Existing as error:
        _fail(f"{error} is there and differs: move it away, or name another --output")
    except Linked as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}")
    _print(*(f"{output}/{path}" for path in written))


def _echo(*lines: str, err: bool = False) -> None:
    """Write lines to standard output or stderr: the only place of ours that does; raises OSError.

    In UTF-8, as the log is: a locale without our dashes and arrows costs no traceback, and
    ``render`` reads its own example.
    """
    stream = sys.stderr if err else sys.stdout
    if stream is None:  # the caller has closed it
        return
    try:
        stream.buffer.write("".join(f"{printable(line)}\n" for line in lines).encode())
        stream.buffer.flush()
    except OSError:
        # Python would try once more at its end, and exit with 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise


def _complain(*lines: str) -> None:
    with contextlib.suppress(OSError):  # a full or closed stderr changes no exit status
        _echo(*(f"{_PROGRAM}: {line}" for line in lines), err=True)


def _print(*lines: str) -> None:
    try:
        _echo(*lines)
    except OSError as error:
        _fail(f"standard output: {error.strerror}")


def _fail(*lines: str) -> NoReturn:
    _complain(*lines)
    sys.exit(EXIT_STATUS[Outcome.FAILED])


def _become(
    intent: Intent,
    obj: tuple[Settings, str],
    *,
    dry_run: bool,
    as_json: bool,
    force: bool = False,
) -> None:
    settings, log_level = obj
    if dry_run:
        _print_plan(intent.state, settings, reassert=intent.kind is Kind.REASSERT)
        return
    emitter = _Emitter(log_level)
    ending = enter(intent._replace(force=force), settings, emitter)
    # All is done and written down, nobody waits for us: now a terminal may take its time.
    try:
        emitter.show()
        _complain(*ending.trouble)
        if as_json:
            _echo(ending.line)
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
            from primary_backup.system.log import Log

            self._log = Log(self._level)
        line: str = self._log.event(name, fields)
        return line

    def show(self, *, wait: bool = True) -> None:
        """Write what was held back; unless it may ``wait``, what is taken now."""
        if self._log is not None:
            self._log.show(wait=wait)


def _print_plan(state: State, settings: Settings, *, reassert: bool) -> None:
    try:
        conf = read_conf(settings.config)
    except ConfError as error:
        _fail(str(error))
    replicated = replication(conf)
    if replicated is None:
        _fail(f"{settings.config} has no Sync section")
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
    _print(*lines)


def main() -> None:
    """Run the command; what is wrong with its usage is one line on stderr and in the log."""
    if len(sys.argv) > 1:
        # A completion script calls the command without arguments. With arguments, click would
        # print a script of its own in place of a promotion, and end with exit status 0.
        os.environ.pop(_COMPLETION, None)
    try:
        command.main(prog_name=_PROGRAM, complete_var=_COMPLETION, standalone_mode=False)
    except click.UsageError as error:
        line = _usage(error)
        _complain(line)
        emitter = _Emitter("info")
        emitter("usage.refused", {"outcome": Outcome.FAILED.value, "reason": line})
        emitter.show()
        sys.exit(USAGE)
    except click.Abort:
        sys.exit(EXIT_STATUS[Outcome.FAILED])


def _usage(error: click.UsageError) -> str:
    """One line: what is wrong with a command line, what was expected, and where the help is."""
    line = error.format_message().replace("\n", " ").rstrip(".")
    context = error.ctx
    of_an_option = (click.BadParameter, click.BadOptionUsage, click.NoSuchOption)
    if (context is None or context.command is command) and not isinstance(error, of_an_option):
        line += f"; expected one of: {', '.join(command.commands)}"  # no command, or an unknown one
    return f"{line}; see `{context.command_path if context else _PROGRAM} --help`"
