"""The installed command, against a fake conntrackd client that records what it is asked.

Every hook runs in a node of its own: no kernel entry, no log, no systemd of this machine's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from primary_backup.commands.main import command
from primary_backup.plan import Mode, Replication, State, plan
from tests.fake.node import HOOK, Ended, Hook, Node, later, until

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
REFUSES = "refuse \"parsing config file in line (3), symbol 'Nonsense': syntax error\""
_CONTEXT = click.Context(command)
COMMANDS = ", ".join(command.list_commands(_CONTEXT))
WAITS = ": >$world/committing; until_told go"
"""A request that waits, and says that it does."""


def promoted(node: Node) -> Ended:
    """Promote the node, which ends ok."""
    ended = node.run("primary")
    assert ended.code == 0, ended.err
    return ended


def in_mid_commit(node: Node) -> Hook:
    """Start a promotion; its commit runs until the node is told to go on."""
    node.on("-c", WAITS)
    hook = node.start("primary")
    until((node.world / "committing").exists, "the commit runs")
    return hook


def holds(node: Node) -> bool:
    """Whether somebody holds the lock."""
    with (node.run_dir / "lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Hanging(NamedTuple):
    """A hook whose every request hangs."""

    node: Node
    hook: Hook


class Hung(NamedTuple):
    """What came of it."""

    node: Node
    ended: Ended


@pytest.fixture(scope="module", autouse=True)
def hanging(nodes: Callable[[], Node]) -> dict[str, Hanging]:
    """A hook for each state before a client that never answers; begun before all other tests."""
    hung = {}
    for word in ("primary", "backup", "fault"):
        node = nodes()
        node.on("any", "sleep 100")
        hung[word] = Hanging(node, node.start(word))
    return hung


# -- usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("bogus",),
        ("PRIMARY",),
        ("primary", "backup"),
        ("primary", "--bogus"),
        ("--bogus", "primary"),
        ("--log-level", "loud", "primary"),
        ("--config", "conntrackd.conf", "primary"),
        ("--config", "", "primary"),
        ("--conntrackd", "conntrackd", "primary"),
        ("--run-dir", "../run", "primary"),
        ("notify",),
        ("notify", "GROUP", "G1"),
        ("notify", "GROUP", "G1", "master", "0"),
        ("notify", "GROUP", "G1", "MASTER", "0", "more"),
        (os.fsdecode(b"\xff\xfe"),),
    ],
)
def test_a_word_that_means_nothing_asks_nothing(node: Node, words: tuple[str, ...]) -> None:
    """Exit 2, one line of advice on stderr, nothing asked of conntrackd."""
    ended = node.run(*words)
    assert ended.code == 2
    assert len(ended.lines) == 1
    assert node.calls == []


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ((), f"expected one of: {COMMANDS}; see `ftfw-transition --help`"),
        (("bogus",), f"expected one of: {COMMANDS}; see `ftfw-transition --help`"),
        (("--bogus", "primary"), "; see `ftfw-transition --help`"),
        (("--config", "x", "primary"), "not an absolute path; see `ftfw-transition --help`"),
        (("primary", "--jsn"), "; see `ftfw-transition primary --help`"),
        (("render",), "Missing option '--site'; see `ftfw-transition render --help`"),
        (("follow",), "--group NAME or --instance NAME; see `ftfw-transition follow --help`"),
    ],
)
def test_a_usage_error_says_what_was_expected_there(
    node: Node, words: tuple[str, ...], advice: str
) -> None:
    """The commands are listed where none of them was given; else the help of the one is named."""
    (line,) = node.run(*words).lines
    assert line.endswith(advice)
    assert ("expected one of" in line) == ("expected one of" in advice)


@pytest.mark.parametrize("variable", ["CONFIG", "CONNTRACKD", "KEEPALIVED", "RUN_DIR"])
def test_a_relative_path_in_the_environment_is_refused_too(node: Node, variable: str) -> None:
    """An option and its variable are the same door."""
    ended = node.spawn([str(HOOK), "primary"], {f"FTFW_TRANSITION_{variable}": "relative"}).wait()
    assert (ended.code, len(ended.lines)) == (2, 1)


def test_every_global_option_is_a_variable_too(node: Node) -> None:
    """FTFW_TRANSITION_CONFIG, _CONNTRACKD, _RUN_DIR and _LOG_LEVEL stand for the options."""
    environment = {
        "FTFW_TRANSITION_CONFIG": str(node.config),
        "FTFW_TRANSITION_CONNTRACKD": str(node.client),
        "FTFW_TRANSITION_RUN_DIR": str(node.run_dir),
        "FTFW_TRANSITION_LOG_LEVEL": "error",
    }
    ended = node.spawn([str(HOOK), "primary"], environment).wait()
    assert (ended.code, ended.err) == (0, "")
    assert node.asked == ["-c", "-f", "-R", "-B"]
    assert json.loads(node.last)["outcome"] == "ok"


def test_an_option_beats_its_variable(node: Node) -> None:
    """What was typed counts."""
    environment = {"FTFW_TRANSITION_CONNTRACKD": "/nowhere/conntrackd"}
    assert node.spawn(node.arguments("primary"), environment).wait().code == 0


class Wishes:
    """An environment in which every variable is set to 1, and that notes which were asked for."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def get(self, name: str) -> str:
        """What click asks of os.environ."""
        self.asked.add(name)
        return "1"


