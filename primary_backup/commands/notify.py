"""``notify``: one transition, from the arguments of keepalived's generic notify."""

import click

from primary_backup.commands.console import Common
from primary_backup.commands.transition import become, dry_run, force, json
from primary_backup.intent import Intent, Kind
from primary_backup.keepalived.notify import read_arguments


@click.command(context_settings={"ignore_unknown_options": True})
@dry_run
@force
@json
@click.argument("arguments", nargs=-1, metavar="[GROUP|INSTANCE] NAME STATE [PRIORITY]")
@click.pass_obj
def notify(common: Common, /, arguments: tuple[str, ...], **options: bool) -> None:
    """Do the same from the arguments of keepalived's generic notify."""
    try:
        notification = read_arguments(arguments)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    kind = Kind.REASSERT if notification.reassert else Kind.BECOME
    cause = f"notify {' '.join(arguments)}"
    become(Intent(notification.state, cause, kind), common, **options)


COMMANDS = {"notify": notify}
