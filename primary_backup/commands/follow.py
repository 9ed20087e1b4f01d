"""``follow``: stay, and follow keepalived's notify FIFO."""

import contextlib
import sys
from functools import partial

import click

from primary_backup.commands.console import EXIT_STATUS, Common, Emitter, complain
from primary_backup.commands.main import absolute
from primary_backup.follower.loop import Follower
from primary_backup.keepalived.fifo import Fifo, NoFifo
from primary_backup.keepalived.notify import Followed
from primary_backup.proof import Outcome
from primary_backup.rundir.directory import RunDir, Unusable
from primary_backup.settings import FIFO, KEY


@click.command()
@click.option("--group", metavar="NAME", help="Follow the notifications of this sync group.")
@click.option("--instance", metavar="NAME", help="Follow the notifications of this VRRP instance.")
@click.option(
    "--key", metavar="PATH", default=KEY, callback=absolute, show_default=True,
    help="The key of the reports to and from the peer; see `key`.",
)  # fmt: skip
@click.argument("path", default=FIFO, callback=absolute)
@click.pass_obj
def follow(common: Common, group: str | None, instance: str | None, key: str, path: str) -> None:
    """Stay, follow keepalived's notify FIFO, and keep conntrackd in sync.

    PATH is that of keepalived's vrrp_notify_fifo; without it
    /run/ftfw-transition/notify.fifo.
    """
    if bool(group) == bool(instance):
        raise click.UsageError("follow needs either --group NAME or --instance NAME")
    settings = common.settings
    followed = Followed("GROUP", group) if group else Followed("INSTANCE", instance or "")
    emitter = Emitter(common.log_level)
    with contextlib.suppress(Unusable):  # every transition reports it, and goes on
        RunDir(settings.run_dir).close()  # the FIFO may lie in it
    try:
        show = partial(emitter.show, wait=False)
        Follower(Fifo(path), followed, settings, emitter, show, key=key).run()
        emitter.show()
    except NoFifo as error:
        complain(str(error))
        emitter("follow.ended", {"outcome": Outcome.FAILED.value, "reason": str(error)})
        emitter.show()
        sys.exit(EXIT_STATUS[Outcome.FAILED])


COMMANDS = {"follow": follow}