def test_a_variable_reaches_the_documented_global_options_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No option or argument of a command, not even one of a later version, by any name."""
    top = click.Context(command, info_name="ftfw-transition", **command.context_settings)
    contexts = [top] + [
        click.Context(each, parent=top, info_name=name, **each.context_settings)
        for name in command.list_commands(_CONTEXT)
        if (each := command.get_command(_CONTEXT, name)) is not None
    ]
    reached: dict[tuple[str, str | None], set[str]] = {}
    for context in contexts:
        assert not isinstance(context.command, click.Group) or context is top
        for parameter in context.command.get_params(context):
            monkeypatch.setattr(os, "environ", wishes := Wishes())
            parameter.value_from_envvar(context)
            if wishes.asked:
                reached[context.command_path, parameter.name] = wishes.asked
    monkeypatch.undo()
    assert reached == {
        ("ftfw-transition", option): {f"FTFW_TRANSITION_{option.upper()}"}
        for option in ("config", "conntrackd", "keepalived", "run_dir", "log_level")
    }


@pytest.mark.parametrize(
    ("words", "variable"),
    [
        (("primary",), "PRIMARY_DRY_RUN"),
        (("primary",), "PRIMARY_AS_JSON"),
        (("notify", "G1", "MASTER"), "NOTIFY_DRY_RUN"),
        (("notify", "G1", "MASTER"), "NOTIFY_AS_JSON"),
    ],
)
def test_no_variable_turns_a_promotion_into_output(
    node: Node, words: tuple[str, ...], variable: str
) -> None:
    """Whatever /etc/default/keepalived or `sudo -E` brings along, a promotion commits."""
    ended = node.spawn(node.arguments(*words), {f"FTFW_TRANSITION_{variable}": "1"}).wait()
    assert node.asked == ["-c", "-f", "-R", "-B"]
    assert ended.out == ""


@pytest.mark.parametrize("words", [("primary",), ("--run-dir", "/run/x", "stop"), ("bogus",)])
@pytest.mark.parametrize("instruction", ["bash_source", "bash_complete", "bogus"])
def test_a_completion_variable_changes_no_command(
    node: Node, words: tuple[str, ...], instruction: str
) -> None:
    """A shell that completes calls the command without arguments: with some, it is a command."""
    environment = {"COMP_WORDS": "ftfw-transition pri", "COMP_CWORD": "1"}
    arguments = node.arguments(*words)
    plain = node.spawn(arguments, environment).wait()
    asked = node.asked
    (node.world / "calls").unlink(missing_ok=True)
    environment["_FTFW_TRANSITION_COMPLETE"] = instruction
    ended = node.spawn(arguments, environment).wait()
    assert (ended.code, ended.out) == (plain.code, "")
    assert words != ("primary",) or asked == ["-c", "-f", "-R", "-B"]
    assert ended.events[-1]["message"] == plain.events[-1]["message"]


def test_a_shell_completes_a_command(node: Node) -> None:
    """Without arguments the variable asks for a script, or for what `pri` may become."""
    variable = "_FTFW_TRANSITION_COMPLETE"
    script = node.spawn([str(HOOK)], {variable: "bash_source"}).wait()
    words = {"COMP_WORDS": "ftfw-transition pri", "COMP_CWORD": "1"}
    completed = node.spawn([str(HOOK)], {variable: "bash_complete", **words}).wait()
    assert (script.code, completed.code) == (0, 0)
    assert f"{variable}=bash_complete $1" in script.out
    assert completed.out == "plain,primary\n"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_are_no_transition(node: Node, option: str) -> None:
    """Both print and exit 0."""
    ended = node.run(option)
    assert (ended.code, ended.err) == (0, "")
    assert "ftfw-transition" in ended.out
    assert node.calls == []


# -- who asked ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("primary",), ("notify", "GROUP", "G1", "MASTER")])
@pytest.mark.parametrize("parent", ["keepalived", "another program"])
def test_the_cause_tells_a_hook_from_a_typed_command(
    node: Node, tmp_path: Path, parent: str, words: tuple[str, ...]
) -> None:
    """A hook is a child of the installed keepalived, by its executable."""
    shell = shutil.which("sh")
    assert shell is not None
    keepalived = Path(shutil.copy(shell, tmp_path / "keepalived"))
    runs = str(keepalived) if parent == "keepalived" else shell
    arguments = node.arguments("--keepalived", str(keepalived), *words)
    ended = node.spawn([runs, "-c", '"$@"; exit $?', "sh", *arguments]).wait()
    who = "keepalived hook" if parent == "keepalived" else "command"
    assert ended.event["cause"] == f"{who}: {' '.join(words)}"


# -- dry run ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("words", [("primary",), ("backup",), ("notify", "G1", "FAULT")])
def test_a_dry_run_touches_nothing(node: Node, words: tuple[str, ...]) -> None:
    """No client is started, no directory made, nothing logged."""
    ended = node.run(*words, "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert node.calls == []
    assert not node.run_dir.exists()


@pytest.mark.parametrize(
    "text", [None, "Stats { }\n", "", "Sync {"], ids=["missing", "stats", "empty", "broken"]
)
def test_a_dry_run_without_a_plan_says_so(node: Node, text: str | None) -> None:
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
    """Nothing is remembered of this boot, and it says so."""
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


# -- how a transition ends ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("primary",), ["-c", "-f", "-R", "-B"]),
        (("notify", "GROUP", "G1", "MASTER", "0"), ["-c", "-f", "-R", "-B"]),
        (("notify", "INSTANCE", "VI_1", "MASTER_RX_LOWER_PRI", "150"), ["-f internal", "-R", "-B"]),
        (("notify", "GROUP", "G1", "BACKUP", "0"), ["-n", "-t"]),
        (("fault",), ["-t"]),
        (("notify", "G1", "FAULT"), ["-t"]),
        (("stop",), []),
        (("notify", "GROUP", "G1", "STOP", "0"), []),
        (("notify", "INSTANCE", "VI_1", "DELETED", "100"), []),
    ],
)
def test_a_state_and_keepalived_s_word_for_it_do_the_same(
    node: Node, words: tuple[str, ...], asked: list[str]
) -> None:
    """Each is one transition, which ends ok where the peer lives and covers what is here."""
    node.has(holds=3, internal=3, external=3)
    ended = node.run(*words)
    assert (ended.code, ended.event["outcome"]) == (0, "ok")
    assert node.asked == asked


@pytest.mark.parametrize("word", ["primary", "stop"])
def test_the_final_event_carries_everything(node: Node, word: str) -> None:
    """One canonical event: what, how it ended, why, how long, what was recovered, every step."""
    node.has(holds=3)
    event = node.run(word).event
    assert event.keys() >= {
        "transition", "state", "outcome", "reason", "seconds", "expected", "recovered",
        "kernel_entries", "waited_seconds", "steps",
    }  # fmt: skip
    for step in event["steps"]:
        assert step.keys() >= {"name", "command", "outcome", "attempts", "seconds"}
    assert event["state"] == word
    assert isinstance(event["recovered"], int)


def test_each_step_is_an_event_of_its_own(node: Node) -> None:
    """`step.finished` for each step, then one `transition.finished`."""
    events = promoted(node).events
    assert [event["message"] for event in events[:-1]] == ["step.finished"] * (len(events) - 1)
    assert [event["step"] for event in events[:-1]] == [
        step["name"] for step in events[-1]["steps"]
    ]


def test_json_is_the_record_and_the_logged_line(node: Node) -> None:
    """--json, the log and the run directory have the very same line: one format, not three."""
    ended = node.run("primary", "--json")
    logged = ended.err.splitlines()[-1]
    assert ended.out == logged + "\n"
    assert node.last == logged + "\n"


def test_a_degraded_promotion_exits_3_and_says_what_to_type(node: Node) -> None:
    """1000 expected, none in the kernel: degraded, the cache is kept, and there is advice."""
    node.has(external=1_000)
    ended = node.run("primary")
    assert (ended.code, ended.event["outcome"]) == (3, "degraded")
    assert (ended.event["expected"], ended.event["recovered"]) == (1_000, 0)
    assert "conntrackd -c" in ended.event["advice"]
    assert node.asked == ["-c", "-f internal", "-R", "-B"]


def test_a_kept_cache_is_dropped_by_the_next_backup(node: Node) -> None:
    """Once the peer has sent all that is here: -f external, and only then the asking -n."""
    node.has(external=1_000)
    assert node.run("primary").code == 3
    node.has(internal=300, holds=300)
    assert node.run("backup").code == 0
    asked = node.asked[4:]
    dropped = asked.index("-f external")
    assert "-n" in asked[dropped:]
    assert node.number("external") == 300


def test_a_kept_cache_stops_a_backup_s_purge(node: Node) -> None:
    """The peer has less than is here: the copy stays, and nothing is purged."""
    node.has(external=1_000)
    node.run("primary")
    node.has(internal=300, holds=100)
    node.run("backup")
    assert not {"-f external", "-t"} & set(node.asked)


def test_a_kept_cache_of_a_dead_daemon_is_forgotten(node: Node) -> None:
    """Another socket is another daemon, whose cache holds nothing of an old promotion."""
    node.has(external=1_000)
    node.run("primary")
    node.socket.rename(node.world / "old")
    node.socket.touch()
    node.has(external=0, holds=3)
    node.run("backup")
    assert node.asked[4:] == ["-n", "-t"]


def test_a_fault_disarms_the_purge_of_a_backup(node: Node) -> None:
    """A link that bounces: BACKUP arms the purge, and FAULT must not let it fire."""
    node.has(internal=3, holds=3)
    node.run("backup")
    node.has(external=0)
    node.run("fault")
    assert node.asked == ["-n", "-t", "-f internal", "-R"]


def test_a_promotion_disarms_a_purge_for_good(node: Node) -> None:
    """A promotion's -c cancels the purge: a fault after it has nothing to disarm."""
    node.has(internal=3, external=3)
    node.run("fault")
    assert node.asked == ["-t"]
    node.run("primary")
    node.has(internal=3, external=0)
    before = len(node.asked)
    node.run("fault")
    assert node.asked[before:] == []


