"""The man page says of the command what the command says of itself."""

import re
from pathlib import Path

import click
import pytest

from primary_backup.commands.console import EXIT_STATUS, USAGE
from primary_backup.commands.main import command

ROOT = Path(__file__).parents[1]
PAGE = re.sub(
    r"\\f[BIRP]|\\(?=-)|\"", "", (ROOT / "packaging/man/ftfw-transition.8").read_text()
).replace("\\~", " ")

_CONTEXT = click.Context(command)
COMMANDS = {
    name: found
    for name in command.list_commands(_CONTEXT)
    if (found := command.get_command(_CONTEXT, name)) is not None
}


def section(title: str) -> str:
    """One section of the page, without its markup."""
    return re.split(rf"^\.SH {title}$", PAGE, flags=re.MULTILINE)[1].partition("\n.SH ")[0]


def paragraphs(text: str) -> dict[str, str]:
    """The tagged paragraphs of a section: the tag, and what is said of it."""
    found = re.findall(r"^\.TP\n\.B[IR]? (.*)\n((?:(?!\.TP|\.PP).*\n?)*)", text, re.MULTILINE)
    return {tag: said for tag, said in found}  # noqa: C416  # a list of pairs


def options(of: click.Command) -> set[str]:
    """All options that `--help` tells, but itself."""
    return {name for each in of.params for name in each.opts if name.startswith("--")} - {"--help"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_each_of_its_options_is_explained(name: str) -> None:
    """`man ftfw-transition` leaves nothing out that `--help` shows."""
    assert paragraphs(section("COMMANDS"))[name].strip()
    told = {tag.split()[0] for tag in paragraphs(section("OPTIONS"))}
    assert options(COMMANDS[name]) <= told


def test_nothing_is_explained_that_is_not_there() -> None:
    """No option of an earlier version is left on the page."""
    told = {tag.split()[0] for tag in paragraphs(section("OPTIONS"))}
    there = options(command).union(*(options(each) for each in COMMANDS.values()))

    assert told == there | {"--help"}
    assert set(paragraphs(section("COMMANDS"))) == set(COMMANDS)


def test_the_variables_are_those_of_the_command() -> None:
    """Who writes an environment file or a rule for sudo finds every name, and none that is none."""
    assert set(re.findall(r"\bFTFW_TRANSITION_\w+", section("OPTIONS"))) == {
        option.envvar for option in command.params if option.envvar
    }


def test_the_exit_statuses_are_those_of_the_command() -> None:
    """A script may rely on them."""
    statuses = {outcome.value: str(status) for outcome, status in EXIT_STATUS.items()}
    told = paragraphs(section("EXIT STATUS"))

    assert {status: f".B {outcome}" for outcome, status in statuses.items()} == {
        status: said.strip() for status, said in told.items() if status != str(USAGE)
    }
    assert set(paragraphs(section("HOW AN OUTCOME IS TO BE READ"))) == set(statuses)


def test_every_field_of_the_record_is_explained() -> None:
    """The README's table and the page name the same fields."""
    readme = (ROOT / "README.md").read_text().partition("## The record")[2].partition("\n## ")[0]
    fields = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", readme, re.MULTILINE)))

    assert fields
    assert [field for field in fields if field not in section("LOG FIELDS")] == []
