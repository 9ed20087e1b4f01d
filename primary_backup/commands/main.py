"""The command line: a group whose commands are imported when they are asked for."""

import os
import sys
from importlib import import_module

import click

from primary_backup.commands.console import (
    EXIT_STATUS,
    PROGRAM,
    USAGE,
    Common,
    Emitter,
    complain,
    print_lines,
)
from primary_backup.proof import Outcome
from primary_backup.settings import (
    CONFIG,
    CONNTRACKD,
    KEEPALIVED,
    RUN_DIR,
    Settings,
    installed_keepalived,
)

_MODULES = {
    "primary": "transition",
    "backup": "transition",
    "fault": "transition",
    "stop": "transition",
    "notify": "notify",
    "follow": "follow",
    "unlock": "unlock",
    "key": "key",
    "render": "render",
}
"""Where each command is; a commit does not wait for the imports of the others."""
_COMPLETION = "_FTFW_TRANSITION_COMPLETE"
"""The variable by which a shell asks for completions; see click's documentation."""


class Commands(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """All names, as ``--help`` lists them."""
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of that name; None where there is none."""
        module = _MODULES.get(cmd_name)
        if module is None:
            return None
        imported = import_module(f"primary_backup.commands.{module}")
        found: click.Command = imported.COMMANDS[cmd_name]
        return found


def absolute(_: click.Context, parameter: click.Parameter, value: str) -> str:
    """Take an absolute path in UTF-8, of one line; raises click.BadParameter."""
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

        print_lines(f"{PROGRAM} {version(PROGRAM)}")
        context.exit()


# Each variable is named here, and there is no prefix for all: a variable that made `backup` purge
# a live master, or turned `primary` into a dry run, could lie in /etc/default/keepalived.
@click.group(cls=Commands, no_args_is_help=False, subcommand_metavar="COMMAND [OPTIONS]")
@click.option(
    "--config", metavar="PATH", callback=absolute, show_default=True, show_envvar=True,
    envvar="FTFW_TRANSITION_CONFIG",
    default=CONFIG,
    help="The conntrackd.conf that decides the steps.",
)  # fmt: skip
@click.option(
    "--conntrackd", metavar="PATH", callback=absolute, show_default=True, show_envvar=True,
    envvar="FTFW_TRANSITION_CONNTRACKD",
    default=CONNTRACKD,
    help="The conntrackd client.",
)  # fmt: skip
@click.option(
    "--keepalived", metavar="PATH", callback=absolute, show_envvar=True,
    envvar="FTFW_TRANSITION_KEEPALIVED",
    default=installed_keepalived, show_default=", else ".join(KEEPALIVED),
    help="The installed keepalived: no process that runs another program is asked for its state.",
)  # fmt: skip
@click.option(
    "--run-dir", metavar="PATH", callback=absolute, show_default=True, show_envvar=True,
    envvar="FTFW_TRANSITION_RUN_DIR",
    default=RUN_DIR,
    help="Where the lock and the record are.",
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
    context.obj = Common(Settings(**paths), log_level)


def main() -> None:
    """Run the command; what is wrong with its usage is one line on stderr and in the log."""
    if len(sys.argv) > 1:
        # A completion script calls the command without arguments. With arguments, click would
        # print a script of its own in place of a promotion, and end with exit status 0.
        os.environ.pop(_COMPLETION, None)
    try:
        command.main(prog_name=PROGRAM, complete_var=_COMPLETION, standalone_mode=False)
    except click.UsageError as error:
        line = _usage(error)
        complain(line)
        emitter = Emitter("info")
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
        line += f"; expected one of: {', '.join(_MODULES)}"  # no command, or an unknown one
    return f"{line}; see `{context.command_path if context else PROGRAM} --help`"
