"""``render``: write the configuration of one node of a pair."""

import click

from primary_backup.commands.console import fail, print_lines
from primary_backup.site.read import SiteError, read_site
from primary_backup.site.render import EXAMPLE, Existing, Linked, render, write


def _show_example(context: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value:
        with open(EXAMPLE, encoding="utf-8") as file:
            print_lines(*file.read().splitlines())
        context.exit()


def _given(_: click.Context, parameter: click.Parameter, value: str) -> str:
    if not value:  # an unset shell variable; the current directory is `.`
        raise click.BadParameter("it is empty", param=parameter)
    return value


@click.command(name="render")
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
    try:
        with open(site, encoding="utf-8") as file:
            written = write(render(read_site(file.read()), node), output)
    except SiteError as error:
        fail(*(f"{site}: {line}" for line in error.args))
    except ValueError as error:  # no such node, or not UTF-8
        fail(f"{site}: {error}")
    except Existing as error:
        fail(f"{error} is there and differs: move it away, or name another --output")
    except Linked as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    print_lines(*(f"{output}/{path}" for path in written))


COMMANDS = {"render": render_command}
