"""The command line: usage, causes, how a transition ends, and what a terminal shows."""

from __future__ import annotations

import json
import os
import pty
import shutil
from pathlib import Path

import click
import pytest

from primary_backup.commands.main import command
from tests.fake.cli import in_mid_commit, promoted
from tests.fake.node import HOOK, Node

_CONTEXT = click.Context(command)
COMMANDS = ", ".join(command.list_commands(_CONTEXT))


# -- usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
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
def test_a_notification_that_means_nothing_asks_nothing(node: Node, typed: tuple[str, ...]) -> None:
    """Exit 2, one line of advice on stderr, nothing asked of conntrackd."""
    ended = node.run(*typed)
    assert ended.code == 2
    assert len(ended.lines) == 1
    assert node.calls == []


@pytest.mark.parametrize(
    ("typed", "advice"),
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
def test_a_usage_error_reports_what_was_expected_there(
    node: Node, typed: tuple[str, ...], advice: str
) -> None:
    """The commands are listed where none of them was given; else the help of the one is named."""
    (line,) = node.run(*typed).lines
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
    ("typed", "variable"),
    [
        (("primary",), "PRIMARY_DRY_RUN"),
        (("primary",), "PRIMARY_AS_JSON"),
        (("notify", "G1", "MASTER"), "NOTIFY_DRY_RUN"),
        (("notify", "G1", "MASTER"), "NOTIFY_AS_JSON"),
    ],
)
def test_no_variable_turns_a_promotion_into_output(
    node: Node, typed: tuple[str, ...], variable: str
) -> None:
    """Whatever /etc/default/keepalived or `sudo -E` brings along, a promotion commits."""
    ended = node.spawn(node.arguments(*typed), {f"FTFW_TRANSITION_{variable}": "1"}).wait()
    assert node.asked == ["-c", "-f", "-R", "-B"]
    assert ended.out == ""


@pytest.mark.parametrize("typed", [("primary",), ("--run-dir", "/run/x", "stop"), ("bogus",)])
@pytest.mark.parametrize("instruction", ["bash_source", "bash_complete", "bogus"])
def test_a_completion_variable_changes_no_command(
    node: Node, typed: tuple[str, ...], instruction: str
) -> None:
    """A shell that completes calls the command without arguments: with some, it is a command."""
    environment = {"COMP_WORDS": "ftfw-transition pri", "COMP_CWORD": "1"}
    arguments = node.arguments(*typed)
    plain = node.spawn(arguments, environment).wait()
    asked = node.asked
    (node.world / "calls").unlink(missing_ok=True)
    environment["_FTFW_TRANSITION_COMPLETE"] = instruction
    ended = node.spawn(arguments, environment).wait()
    assert (ended.code, ended.out) == (plain.code, "")
    assert typed != ("primary",) or asked == ["-c", "-f", "-R", "-B"]
    assert ended.events[-1]["message"] == plain.events[-1]["message"]


def test_a_shell_completes_a_command(node: Node) -> None:
    """Without arguments the variable asks for a script, or for what `pri` may become."""
    variable = "_FTFW_TRANSITION_COMPLETE"
    script = node.spawn([str(HOOK)], {variable: "bash_source"}).wait()
    typed = {"COMP_WORDS": "ftfw-transition pri", "COMP_CWORD": "1"}
    completed = node.spawn([str(HOOK)], {variable: "bash_complete", **typed}).wait()
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


@pytest.mark.parametrize("typed", [("primary",), ("notify", "GROUP", "G1", "MASTER")])
@pytest.mark.parametrize("parent", ["keepalived", "another program"])
def test_the_cause_shows_a_hook_from_a_typed_command(
    node: Node, tmp_path: Path, parent: str, typed: tuple[str, ...]
) -> None:
    """A hook is a child of the installed keepalived, by its executable."""
    shell = shutil.which("sh")
    assert shell is not None
    keepalived = Path(shutil.copy(shell, tmp_path / "keepalived"))
    runs = str(keepalived) if parent == "keepalived" else shell
    arguments = node.arguments("--keepalived", str(keepalived), *typed)
    ended = node.spawn([runs, "-c", '"$@"; exit $?', "sh", *arguments]).wait()
    who = "keepalived hook" if parent == "keepalived" else "command"
    assert ended.event["cause"] == f"{who}: {' '.join(typed)}"


# -- how a transition ends ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        (("primary",), ["-c", "-f", "-R", "-B"]),
        (("notify", "GROUP", "G1", "MASTER", "0"), ["-c", "-f", "-R", "-B"]),
        (("notify", "INSTANCE", "VI_1", "MASTER_RX_LOWER_PRI", "150"), ["-f internal", "-R", "-B"]),
        (("notify", "GROUP", "G1", "BACKUP", "0"), ["-n", "-n", "-t"]),
        (("fault",), ["-t"]),
        (("notify", "G1", "FAULT"), ["-t"]),
        (("stop",), []),
        (("notify", "GROUP", "G1", "STOP", "0"), []),
        (("notify", "INSTANCE", "VI_1", "DELETED", "100"), []),
    ],
)
def test_a_state_and_keepalived_s_notification_for_it_do_the_same(
    node: Node, typed: tuple[str, ...], asked: list[str]
) -> None:
    """Each is one transition, which ends ok where the peer lives and covers what is here."""
    node.has(holds=3, internal=3, external=3)
    ended = node.run(*typed)
    assert (ended.code, ended.event["outcome"]) == (0, "ok")
    assert node.asked == asked