# -- configurations -----------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["primary", "backup", "fault"])
def test_a_configuration_the_client_refuses_gives_its_own_message(node: Node, word: str) -> None:
    """Exit 1, and one line on stderr: what the client says."""
    node.on("any", REFUSES)
    ended = node.run(word)
    assert ended.code == 1
    (line,) = ended.lines
    assert "symbol 'Nonsense': syntax error" in line


def test_a_spoilt_configuration_forbids_what_is_no_promotion(node: Node) -> None:
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


@pytest.mark.parametrize("word", ["primary", "backup"])
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "can't open config file"),
        ("directory", "input in flex scanner failed"),
        ("binary", "symbol 'Nonsense': syntax error"),
    ],
)
def test_a_configuration_that_is_none_gives_the_client_s_message(
    node: Node, word: str, kind: str, says: str
) -> None:
    """Missing, a directory, binary: exit 1, one line on stderr, nothing lost."""
    node.config.unlink()
    if kind == "directory":
        node.config.mkdir()
    if kind == "binary":
        node.config.write_bytes(bytes(range(256)))
        node.on("any", REFUSES)
    ended = node.run(word)
    assert ended.code == 1
    (line,) = ended.lines
    assert says in line
    assert not {"-f", "-t"} & set(node.asked)


@pytest.mark.parametrize(
    ("word", "text"),
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
    node: Node, word: str, text: str
) -> None:
    """Stats only, no mode, empty: exit 1 with advice, and nothing that changes anything."""
    node.config.write_text(text)
    ended = node.run(word)
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
    assert node.asked == ["-n"]
    assert ended.code == 3


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("primary", "missing"),
        ("primary", "directory"),
        ("primary", "not executable"),
        ("primary", "no program"),
        ("backup", "missing"),
    ],
)
def test_a_client_that_is_none_is_named(node: Node, kind: str, word: str) -> None:
    """Exit 1, one line on stderr that names the client."""
    node.client = node.world / "client"
    if kind == "directory":
        node.client.mkdir()
    elif kind == "not executable":
        node.client.write_text("#!/bin/sh\n")
    elif kind == "no program":
        node.client.write_text("\x7fELF")
        node.client.chmod(0o755)
    ended = node.run(word)
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


@pytest.mark.parametrize("word", ["primary", "stop"])
def test_a_path_that_is_no_text_is_no_traceback(node: Node, word: str) -> None:
    """A file name is bytes: either the transition runs, or one line says why not."""
    raw = os.fsencode(node.world) + b"/caf\xe9.conf"
    with open(raw, "w") as file:
        file.write(node.config.read_text())
    ended = node.run("--config", os.fsdecode(raw), word)
    assert (ended.code, len(ended.lines)) in {(0, 0), (1, 1), (2, 1)}


# -- run directories ----------------------------------------------------------------------------


