"""What an operator reads has the terms of keepalived.conf(5) and conntrackd(8), and no dialect."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from primary_backup.commands.main import command

ROOT = Path(__file__).parents[1]
DIALECT = re.compile(
    r"\b(words?|heard|spoilt|mend(s|ed)?|younger|youngest|born|births?|said|told|tells?|lives"
    r"|held back|made anew|nobody listen\w*|somebody)\b",
    re.IGNORECASE,
)
"""A notification is issued, newer, received, deferred, re-created; a configuration is invalid and
is fixed; a daemon is running; a program reports."""
PAGES = ["README.md", "CHANGELOG.md", "SECURITY.md", "packaging/man/ftfw-transition.8"]


def shipped() -> list[Path]:
    """The files that are copied to a firewall, and those that they are rendered from."""
    packaging = ROOT / "packaging"
    kinds = ("conntrackd", "fw-2", "keepalived", "modules-load.d", "nftables", "sysctl.d")
    directories = [packaging / kind for kind in (*kinds, "systemd", "tmpfiles.d")]
    site = ROOT / "primary_backup/site"
    return [
        site / "example.toml",
        *(path for each in (*directories, site / "templates") for path in each.rglob("*")),
    ]


def messages(module: Path) -> Iterator[str]:
    """All texts of a module but its docstrings."""
    tree = ast.parse(module.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


@pytest.mark.parametrize("name", PAGES)
def test_no_page_has_the_dialect(name: str) -> None:
    """Whoever reads it at three in the morning has never seen the code."""
    assert DIALECT.findall((ROOT / name).read_text()) == []


def test_no_shipped_file_has_the_dialect() -> None:
    """Its comments explain each line to an operator."""
    found = {
        str(path): match[0]
        for path in shipped()
        if path.is_file() and (match := DIALECT.search(path.read_text()))
    }

    assert found == {}


def test_no_message_has_the_dialect() -> None:
    """Reasons, advice, events, help texts and dry runs are texts of the modules."""
    found = [
        (module.name, text)
        for module in (ROOT / "primary_backup").rglob("*.py")
        for text in messages(module)
        if DIALECT.search(text)
    ]

    assert found == []


def test_no_help_has_the_dialect() -> None:
    """It is made of docstrings too."""
    context = click.Context(command)
    helps = [command.get_help(context)]
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        helps.append(found.get_help(click.Context(found)))

    assert DIALECT.findall("\n".join(helps)) == []
