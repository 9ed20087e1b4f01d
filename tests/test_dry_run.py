"""The dry run: what a command would ask of this node now."""

from __future__ import annotations

from itertools import pairwise

import pytest

from primary_backup.plan import Mode, Replication, State, plan
from tests.fake.cli import promoted
from tests.fake.node import Node

MODES = [
    ("Mode FTFW { }", Replication(Mode.FTFW)),
    ("Mode NOTRACK { }", Replication(Mode.NOTRACK)),
    ("Mode ALARM { }", Replication(Mode.ALARM)),
    (
        "Mode FTFW { DisableExternalCache On }",
        Replication(Mode.FTFW, external_cache=False),
    ),
    (
        "Mode NOTRACK { DisableInternalCache On }",
        Replication(Mode.NOTRACK, internal_cache=False),
    ),
    (
        "Mode NOTRACK { DisableInternalCache On DisableExternalCache On }",
        Replication(Mode.NOTRACK, internal_cache=False, external_cache=False),
    ),
]


@pytest.mark.parametrize(
    ("state", "mode", "replication"),
    [
        *((State.PRIMARY, *mode) for mode in MODES),
        *((state, *MODES[0]) for state in (State.BACKUP, State.FAULT, State.STOP)),
    ],
)
def test_a_dry_run_names_each_step(
    node: Node, state: State, mode: str, replication: Replication
) -> None:
    """Each step with its exact command, why it is there, and what will prove it, in order."""
    node.configure(mode)
    ended = node.run(state.value, "--dry-run")
    assert ended.code == 0
    rest = ended.out
    for step in plan(state, replication):
        command = " ".join((str(node.client), "-C", str(node.config), *step.options)) + "\n"
        for text in (command, step.why, step.proof):
            _, found, rest = rest.partition(text)
            assert found, text
    assert str(node.client) not in rest


@pytest.mark.parametrize("arguments", [("primary",), ("backup",), ("notify", "G1", "FAULT")])
def test_a_dry_run_touches_nothing(node: Node, arguments: tuple[str, ...]) -> None:
    """No client is started, no directory made, nothing logged."""
    ended = node.run(*arguments, "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert node.calls == []
    assert not node.run_dir.exists()


@pytest.mark.parametrize(
    "text", [None, "Stats { }\n", "", "Sync {"], ids=["missing", "stats", "empty", "broken"]
)
def test_a_dry_run_without_a_plan_reports_it(node: Node, text: str | None) -> None:
    """Exit 1, one line that names the file once."""
    node.config.unlink()
    if text is not None:
        node.config.write_text(text)
    ended = node.run("primary", "--dry-run")
    assert ended.code == 1
    (line,) = ended.lines
    assert line.count(str(node.config)) == 1


def announced(node: Node, state: str) -> list[str]:
    """The requests that a dry run announces, but for those that it knows are not made now."""
    lines = node.run(state, "--dry-run").out.splitlines()
    command = f"{node.client} -C {node.config} "
    return [
        line.partition(command)[2]
        for line, when in pairwise(lines)
        if command in line and "not now" not in when
    ]


def test_a_dry_run_before_a_promotion_announces_its_commit(node: Node) -> None:
    """Nothing is remembered of this boot, and the first lines name that."""
    assert "no transition is remembered" in node.run("primary", "--dry-run").out
    assert announced(node, "primary") == ["-c", "-f", "-f internal", "-R", "-B"]


def test_a_dry_run_after_a_promotion_announces_what_is_asked_then(node: Node) -> None:
    """The same decision, with the same memory: a second primary commits nothing."""
    promoted(node)
    requests = announced(node, "primary")
    assert "the last transition was primary: ok" in node.run("primary", "--dry-run").out
    before = len(node.asked)
    promoted(node)
    assert node.asked[before:] == requests == ["-f internal", "-R", "-B"]


def test_a_dry_run_of_another_daemon_announces_a_first_promotion(node: Node) -> None:
    """A daemon that was restarted since has committed nothing."""
    promoted(node)
    node.socket.rename(node.world / "old")
    node.socket.touch()
    assert "conntrackd was restarted" in node.run("primary", "--dry-run").out
    assert announced(node, "primary")[0] == "-c"


def test_a_dry_run_with_a_pending_purge_announces_that_it_may_be_cancelled(node: Node) -> None:
    """Without one, there is nothing to cancel; the seconds that are left are named."""
    node.has(internal=3, external=3)
    assert announced(node, "fault") == ["-t"]
    assert node.run("fault").code == 0
    assert "-t" in node.asked
    assert "a purge is pending for" in node.run("fault", "--dry-run").out
    assert announced(node, "fault") == ["-t", "-f internal", "-R"]


def test_a_dry_run_with_uncommitted_copies_names_them(node: Node) -> None:
    """A backup would drop them, once the peer holds what is here."""
    assert "-f external" not in announced(node, "backup")
    node.has(external=1_000)
    assert node.run("primary").code == 3
    assert "uncommitted copies are left" in node.run("backup", "--dry-run").out
    assert "-f external" in announced(node, "backup")


def test_a_dry_run_does_what_it_can_without_a_run_directory(node: Node) -> None:
    """As a transition does."""
    node.run_dir.touch()
    ended = node.run("primary", "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert f"nothing is remembered: run directory {node.run_dir}" in ended.out