def unusable(node: Node, kind: str) -> None:
    """Spoil the run directory."""
    if kind == "a file":
        node.run_dir.write_text("")
        return
    if kind == "a symbolic link":
        (node.world / "elsewhere").mkdir(mode=0o700)
        node.run_dir.symlink_to(node.world / "elsewhere")
        return
    if kind == "of a missing parent":
        node.run_dir = node.run_dir / "missing" / "run"
        return
    node.run_dir.mkdir(mode=0o700)
    if kind == "others can write":
        node.run_dir.chmod(0o777)
    elif kind == "a group can write":
        node.run_dir.chmod(0o770)
    elif kind == "somebody else's":
        os.chown(node.run_dir, 65534, 65534)
    elif kind == "read-only":
        node.sh(f"mount -t tmpfs -o ro,mode=700 none {node.run_dir}")
    elif kind == "full":
        node.sh(
            f"mount -t tmpfs -o mode=700,size=64k none {node.run_dir}; "
            f"head -c 64k /dev/zero >{node.run_dir}/filler"
        )
    elif kind == "without inodes":
        node.sh(f"mount -t tmpfs -o mode=700,nr_inodes=1 none {node.run_dir}")


UNUSABLE = [
    "others can write", "a group can write", "somebody else's", "a symbolic link", "a file",
    "of a missing parent", "read-only", "without inodes", "full",
]  # fmt: skip


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_run_directory_that_cannot_be_used_stops_no_promotion(node: Node, kind: str) -> None:
    """The promotion goes on without lock or record: degraded, and one line on stderr says why."""
    unusable(node, kind)
    ended = node.run("primary")
    assert node.asked == ["-c", "-f", "-R", "-B"]
    assert (ended.code, ended.event["outcome"]) == (3, "degraded")
    (line,) = ended.lines
    assert str(node.run_dir) in line


@pytest.mark.parametrize("kind", ["others can write", "full"])
def test_a_backup_without_a_record_never_purges(node: Node, kind: str) -> None:
    """Without lock and record nobody knows whether a primary came: nothing is purged."""
    unusable(node, kind)
    node.has(internal=3, holds=3)
    ended = node.run("backup")
    assert "-t" not in node.asked
    assert ended.code == 3


@pytest.mark.parametrize("umask", [0o177, 0o000])
def test_the_run_directory_is_safe_under_any_umask(node: Node, umask: int) -> None:
    """0700 and usable, under keepalived's umask 0177 too."""
    node.start("primary", umask=umask).wait()
    assert node.run_dir.stat().st_mode & 0o7777 == 0o700
    assert json.loads(node.last)["outcome"] == "ok"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory.json", "{"),
        ("lock", "x y"),
        ("ticket.1.1.other", ""),
        ("ticket.99999999999.1.backup", ""),
    ],
)
def test_junk_in_the_run_directory_stops_no_promotion(node: Node, name: str, text: str) -> None:
    """A torn or foreign file, from a crash or another version, is no reason not to commit."""
    node.run_dir.mkdir(mode=0o700)
    (node.run_dir / name).write_text(text)
    ended = node.run("primary")
    assert node.asked == ["-c", "-f", "-R", "-B"]
    assert ended.code == 0


# -- a dead or hung daemon ----------------------------------------------------------------------


def test_an_unreached_daemon_is_asked_again(node: Node) -> None:
    """Nobody listened at first: asked again, and the number of attempts is told."""
    node.on("-c", "get tries; put tries $((value + 1)); [ $value -ge 2 ] || unreached")
    ended = node.run("primary")
    assert ended.code == 0
    assert ended.step("commit")["attempts"] == 3
    assert node.asked == ["-c", "-c", "-c", "-f", "-R", "-B"]


DOWN = '[ -e $world/up ] || [ "$request" = -d ] || unreached'


def test_a_primary_starts_a_daemon_that_is_down(node: Node) -> None:
    """Started by `conntrackd -d`; its cache is lost, nothing could be recovered: degraded."""
    node.on("any", DOWN)
    node.on("-d", ": >$world/up")
    ended = node.run("primary")
    assert node.asked.count("-d") == 1
    assert (ended.code, ended.event["outcome"]) == (3, "degraded")
    assert (ended.event["expected"], ended.event["recovered"]) == (None, 0)
    assert f"-C {node.config} -d" in ended.step("start")["command"]
    assert node.asked[-3:] == ["-f", "-R", "-B"]


def test_a_backup_starts_a_daemon_that_is_down(node: Node) -> None:
    """A standby needs its daemon."""
    node.on("any", DOWN)
    node.on("-d", ": >$world/up")
    node.has(holds=3)
    node.run("backup")
    assert node.asked.count("-d") == 1
    assert "-n" in node.asked[node.asked.index("-d") :]


@pytest.mark.parametrize("word", ["fault", "stop"])
def test_a_fault_and_a_stop_start_nothing(node: Node, word: str) -> None:
    """A daemon that is down stays down."""
    node.on("any", DOWN)
    node.run(word)
    assert node.asked == []


def test_a_daemon_that_does_not_start_fails_the_promotion(node: Node) -> None:
    """Exit 1, with what the daemon said."""
    node.on("any", DOWN)
    node.on("-d", 'refuse "no such interface"')
    ended = node.run("primary")
    assert (ended.code, ended.event["outcome"]) == (1, "failed")
    assert "no such interface" in ended.event["reason"]
    assert ended.event["recovered"] == 0


def test_a_stale_lock_of_a_dead_daemon_is_removed(node: Node) -> None:
    """Nobody listens and no daemon lives: the lock is stale, and would stop every start."""
    node.socket.unlink()
    (node.world / "lock").touch()
    node.on("any", DOWN)
    node.on("-d", "[ ! -e $world/lock ] || exit 1; : >$world/up; : >$world/ctl")
    ended = node.run("primary")
    assert ended.event["outcome"] == "degraded"
    assert ended.step("start")["outcome"] == "ok"


