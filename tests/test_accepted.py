"""conntrackd.conf as a transition finds it: invalid, changed, or the last one that worked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.fake.cli import REFUSES
from tests.fake.node import Node


@pytest.mark.parametrize("state", ["primary", "backup", "fault"])
def test_a_configuration_the_client_refuses_gives_its_own_message(node: Node, state: str) -> None:
    """Exit 1, and one line on stderr: what the client reports."""
    node.on("any", REFUSES)
    ended = node.run(state)
    assert ended.code == 1
    (line,) = ended.lines
    assert "symbol 'Nonsense': syntax error" in line


def test_a_damaged_configuration_forbids_what_is_no_promotion(node: Node) -> None:
    """That can wait for somebody's hand; the daemon that has read it before is reached without."""
    node.run("backup")
    node.on("any", REFUSES)

    ended = node.run("primary")
    assert ended.code == 3
    assert "symbol 'Nonsense': syntax error" in ended.event["reason"]
    assert node.run("backup").code == 1

    # Its world is the directory of the file that it is given.
    calls = [json.loads(line)["argv"] for line in (node.run_dir / "calls").read_text().splitlines()]
    assert [argv[2] for argv in calls if argv[2] != "-s"] == ["-c", "-f", "-R", "-B"]


@pytest.mark.parametrize("state", ["primary", "backup"])
@pytest.mark.parametrize(
    ("kind", "reports"),
    [
        ("missing", "can't open config file"),
        ("directory", "input in flex scanner failed"),
        ("binary", "symbol 'Nonsense': syntax error"),
    ],
)
def test_a_configuration_that_is_none_gives_the_client_s_message(
    node: Node, state: str, kind: str, reports: str
) -> None:
    """Missing, a directory, binary: exit 1, one line on stderr, nothing lost."""
    node.config.unlink()
    if kind == "directory":
        node.config.mkdir()
    if kind == "binary":
        node.config.write_bytes(bytes(range(256)))
        node.on("any", REFUSES)
    ended = node.run(state)
    assert ended.code == 1
    (line,) = ended.lines
    assert reports in line
    assert not {"-f", "-t"} & set(node.asked)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("primary", "Stats { }\n"),
        ("backup", "Stats { }\n"),
        ("fault", "Stats { }\n"),
        ("primary", "General { }\n"),
        ("primary", ""),
        ("backup", ""),
    ],
)
def test_a_configuration_that_replicates_nothing_is_refused(
    node: Node, state: str, text: str
) -> None:
    """Stats only, no mode, empty: exit 1 with advice, and nothing that changes anything."""
    node.config.write_text(text)
    ended = node.run(state)
    assert ended.code == 1
    assert len(ended.lines) == 1
    assert ended.event["advice"]
    assert node.asked == []


def test_a_promotion_commits_even_where_only_the_client_can_read(node: Node) -> None:
    """Our reader fails on a file the client accepts: -c, -R and -B, no flush, degraded."""
    node.config.write_text("Nonsense {\n")
    node.has(external=1_000)
    ended = node.run("primary")
    assert node.asked == ["-c", "-R", "-B"]
    assert (ended.code, ended.event["outcome"]) == (3, "degraded")
    assert len(ended.lines) == 1


def test_a_re_assertion_commits_nothing_even_where_only_the_client_can_read(node: Node) -> None:
    """MASTER_RX_LOWER_PRI: never a commit over live entries."""
    node.config.write_text("Nonsense {\n")
    node.run("notify", "INSTANCE", "VI_1", "MASTER_RX_LOWER_PRI", "150")
    assert "-c" not in node.asked


def test_a_backup_that_only_the_client_can_read_purges_nothing(node: Node) -> None:
    """What cannot be read decides nothing: -n alone, degraded."""
    node.config.write_text("Nonsense {\n")
    node.has(holds=3)
    ended = node.run("backup")
    assert node.asked == ["-n", "-n"]
    assert ended.code == 3


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("primary", "missing"),
        ("primary", "directory"),
        ("primary", "not executable"),
        ("primary", "no program"),
        ("backup", "missing"),
    ],
)
def test_a_client_that_is_none_is_named(node: Node, kind: str, state: str) -> None:
    """Exit 1, one line on stderr that names the client."""
    node.client = node.world / "client"
    if kind == "directory":
        node.client.mkdir()
    elif kind == "not executable":
        node.client.write_text("#!/bin/sh\n")
    elif kind == "no program":
        node.client.write_text("\x7fELF")
        node.client.chmod(0o755)
    ended = node.run(state)
    assert ended.code == 1
    (line,) = ended.lines
    assert str(node.client) in line


def test_an_over_long_path_is_an_error_like_any_other(node: Node) -> None:
    """A path that no kernel takes: exit 1, one line, no traceback."""
    node.client = Path("/" + "x" * 5_000)
    ended = node.run("primary")
    assert ended.code == 1
    assert len(ended.lines) == 1


def test_an_over_long_configuration_is_an_error_like_any_other(node: Node) -> None:
    """The client refuses what it cannot open."""
    config = f"{node.world}/{'x' * 300}"
    ended = node.run("--config", config, "primary")
    assert ended.code == 1
    assert len(ended.lines) == 1


@pytest.mark.parametrize("state", ["primary", "stop"])
def test_a_path_that_is_no_text_is_no_traceback(node: Node, state: str) -> None:
    """A file name is bytes: either the transition runs, or one line names the reason not."""
    raw = os.fsencode(node.world) + b"/caf\xe9.conf"
    with open(raw, "w") as file:
        file.write(node.config.read_text())
    ended = node.run("--config", os.fsdecode(raw), state)
    assert (ended.code, len(ended.lines)) in {(0, 0), (1, 1), (2, 1)}
