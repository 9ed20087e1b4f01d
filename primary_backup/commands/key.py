"""``key``: make the key of the pair channel, and change it without a gap."""

import click

from primary_backup.commands.console import fail, print_lines
from primary_backup.commands.main import absolute
from primary_backup.pair.keys import BadKeys, NoKeys, add_key, drop_key, make_keys, use_key
from primary_backup.settings import KEY

_ACTIONS = {
    "make": (make_keys, "{} has a new key: copy it to the peer, root's alone there too"),
    "add": (add_key, "{} accepts a second key: copy it to the peer, then `key use` on both"),
    "use": (use_key, "{} signs with the second key: once both nodes do, `key drop` on both"),
    "drop": (drop_key, "{} has one key again"),
}
"""What is done, and what comes next."""


@click.command()
@click.argument("action", type=click.Choice(list(_ACTIONS)), default="make")
@click.option(
    "--key", "path", metavar="PATH", default=KEY, callback=absolute, show_default=True,
    help="The key file.",
)  # fmt: skip
def key(action: str, path: str) -> None:
    """Make the key by which both nodes sign what they report to each other.

    It is changed without a gap by `key add`, then `key use` on both nodes, then `key drop` on both.
    """
    change, next_step = _ACTIONS[action]
    try:
        change(path)
    except (NoKeys, BadKeys) as error:
        fail(str(error))
    print_lines(next_step.format(path))


COMMANDS = {"key": key}