def test_a_systemctl_of_the_caller_s_path_is_not_run(node: Node) -> None:
    """Where systemd runs, its unit is asked for by the system's program, not by the caller's."""
    node.sh("mkdir -p /run/systemd/system")
    node.on("any", DOWN)
    node.on("-d", ": >$world/up")
    stand_in = node.world / "systemctl"
    stand_in.write_text(f"#!/bin/sh\necho run >>{node.world}/stand-in\nexit 1\n")
    stand_in.chmod(0o755)
    path = {"PATH": f"{node.world}:{os.environ['PATH']}"}
    ended = node.spawn(node.arguments("primary"), path).wait()
    assert ended.step("start")["outcome"] == "ok"
    assert not (node.world / "stand-in").exists()


def test_the_lock_of_a_living_daemon_is_left_alone(node: Node) -> None:
    """A daemon that lives but cannot be reached: exit 1, naming its pid, its lock untouched."""
    node.socket.unlink()
    (node.world / "lock").touch()
    node.on("any", DOWN)
    daemon = node.world / "conntrackd"
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, daemon)
    living = node.spawn([str(daemon), "100"])
    until(lambda: Path(f"/proc/{living.pid}/exe").readlink() == daemon, "the daemon lives")
    ended = node.run("primary")
    assert ended.code == 1
    assert str(living.pid) in ended.event["reason"]
    assert (node.world / "lock").exists()
    assert "-d" not in node.asked


# -- one at a time ------------------------------------------------------------------------------


def test_a_second_primary_commits_nothing(node: Node) -> None:
    """The last request to this daemon was a primary's that committed: the entries are live."""
    promoted(node)
    node.has(external=1_000)
    ended = node.run("primary")
    assert node.asked[4:] == ["-f internal", "-R", "-B"]
    assert ended.code == 0


def test_a_second_primary_is_degraded_while_uncommitted_copies_are_there(node: Node) -> None:
    """The connections of these copies may be missing in the kernel table: ok would hide it."""
    node.has(external=1_000)
    assert node.run("primary").code == 3
    second = node.run("primary")
    assert (second.code, second.step("poll")["outcome"]) == (3, "degraded")
    assert "1000 uncommitted copies" in second.event["reason"]
    assert "conntrackd -c" in second.event["advice"]
    node.has(external=0)
    third = node.run("primary")
    assert (third.code, third.step("poll")["outcome"]) == (0, "ok")
    assert node.run("primary").step("poll")["outcome"] == "skipped"


def test_a_primary_that_heard_a_rival_commits_nothing_whatever_was_typed(node: Node) -> None:
    """keepalived has called it master all along."""
    promoted(node)
    node.run("backup")
    before = len(node.asked)
    assert node.run("notify", "INSTANCE", "VI_1", "MASTER_RX_LOWER_PRI").code == 0
    assert node.asked[before:] == ["-f internal", "-R", "-B"]


def test_a_third_primary_commits_nothing_either(node: Node) -> None:
    """However often it is said."""
    for _ in range(3):
        promoted(node)
    assert node.asked.count("-c") == 1


def test_a_re_assertion_is_no_promotion(node: Node) -> None:
    """A primary after a re-assertion alone has never committed, and does."""
    node.run("notify", "INSTANCE", "VI_1", "MASTER_RX_LOWER_PRI", "150")
    promoted(node)
    assert node.asked.count("-c") == 1


def test_a_stop_in_the_middle_of_a_promotion_makes_the_next_a_first_one(node: Node) -> None:
    """keepalived has stopped: what the promotion still records does not bring it back."""
    node.on("-c", WAITS)
    hook = node.start("primary")
    until((node.world / "committing").exists, "the commit runs")
    assert node.run("stop").code == 0
    node.tell("go")
    assert hook.wait().code == 0
    promoted(node)
    assert node.asked.count("-c") == 2


@pytest.mark.parametrize("between", ["backup", "fault"])
def test_a_backup_or_fault_since_makes_a_primary_a_first_one(node: Node, between: str) -> None:
    """The peer was primary meanwhile: its connections are committed."""
    promoted(node)
    node.has(internal=3, holds=3)
    node.run(between)
    promoted(node)
    assert node.asked.count("-c") == 2


def test_a_fault_that_asked_nothing_makes_a_primary_a_first_one(node: Node) -> None:
    """A fault with nothing to purge or cancel is a fault all the same."""
    promoted(node)
    node.has(peer=0, internal=3)
    node.run("fault")
    node.has(peer=1)
    promoted(node)
    assert node.asked.count("-c") == 2


def test_another_daemon_makes_a_primary_a_first_one(node: Node) -> None:
    """A daemon is known by its socket: another one has committed nothing yet."""
    promoted(node)
    node.socket.rename(node.world / "old")
    node.socket.touch()
    promoted(node)
    assert node.asked.count("-c") == 2


def test_a_daemon_without_a_socket_makes_a_primary_a_first_one(node: Node) -> None:
    """In doubt the commit is made: an entry costs little, a connection cannot be brought back."""
    node.socket.unlink()
    promoted(node)
    promoted(node)
    assert node.asked.count("-c") == 2


def test_another_boot_makes_a_primary_a_first_one(node: Node) -> None:
    """What is remembered of another boot is nothing."""
    promoted(node)
    path = node.run_dir / "memory.json"
    memory = json.loads(path.read_text())
    path.write_text(json.dumps({**memory, "boot": "of yesterday"}))
    promoted(node)
    assert node.asked.count("-c") == 2


def test_a_promotion_that_failed_makes_a_primary_a_first_one(node: Node) -> None:
    """A commit that was not attempted to the end is no commit."""
    node.on("-c", REFUSES)
    assert node.run("primary").code == 1
    (node.world / "on" / "-c").unlink()
    promoted(node)
    assert node.asked == ["-c", "-c", "-f", "-R", "-B"]