@pytest.mark.parametrize("state", ["primary", "stop"])
def test_the_final_event_carries_everything(node: Node, state: str) -> None:
    """One canonical event: what, how it ended, why, how long, what was recovered, every step."""
    node.has(holds=3)
    event = node.run(state).event
    assert event.keys() >= {
        "transition", "state", "outcome", "reason", "seconds", "expected", "recovered",
        "kernel_entries", "waited_seconds", "steps",
    }  # fmt: skip
    for step in event["steps"]:
        assert step.keys() >= {"name", "command", "outcome", "attempts", "seconds"}
    assert event["state"] == state
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


def test_a_degraded_promotion_exits_3_and_reports_what_to_type(node: Node) -> None:
    """1000 expected, none in the kernel: degraded, the cache is kept, and there is advice."""
    node.has(external=1_000)
    ended = node.run("primary")
    assert (ended.code, ended.event["outcome"]) == (3, "degraded")
    assert (ended.event["expected"], ended.event["recovered"]) == (1_000, 0)
    assert "conntrackd -c" in ended.event["advice"]
    assert node.asked == ["-c", "-f internal", "-R", "-B"]


def test_a_left_cache_is_dropped_by_the_next_backup(node: Node) -> None:
    """Once the peer has sent all that is here: -f external, and only then the asking -n."""
    node.has(external=1_000)
    assert node.run("primary").code == 3
    node.has(internal=300, holds=300)
    assert node.run("backup").code == 0
    asked = node.asked[4:]
    dropped = asked.index("-f external")
    assert "-n" in asked[dropped:]
    assert node.number("external") == 300


def test_a_left_cache_stops_a_backup_s_purge(node: Node) -> None:
    """The peer has less than is here: the copy stays, and nothing is purged."""
    node.has(external=1_000)
    node.run("primary")
    node.has(internal=300, holds=100)
    node.run("backup")
    assert not {"-f external", "-t"} & set(node.asked)


def test_a_left_cache_of_a_dead_daemon_is_forgotten(node: Node) -> None:
    """Another socket is another daemon, whose cache holds nothing of an old promotion."""
    node.has(external=1_000)
    node.run("primary")
    node.socket.rename(node.world / "old")
    node.socket.touch()
    node.has(external=0, holds=3)
    node.run("backup")
    assert node.asked[4:] == ["-n", "-n", "-t"]


def test_a_fault_disarms_the_purge_of_a_backup(node: Node) -> None:
    """A link that bounces: BACKUP arms the purge, and FAULT must not let it fire."""
    node.has(internal=3, holds=3)
    node.run("backup")
    node.has(external=0)
    node.run("fault")
    assert node.asked == ["-n", "-n", "-t", "-f internal", "-R"]


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


# -- stop ---------------------------------------------------------------------------------------


def test_a_stop_waits_for_nobody(node: Node) -> None:
    """keepalived kills it after 1 s: it takes no lock, asks nothing, and leaves its record."""
    primary = in_mid_commit(node)
    ended = node.start("stop").wait(within=5)
    assert (ended.code, ended.event["state"]) == (0, "stop")
    assert json.loads(node.last)["state"] == "stop"
    assert node.asked == ["-c"]
    node.release("go")
    assert primary.wait().code == 0


def test_a_stop_reads_no_configuration(node: Node) -> None:
    """It asks nothing, so that nothing can be wrong with what it would ask."""
    ended = node.run("--config", "/nowhere", "--conntrackd", "/nowhere", "stop")
    assert (ended.code, ended.lines) == (0, [])


# -- on a terminal ------------------------------------------------------------------------------


def on_terminal(node: Node, *typed: str) -> tuple[int, str]:
    """Run a hook whose stderr is a terminal; returns its exit status and what was written."""
    terminal, end = pty.openpty()
    hook = node.start(*typed, stderr=end)
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


def test_a_person_is_advised_what_to_type_next(node: Node) -> None:
    """A degraded promotion ends with its advice."""
    node.has(external=1_000)
    code, written = on_terminal(node, "primary")
    assert code == 3
    assert "conntrackd -c" in written.splitlines()[-1]


def test_a_wrong_notification_on_a_terminal_is_one_line_too(node: Node) -> None:
    """One line of advice, and no traceback."""
    code, written = on_terminal(node, "bogus")
    assert code == 2
    assert len(written.splitlines()) == 1
