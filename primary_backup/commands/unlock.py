"""``unlock``: remove the lock file that a killed conntrackd has left."""

import click

from primary_backup.commands.console import Common, fail, print_lines
from primary_backup.conntrackd.client import Daemon
from primary_backup.conntrackd.conf import ConfError, read_conf
from primary_backup.conntrackd.start import Unstartable, unit_config
from primary_backup.conntrackd.start import unlock as remove_stale_lock
from primary_backup.settings import CONFIG


@click.command()
@click.pass_obj
def unlock(common: Common) -> None:
    """Remove the lock file that a killed conntrackd has left, before its next start.

    Nothing is removed while a conntrackd is running. Where no --config is given, it is that of
    systemd's conntrackd.service.
    """
    settings = common.settings
    config = settings.config
    try:
        if config == CONFIG:
            config = unit_config(Daemon(settings.conntrackd, config, None)) or config
        removed = remove_stale_lock(Daemon(settings.conntrackd, config, read_conf(config)))
    except (ConfError, Unstartable) as error:
        fail(str(error))
    if removed:
        print_lines(removed)


COMMANDS = {"unlock": unlock}