def frozen(node: Node, word: str) -> Hook:
    """A hook that was born, and is stopped before it has done anything; SIGCONT thaws it."""
    hook = node.spawn(["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *node.arguments(word)])
    until(lambda: hook.stopped, f"the {word} is stopped")
    later()  # within a tick the process numbers decide, and they start again at 32,768
    return hook


@pytest.mark.parametrize("word", ["backup", "fault"])
def test_a_late_backup_never_purges_a_primary(node: Node, word: str) -> None:
    """Frozen before it acts, overtaken by a primary: it asks nothing, and exits 4."""
    node.has(internal=3, external=0, holds=3)
    late = frozen(node, word)
    promoted(node)
    node.has(external=3)
    asked = node.asked
    late.signal(signal.SIGCONT)
    ended = late.wait()
    assert (ended.code, ended.event["outcome"]) == (4, "superseded")
    assert node.asked == asked


def test_a_late_primary_commits_nothing_over_a_backup(node: Node) -> None:
    """An older one that gets the lock late is superseded, whatever it is."""
    node.has(holds=3)
    late = frozen(node, "primary")
    assert node.run("backup").code == 0
    asked = node.asked
    late.signal(signal.SIGCONT)
    assert late.wait().code == 4
    assert node.asked == asked


def test_a_younger_one_supersedes_before_the_next_request(node: Node) -> None:
    """A fault comes while -c runs: the promotion ends after it, superseded, and asks no more."""
    older = in_mid_commit(node)
    younger = node.start("fault")
    until(lambda: node.shows("fault"), "the fault waits")
    node.tell("go")
    ended = older.wait()
    assert (ended.code, ended.event["outcome"]) == (4, "superseded")
    assert younger.wait().code == 0
    assert not {"-f", "-R", "-B"} & set(node.asked)


def test_a_promotion_cut_short_stops_the_next_purge(node: Node) -> None:
    """It committed but flushed nothing: the old copy is not taken for the peer's."""
    node.has(external=5, internal=5)
    older = in_mid_commit(node)
    younger = node.start("fault")
    until(lambda: node.shows("fault"), "the fault waits")
    node.tell("go")
    older.wait()
    younger.wait()
    assert "-t" not in node.asked


def test_a_younger_one_that_died_supersedes_nobody(node: Node) -> None:
    """Killed with SIGKILL while it waited: the live promotion goes on to its end."""
    older = in_mid_commit(node)
    younger = node.start("backup")
    until(lambda: node.shows("backup"), "the backup waits")
    younger.signal(signal.SIGKILL)
    younger.wait()
    node.tell("go")
    assert older.wait().code == 0


def test_a_younger_one_that_was_refused_supersedes_nobody(node: Node) -> None:
    """It died on bad input: the live promotion goes on to its end."""
    older = in_mid_commit(node)
    assert node.run("--config", str(node.world / "missing.conf"), "backup").code == 1
    node.tell("go")
    assert older.wait().code == 0


def test_a_younger_one_that_has_read_nothing_yet_supersedes_nobody(node: Node) -> None:
    """Only once all its input is read it counts."""
    older = in_mid_commit(node)
    late = frozen(node, "fault")
    node.tell("go")
    assert older.wait().code == 0
    late.signal(signal.SIGCONT)
    assert late.wait().code == 0


def test_the_same_state_waits_and_finds_the_work_done(node: Node) -> None:
    """Group and instances all tell a hook: one works, the others wait, and ask nothing."""
    first = in_mid_commit(node)
    others = [node.start("primary") for _ in range(3)]
    until(lambda: len(list(node.run_dir.glob("ticket.*.primary"))) == 4, "all of them wait")
    node.tell("go")
    assert [hook.wait().code for hook in (first, *others)] == [0, 0, 0, 0]
    assert node.asked == ["-c", "-f", "-R", "-B"]


def test_the_same_state_does_what_the_first_did_not(node: Node) -> None:
    """The first one was killed: nothing is done yet, and the second does it."""
    first = in_mid_commit(node)
    second = node.start("primary")
    until(lambda: len(list(node.run_dir.glob("ticket.*.primary"))) == 2, "the second waits")
    first.signal(signal.SIGKILL)
    first.process.wait()
    node.tell("go")
    assert second.wait().code == 0
    assert node.asked == ["-c", "-c", "-f", "-R", "-B"]


def test_a_hook_that_was_killed_blocks_nobody(node: Node) -> None:
    """SIGKILL in the middle of a commit: the next one acts at once, and commits."""
    killed = in_mid_commit(node)
    killed.signal(signal.SIGKILL)
    killed.process.wait()
    node.tell("go")
    ended = node.run("primary")
    assert ended.code == 0
    assert ended.event["waited_seconds"] < 5
    assert node.asked.count("-c") == 2


def test_a_stopped_backup_does_not_hold_up_a_promotion(node: Node) -> None:
    """A lock that is held by a stopped process must not stand before a commit."""
    node.has(holds=3)
    node.on("-n", WAITS)
    older = node.start("backup")
    until((node.world / "committing").exists, "the backup asks for a resync")
    older.signal(signal.SIGSTOP)
    until(lambda: older.stopped, "the backup is stopped")
    ended = node.run("primary")
    older.signal(signal.SIGCONT)
    node.tell("go")
    assert "-c" in node.asked
    assert ended.event["outcome"] == "degraded"
    assert older.wait().code == 4


def test_one_that_was_overtaken_does_not_overwrite_what_is_remembered(node: Node) -> None:
    """A stopped backup goes on after a primary overtook it: the primary stays the last word."""
    node.has(holds=3)
    node.on("-n", WAITS)
    older = node.start("backup")
    until((node.world / "committing").exists, "the backup asks for a resync")
    older.signal(signal.SIGSTOP)
    until(lambda: older.stopped, "the backup is stopped")
    node.run("primary")
    older.signal(signal.SIGCONT)
    node.tell("go")
    older.wait()
    promoted(node)
    assert node.asked.count("-c") == 1


SLOW = """
import json, os, sys, time
from primary_backup.controller import enter
from primary_backup.intent import Intent
from primary_backup.plan import State
from primary_backup.rundir.turn import Caller
from primary_backup.settings import Settings
from primary_backup.system.proc import own_start

world, *settings, message, outcome = sys.argv[1:]

def emit(name, fields):
    if (name, fields["outcome"]) == (message, outcome):
        open(f"{world}/logging", "w").close()
        while not os.path.exists(f"{world}/logged"):
            time.sleep(0.005)
    return json.dumps(fields)

caller = Caller(own_start(), [])
print(enter(Intent(State.PRIMARY, "test"), Settings(*settings), emit, caller).outcome.value)
"""


def slow(node: Node, message: str, outcome: str) -> list[str]:
    """A promotion that is slow to log one event: until told."""
    settings = map(str, (node.world, node.config, node.client, node.run_dir, "/no/keepalived"))
    return [sys.executable, "-c", SLOW, *settings, message, outcome]


def test_one_that_is_slow_to_log_its_end_does_not_overwrite_the_next(node: Node) -> None:
    """A fault that followed a promotion is the last word, however slow the promotion's log is."""
    node.has(internal=3, external=3)
    promotion = node.spawn(slow(node, "transition.finished", "ok"))
    until((node.world / "logging").exists, "the promotion is about to log its end")
    held = holds(node)
    fault = node.start("fault")
    if held:
        until(lambda: node.shows("fault"), "the fault waits for the lock")
    else:
        until(lambda: fault.ended, "the fault has ended")
    node.tell("logged")
    assert promotion.wait().code == 0
    assert fault.wait().code == 0
    promoted(node)
    assert node.asked.count("-c") == 2


def test_one_whose_successor_is_gone_was_superseded_all_the_same(node: Node) -> None:
    """The younger one was superseded itself, or has ended: nothing failed here."""
    node.has(holds=3)
    node.on("-c", WAITS)
    older = node.spawn(slow(node, "step.finished", "superseded"))
    until((node.world / "committing").exists, "the commit runs")
    younger = node.start("backup")
    until(lambda: node.shows("backup"), "the backup waits")
    node.tell("go")
    until((node.world / "logging").exists, "the promotion is superseded")
    younger.signal(signal.SIGKILL)
    younger.wait()
    node.tell("logged")
    assert older.wait().out == "superseded\n"


def test_many_hooks_at_once_leave_the_youngest_s_state(node: Node) -> None:
    """Whatever order they run in, the last notification has the last word."""
    node.has(internal=3, holds=3)
    hooks = [node.start(word) for word in ("backup", "primary", "backup", "primary", "backup")]
    later()
    hooks.append(node.start("primary"))
    ends = [hook.wait() for hook in hooks]
    assert ends[-1].code == 0
    assert json.loads((node.run_dir / "memory.json").read_text())["last"][2] == "primary"
    assert {ended.code for ended in ends} <= {0, 4}, [ended.lines for ended in ends]
    assert node.asked[-1] == "-B"


# -- stop ---------------------------------------------------------------------------------------


def test_a_stop_waits_for_nobody(node: Node) -> None:
    """keepalived kills it after 1 s: it takes no lock, asks nothing, and leaves its record."""
    primary = in_mid_commit(node)
    ended = node.start("stop").wait(within=5)
    assert (ended.code, ended.event["state"]) == (0, "stop")
    assert json.loads(node.last)["state"] == "stop"
    assert node.asked == ["-c"]
    node.tell("go")
    assert primary.wait().code == 0


def test_a_stop_reads_no_configuration(node: Node) -> None:
    """It asks nothing, so that nothing can be wrong with what it would ask."""
    ended = node.run("--config", "/nowhere", "--conntrackd", "/nowhere", "stop")
    assert (ended.code, ended.lines) == (0, [])


# -- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_transition_after_the_step_in_hand(
    node: Node, number: signal.Signals
) -> None:
    """The final event says superseded or failed, with the signal."""
    hook = in_mid_commit(node)
    hook.signal(number)
    node.tell("go")
    ended = hook.wait()
    assert ended.event["outcome"] in ("superseded", "failed")
    assert number.name in ended.event["reason"]
    assert node.asked == ["-c"]
    assert json.loads(node.last)["outcome"] == ended.event["outcome"]


def test_a_signal_leaves_the_lock_free(node: Node) -> None:
    """And no ticket, so that the next one waits for nobody."""
    hook = in_mid_commit(node)
    hook.signal(signal.SIGTERM)
    node.tell("go")
    hook.wait()
    assert not holds(node)
    assert not node.shows("primary")


def test_a_signal_ends_the_wait_for_the_lock(node: Node) -> None:
    """One that waits has nothing in hand: it ends at once, and names the signal."""
    primary = in_mid_commit(node)
    waiting = node.start("primary")
    until(lambda: len(list(node.run_dir.glob("ticket.*.primary"))) == 2, "the second waits")
    waiting.signal(signal.SIGTERM)
    ended = waiting.wait(within=5)
    assert ended.event["outcome"] in ("superseded", "failed")
    assert "SIGTERM" in ended.event["reason"]
    node.tell("go")
    assert primary.wait().code == 0


@pytest.mark.parametrize("full", ["stdout", "stderr"])
@pytest.mark.parametrize(
    ("words", "code"), [(("primary", "--json"), 0), (("backup",), 1), (("bogus",), 2)]
)
def test_a_full_disk_behind_an_output_changes_no_exit_status(
    node: Node, words: tuple[str, ...], code: int, full: str
) -> None:
    """A script goes by the outcome of the transition, not by that of printing it."""
    node.on("-s", "[ ! -e $world/refuses ] || refuse no")
    if words == ("backup",):
        node.tell("refuses")
    with open("/dev/full", "wb") as file:
        assert node.start(*words, **{full: file}).wait().code == code


# -- on a terminal ------------------------------------------------------------------------------


def on_terminal(node: Node, *words: str) -> tuple[int, str]:
    """Run a hook whose stderr is a terminal; returns its exit status and what was written."""
    terminal, end = pty.openpty()
    hook = node.start(*words, stderr=end)
    os.close(end)
    written = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(terminal)
    return hook.wait().code, written.decode().replace("\r\n", "\n")


def test_a_person_sees_a_table_of_the_steps(node: Node) -> None:
    """One line for each step, then how it ended; no JSON."""
    code, written = on_terminal(node, "primary")
    assert code == 0
    lines = written.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["commit", "flush"]
    assert lines[-1].startswith("primary: ok")
    assert "{" not in written


def test_a_person_is_told_what_to_type_next(node: Node) -> None:
    """A degraded promotion ends with its advice."""
    node.has(external=1_000)
    code, written = on_terminal(node, "primary")
    assert code == 3
    assert "conntrackd -c" in written.splitlines()[-1]


def test_a_wrong_word_on_a_terminal_is_one_line_too(node: Node) -> None:
    """One line of advice, and no traceback."""
    code, written = on_terminal(node, "bogus")
    assert code == 2
    assert len(written.splitlines()) == 1


# -- a hung daemon ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hung(hanging: dict[str, Hanging]) -> dict[str, Hung]:
    """What came of each of them."""
    return {word: Hung(node, hook.wait()) for word, (node, hook) in hanging.items()}


@pytest.mark.parametrize("word", ["primary", "backup", "fault"])
def test_a_hung_daemon_fails_a_transition(hung: dict[str, Hung], word: str) -> None:
    """failed, exit 1."""
    _, ended = hung[word]
    assert (ended.code, ended.event["outcome"]) == (1, "failed")


@pytest.mark.parametrize("word", ["primary", "backup", "fault"])
def test_a_hung_daemon_is_given_up_in_time(hung: dict[str, Hung], word: str) -> None:
    """Within 60 s of the hook's start."""
    _, ended = hung[word]
    assert ended.event["waited_seconds"] + ended.event["seconds"] < 60


@pytest.mark.parametrize("word", ["primary", "backup", "fault"])
def test_no_client_is_left_behind(hung: dict[str, Hung], word: str) -> None:
    """Every client that hung was ended, and all that it had started."""
    node, _ = hung[word]
    assert node.clients
    assert node.clients_left == []


@pytest.mark.parametrize("word", ["primary", "backup", "fault"])
def test_a_request_that_hung_is_not_repeated(hung: dict[str, Hung], word: str) -> None:
    """Reached, no answer in time: never asked again."""
    node, _ = hung[word]
    assert len(node.asked) == len(set(node.asked))


def test_a_hung_promotion_says_what_to_do(
    hung: dict[str, Hung],
) -> None:
    """After a failed promotion the reader is told what to type next."""
    _, ended = hung["primary"]
    assert "ftfw-transition primary" in ended.event["advice"]


# -- who is second ------------------------------------------------------------------------------


def fill_the_disk(node: Node) -> None:
    """Let the run directory's file system have room for nothing more."""
    node.sh(f"head -c 1m /dev/zero >{node.run_dir}/filler 2>/dev/null || :")


def test_a_backup_that_could_write_nothing_makes_the_next_primary_a_first_one(node: Node) -> None:
    """/run is full: what the peer opened meanwhile must be committed all the same."""
    node.run_dir.mkdir(mode=0o700)
    node.sh(f"mount -t tmpfs -o mode=700,size=64k none {node.run_dir}")
    promoted(node)
    fill_the_disk(node)
    node.has(holds=500)
    node.run("backup")
    node.run("primary")
    assert node.asked.count("-c") == 2


@pytest.mark.parametrize("word", ["backup", "fault", "stop"])
def test_a_word_that_asked_nothing_makes_the_next_primary_a_first_one(
    node: Node, word: str
) -> None:
    """A half-edited file, nothing to ask: keepalived said all the same that another was primary."""
    promoted(node)
    node.on("-s", 'refuse "parsing config file in line (3)"')
    node.run(word)
    node.on("-s", "")
    node.run("primary")
    assert node.asked.count("-c") == 2


def test_a_re_assertion_that_comes_first_leaves_the_commit_to_its_promotion(node: Node) -> None:
    """keepalived's hooks run out of order: the older one is the promotion."""
    node.has(holds=3)
    node.run("backup")
    promotion = node.start("primary")
    promotion.signal(signal.SIGSTOP)
    node.run("notify", "INSTANCE", "VI_1", "MASTER_RX_LOWER_PRI", "150")
    promotion.signal(signal.SIGCONT)
    promotion.wait()
    assert node.asked.count("-c") == 1


def test_a_lock_of_nobody_s_refuses_no_promotion(node: Node) -> None:
    """Whoever holds it, and does not say who it is, does not stand before a commit for long."""
    node.run_dir.mkdir(mode=0o700)
    with open(node.run_dir / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = node.run("primary")
    assert node.asked == ["-c", "-f", "-R", "-B"]
    assert (ended.code, ended.event["waited_seconds"] < 30) == (3, True)


# -- a daemon unlike its file, a terminal that stops --------------------------------------------


@pytest.mark.parametrize("word", ["primary", "notify G1 MASTER_RX_LOWER_PRI"])
def test_a_daemon_without_an_internal_cache_is_asked_no_flush(node: Node, word: str) -> None:
    """Its file was edited, it was not restarted: -f and -f internal would flush the kernel."""
    node.on(
        "-s",
        "cat <<E\ninternal bypass:\n\ncache external:\ncurrent active connections: 0\nE\nexit 0",
    )
    ended = node.run(*word.split())
    assert not {"-f", "-f internal"} & set(node.asked)
    assert ended.code in {1, 3}
    assert "restart conntrackd" in ended.event["reason"]


def test_a_fault_after_a_promotion_that_was_cut_before_its_resync_purges_nothing(
    node: Node,
) -> None:
    """The internal cache is empty then, and tells nothing of what only this node holds."""
    node.has(external=0, internal=0)
    node.on("-R", "exit 1")
    node.run("primary")
    node.on("-R", "")
    node.run("fault")
    assert node.asked.count("-t") == 0


def test_a_terminal_that_is_not_read_holds_no_lock(node: Node) -> None:
    """Somebody typed Ctrl-S, or the connection is the one that fails over: the next one acts."""
    terminal, end = pty.openpty()
    fill_terminal(end)
    first = node.start("primary", stderr=end)
    until(lambda: "-B" in node.asked, "the promotion has asked all it asks")
    assert node.run("backup").code == 0
    os.close(terminal)
    os.close(end)
    first.wait()


def fill_terminal(end: int) -> None:
    """Write until no more is taken, as when nobody reads."""

    def full() -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(end, b"x")
        # The kernel moves what was written on, and takes more, for a while.
        return not select.select([], [end], [], 0.2)[1]

    os.set_blocking(end, False)
    until(full, "the terminal takes no more")
    os.set_blocking(end, True)
