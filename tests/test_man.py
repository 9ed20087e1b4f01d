"""The man page agrees with the command, its plans and its record."""

import json
import re
from pathlib import Path

import click
import pytest

from primary_backup.commands.console import EXIT_STATUS, USAGE
from primary_backup.commands.main import command
from primary_backup.plan import Mode, Replication, State, Step, When, plan, refresh
from tests.fake.node import Node

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
    """The tagged paragraphs of a section: the tag, and its text."""
    found = re.findall(r"^\.TP\n\.B[IR]? (.*)\n((?:(?!\.TP|\.PP).*\n?)*)", text, re.MULTILINE)
    return {tag: text for tag, text in found}  # noqa: C416  # a list of pairs


def options(of: click.Command) -> set[str]:
    """All options that `--help` prints, but itself."""
    return {name for each in of.params for name in each.opts if name.startswith("--")} - {"--help"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_each_of_its_options_is_explained(name: str) -> None:
    """`man ftfw-transition` leaves nothing out that `--help` shows."""
    assert paragraphs(section("COMMANDS"))[name].strip()
    explained = {tag.split()[0] for tag in paragraphs(section("OPTIONS"))}
    assert options(COMMANDS[name]) <= explained


def test_nothing_is_explained_that_is_not_there() -> None:
    """No option of an earlier version is left on the page."""
    explained = {tag.split()[0] for tag in paragraphs(section("OPTIONS"))}
    there = options(command).union(*(options(each) for each in COMMANDS.values()))

    assert explained == there | {"--help"}
    assert set(paragraphs(section("COMMANDS"))) == set(COMMANDS)


def test_the_variables_are_those_of_the_command() -> None:
    """Who writes an environment file or a rule for sudo finds every name, and none that is none."""
    assert set(re.findall(r"\bFTFW_TRANSITION_\w+", section("OPTIONS"))) == {
        option.envvar for option in command.params if option.envvar
    }


def test_the_exit_statuses_are_those_of_the_command() -> None:
    """A script may rely on them."""
    statuses = {outcome.value: str(status) for outcome, status in EXIT_STATUS.items()}
    explained = paragraphs(section("EXIT STATUS"))

    assert {status: f".B {outcome}" for outcome, status in statuses.items()} == {
        status: text.strip() for status, text in explained.items() if status != str(USAGE)
    }
    assert set(paragraphs(section("OUTCOMES"))) == set(statuses)


def test_every_field_of_the_record_is_explained(node: Node) -> None:
    """Those of a real event, of its steps, and no other."""
    event = json.loads(node.run("primary", "--json").out)
    (steps,) = (text for tag, text in paragraphs(section("LOG FIELDS")).items() if tag == "steps")
    explained = {
        field for tag in paragraphs(section("LOG FIELDS")) for field in re.findall(r"\w+", tag)
    }

    assert explained == set(event)
    assert re.findall(r"^\.BR (\w+) [,.]$", steps.partition("\nIn\n")[0], re.MULTILINE) == list(
        event["steps"][0]
    )


MODES = {
    "FTFW or NOTRACK": (Replication(Mode.FTFW), Replication(Mode.NOTRACK)),
    "FTFW or NOTRACK, DisableExternalCache On": (
        Replication(Mode.FTFW, external_cache=False),
        Replication(Mode.NOTRACK, external_cache=False),
    ),
    "NOTRACK, DisableInternalCache On": (Replication(Mode.NOTRACK, internal_cache=False),),
    "NOTRACK, both caches disabled": (
        Replication(Mode.NOTRACK, internal_cache=False, external_cache=False),
    ),
    "ALARM": (Replication(Mode.ALARM),),
}
CONDITIONS = {
    When.ALWAYS: "",
    When.COMMIT_PROVEN: " if proven",
    When.COMMIT_UNPROVEN: " if not proven",
    When.UNCOMMITTED: " if copies are left",
    When.UNCOMMITTED_COVERED: " if copies are left",
    When.PEER_COVERS: " if safe",
    When.PURGE_PENDING: " to cancel",
    When.PURGE_PENDING_EMPTY: " to cancel",
}


@pytest.mark.parametrize("mode", MODES)
def test_the_steps_are_those_of_the_plans(mode: str) -> None:
    """Every state in every mode, in order, with its conditions."""
    (text,) = re.findall(
        rf"^\.SS Mode {mode}\n((?:.*\n)*?)(?=\.SS)", section("STEPS"), re.MULTILINE
    )
    explained = {tag: asked.strip() for tag, asked in paragraphs(text).items()}

    for replication in MODES[mode]:
        plans = {
            "primary": plan(State.PRIMARY, replication),
            "primary again": plan(State.PRIMARY, replication, again=True),
            "primary, back in sync": refresh(State.PRIMARY, replication),
            "backup": plan(State.BACKUP, replication),
            "fault": plan(State.FAULT, replication),
        }
        assert explained == {name: _asked(steps) for name, steps in plans.items()}


def _asked(steps: tuple[Step, ...]) -> str:
    requests = (f"{' '.join(step.options)}{CONDITIONS[step.when]}" for step in steps)
    return ", ".join(requests) or "nothing"


def test_every_condition_is_explained() -> None:
    """Each under the notifications that the steps have."""
    explained = set(paragraphs(section("STEPS").partition(".SS Conditions")[2]))

    assert {text.strip().replace("not ", "") for text in CONDITIONS.values() if text} <= explained


@pytest.mark.parametrize("name", ["sync.lost", "purge.resumed", "purge.fired", "keepalived.asked"])
def test_a_follower_s_events_are_explained(name: str) -> None:
    """Under LOG FIELDS, where an operator searches for them."""
    assert name in section("LOG FIELDS")
