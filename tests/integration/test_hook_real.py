"""The hook as keepalived runs it, and against bad input: it reports it and harms nobody."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.firewall import CONNTRACKD_CONF, Firewall
from tests.lab.journal import Message
from tests.lab.moments import in_mid_commit, inserted, replicated, reported
from tests.lab.pair import Lab, Pair

RUN_DIR = "/run/ftfw-transition"
LOG = "/dev/log"
STATES = ("primary", "backup", "fault")

STATS_ONLY = """
General {
    HashSize 16384
    LockFile /run/conntrackd/conntrack.lock
    UNIX { Path /var/run/conntrackd.ctl }
}
Stats { LogFile on }
"""
GENERAL_ONLY = STATS_ONLY.replace("Stats { LogFile on }\n", "")


def file_of(firewall: Firewall, path: str) -> Path:
    """A file of the firewall, which runs nothing for it; no part of the path may be a link."""
    return Path(f"/proc/{firewall.pid}/root{path}")


def record(firewall: Firewall) -> dict[str, Any]:
    """The last transition, as the run directory remembers it."""
    return dict(json.loads(file_of(firewall, f"{RUN_DIR}/last.json").read_text()))


def recorded(firewall: Firewall, state: str) -> bool:
    """Say whether the last transition on record went to a state."""
    path = file_of(firewall, f"{RUN_DIR}/last.json")
    return path.exists() and json.loads(path.read_text())["state"] == state


def lines(firewall: Firewall) -> list[Message]:
    """What the hook has logged."""
    return [line for line in firewall.journal() if line.identifier == "ftfw-transition"]


def outcomes(firewall: Firewall, state: str) -> list[tuple[int, str]]:
    """The priority and outcome of every final event of one state in the log."""
    events = [(line.priority, json.loads(line.message)) for line in lines(firewall)]
    return [
        (priority, event["outcome"])
        for priority, event in events
        if (event["message"], event["state"]) == ("transition.finished", state)
    ]


def lock_is_free(firewall: Firewall) -> bool:
    """Say whether the next one would get the lock at once."""
    argv = ("flock", "--nonblock", f"{RUN_DIR}/lock", "true")
    return firewall.run(*argv, check=False).returncode == 0


# -- as keepalived runs it --------------------------------------------------------------------


def test_the_run_directory_is_usable_under_keepalived_s_umask(pair: Pair) -> None:
    """0177 makes a directory that nobody may enter; ours is root's to enter and nobody else's."""
    found = file_of(pair.fw1, RUN_DIR).stat()

    assert (found.st_mode & 0o7777, found.st_uid) == (0o700, 0)
    assert record(pair.fw1)["state"] == "primary"
    assert lock_is_free(pair.fw1)


def test_a_hook_whose_stdio_is_dev_null_logs_to_the_system_s_log(pair: Pair) -> None:
    """Every line under our name, at daemon.info where all is well, and JSON as it stands."""
    pair.fw2.until(lambda: (30, "ok") in outcomes(pair.fw2, "backup"), 10, "it is logged")

    logged = lines(pair.fw2)
    assert {line.priority for line in logged} == {30}
    events = [json.loads(line.message) for line in logged]
    assert {event["message"] for event in events} == {"step.finished", "transition.finished"}
    assert len({event["transition"] for event in events}) == 1


def test_what_is_degraded_is_logged_as_a_warning(lab: Lab) -> None:
    """So that `journalctl -p warning` shows it."""
    pair = lab()
    pair.fw2.start_conntrackd()
    pair.fw2.run("sh", "-ec", f"mkdir {RUN_DIR}; chmod 1777 {RUN_DIR}")
    pair.fw2.start_keepalived()

    pair.fw2.until(lambda: outcomes(pair.fw2, "primary"), 20, "it is alone and takes over")

    assert outcomes(pair.fw2, "primary") == [(28, "degraded")]


def test_what_has_failed_is_logged_as_an_error(lab: Lab) -> None:
    """So that `journalctl -p err` shows it."""
    pair = lab()
    pair.fw2.path(CONNTRACKD_CONF).write_text("Sync { Nonsense }\n")
    pair.fw2.start_keepalived()

    pair.fw2.until(lambda: outcomes(pair.fw2, "backup"), 20, "it fails")

    assert outcomes(pair.fw2, "backup") == [(27, "failed")]


def test_stop_leaves_its_record_before_keepalived_goes(pair: Pair) -> None:
    """keepalived waits for one second, and ends what is still running then."""
    pair.fw1.stop_keepalived()

    assert pair.fw1.hook_calls()[-1] == "stop"
    assert (record(pair.fw1)["state"], record(pair.fw1)["outcome"]) == ("stop", "ok")
    pair.fw1.until(lambda: outcomes(pair.fw1, "stop") == [(30, "ok")], 20, "it is logged")


def test_a_hook_that_outlives_keepalived_shows_what_ended_it(lab: Lab) -> None:
    """keepalived's death is a SIGTERM for every hook that runs; none may end with half a story, or
    with the lock."""
    pair = lab()
    pair.fw1.start_conntrackd()
    pair.fw1.start_keepalived()
    pair.fw1.until(pair.fw1.is_master, 20, "there is a master already")
    pair.fw2.start_conntrackd()
    pair.fw2.cut("eth2")
    pair.fw2.start_keepalived()
    log = pair.fw2.path("/var/log/conntrackd.log")
    pair.fw2.until(lambda: "resync requested" in log.read_text(), 20, "it waits for its peer")

    pair.fw2.kill_keepalived()

    pair.fw2.until(lambda: not pair.fw2.hooks_running(), 10, "it ends")
    assert recorded(pair.fw2, "backup")
    assert record(pair.fw2)["outcome"] == "failed"
    assert "SIGTERM" in record(pair.fw2)["reason"]
    pair.fw2.until(lambda: outcomes(pair.fw2, "backup") == [(27, "failed")], 20, "it is logged")
    assert lock_is_free(pair.fw2)


def test_a_promotion_that_is_ended_while_the_daemon_hangs_shows_so(lab: Lab) -> None:
    """The signal comes while the client waits for an answer, which it may not do for ever."""
    pair = replicated(lab, 100)
    daemon = pair.fw2.conntrackd_pid
    pair.fw2.signal(signal.SIGSTOP, daemon)
    hook = pair.fw2.start_hook("primary", "--json")
    pair.fw2.until(lambda: pair.fw2.pids("conntrackd", "-c"), 20, "it asks for a commit")

    hook.terminate()

    assert hook.wait(timeout=30) == 1
    event = reported(pair.fw2, hook)
    assert event["outcome"] == "failed"
    assert "SIGTERM" in event["reason"]
    assert pair.fw2.pids("conntrackd") == [daemon], "a client was left behind"
    assert lock_is_free(pair.fw2)


def test_a_commit_in_hand_is_finished_though_keepalived_has_gone(lab: Lab) -> None:
    """Half a commit is of no use: what was recovered is reported, and the signal too."""
    pair = replicated(lab, 50_000)
    before = inserted(pair.fw2)
    hook = pair.fw2.start_hook("primary", "--json")

    with in_mid_commit(pair.fw2, before):
        hook.terminate()
    hook.wait(timeout=60)

    event = reported(pair.fw2, hook)
    assert event["recovered"] == event["expected"] == 50_000
    assert pair.fw2.kernel_entries() == 50_000
    assert "SIGTERM" in event["reason"]
    assert lock_is_free(pair.fw2)


# -- the log ----------------------------------------------------------------------------------


@contextlib.contextmanager
def silent_log(firewall: Firewall) -> Iterator[None]:
    """A log socket that nobody reads any more, and that is full."""
    path = firewall.path(LOG)
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hung:
        hung.bind(str(path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as writer:
            writer.connect(str(path))
            with contextlib.suppress(BlockingIOError):
                while True:
                    writer.send(b"<30>full")
        yield


def test_without_a_log_socket_the_events_are_json_on_stderr(lab: Lab) -> None:
    """Then whoever runs it can at least read them."""
    pair = replicated(lab, 10)
    pair.fw2.path(LOG).unlink()

    hook = pair.fw2.hook("primary")

    events = [json.loads(line) for line in hook.stderr.splitlines()]
    assert hook.returncode == 0
    assert [event["message"] for event in events[:-1]] == ["step.finished"] * (len(events) - 1)
    assert (events[-1]["message"], events[-1]["recovered"]) == ("transition.finished", 10)


def test_a_log_that_nobody_reads_delays_nothing(lab: Lab) -> None:
    """Not a transition, whose peer has just died, may wait for journald."""
    pair = replicated(lab, 1000)
    pair.fw2.cut("eth2")

    def seconds() -> float:
        began = time.monotonic()
        assert pair.fw2.hook("primary").returncode == 0
        return time.monotonic() - began

    seconds()  # the first one commits, those that follow do not
    good = seconds()
    with silent_log(pair.fw2):
        hung = seconds()

    assert hung < 3 * good + 2
    assert record(pair.fw2)["outcome"] == "ok"


# -- bad input --------------------------------------------------------------------------------


def damage(firewall: Firewall, kind: str) -> None:
    """Make the configuration something that it must not be."""
    path = firewall.path(CONNTRACKD_CONF)
    text = path.read_bytes()
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        contents = {
            "empty": b"",
            "NULs": b"\0" * 4096,
            "high bytes": bytes(range(128, 256)) * 16,
            "NULs amid": text.replace(b"PurgeTimeout", b"Purge\0\0Timeout"),
            "Stats only": STATS_ONLY.encode(),
            "General only": GENERAL_ONLY.encode(),
            "syntax error": b"Sync { Mode FTFW { Nonsense } }\n",
            "long socket path": text.replace(b"conntrackd.ctl", b"c" * 200),
        }
        path.write_bytes(contents[kind])


def client_s_words(firewall: Firewall) -> str:
    """What the client itself reports of the configuration: the end of its line."""
    answer = firewall.client("-s", check=False).stderr
    return answer.strip().splitlines()[-1].rpartition("] ")[2]


SPOILT = (
    "missing",
    "empty",
    "directory",
    "NULs",
    "high bytes",
    "NULs amid",
    "Stats only",
    "General only",
    "syntax error",
    "long socket path",
)


@pytest.mark.parametrize("kind", SPOILT)
def test_a_bad_configuration_is_one_clear_line_and_loses_nothing(lab: Lab, kind: str) -> None:
    """The daemon that runs has read a better one: its copies and the kernel's entries stay, until
    the file is fixed and the same command succeeds."""
    pair = replicated(lab, 100)
    pair.fw2.load_entries(5, first=500)
    good = pair.fw2.path(CONNTRACKD_CONF).read_bytes()
    damage(pair.fw2, kind)

    for state in STATES:
        hook = pair.fw2.hook(state)
        assert hook.returncode == 1, f"{state}: {hook.stderr}"
        (line,) = hook.stderr.splitlines()
        assert line.startswith("ftfw-transition: "), state
        assert len(line) > len("ftfw-transition: "), state
        assert pair.fw2.kernel_entries() == 5, state

    pair.fw2.run("rm", "-rf", CONNTRACKD_CONF)
    pair.fw2.path(CONNTRACKD_CONF).write_bytes(good)
    assert pair.fw2.external() == 100
    assert pair.fw2.hook_json("primary")["recovered"] == 100


@pytest.mark.parametrize("kind", ["missing", "directory", "syntax error", "long socket path"])
@pytest.mark.parametrize("state", STATES)
def test_a_file_that_the_client_refuses_gets_the_client_s_own_message(
    lab: Lab, kind: str, state: str
) -> None:
    """It names which line and why, better than we could."""
    pair = lab()
    damage(pair.fw2, kind)
    arguments = client_s_words(pair.fw2)
    assert arguments

    hook = pair.fw2.hook(state)

    assert hook.returncode == 1
    assert arguments in hook.stderr


@pytest.mark.parametrize("conf", [STATS_ONLY, GENERAL_ONLY], ids=["Stats", "General"])
def test_a_daemon_that_does_not_replicate_gets_advice(lab: Lab, conf: str) -> None:
    """There is nothing to fail over, and that is reported though the daemon lives and answers."""
    pair = lab(conntrackd=conf)
    pair.fw2.start_conntrackd()
    pair.fw2.load_entries(50)

    for state in STATES:
        hook = pair.fw2.hook(state)
        assert hook.returncode == 1, state
        assert "Sync" in hook.stderr, state
    assert "Sync" in record(pair.fw2)["advice"]
    assert pair.fw2.kernel_entries() == 50


@pytest.mark.parametrize(
    ("option", "value", "status"),
    [
        ("--config", "conntrackd.conf", 2),
        ("--conntrackd", "sbin/conntrackd", 2),
        ("--run-dir", "run", 2),
        ("--config", "/etc/" + "long/" * 1000, 1),
        ("--conntrackd", "/usr/" + "long/" * 1000, 1),
        ("--conntrackd", "/usr/sbin", 1),
        ("--conntrackd", "/usr/sbin/missing", 1),
        ("--conntrackd", "/etc/passwd", 1),
        ("--run-dir", "/run/" + "long/" * 1000, 3),
        ("--run-dir", "/etc/passwd", 3),
    ],
)
def test_a_bad_path_is_one_clear_line_and_loses_nothing(
    lab: Lab, option: str, value: str, status: int
) -> None:
    """Usage ends it; a bad client or file fails; a bad run directory never stops a promotion."""
    pair = replicated(lab, 100)

    hook = pair.fw2.hook(option, value, "primary")

    assert hook.returncode == status, hook.stderr
    (line,) = hook.stderr.splitlines()
    assert line.startswith("ftfw-transition: ")
    committed = status == 3
    assert pair.fw2.kernel_entries() == (100 if committed else 0)
    assert pair.fw2.external() == (0 if committed else 100)


def test_a_run_directory_that_others_can_write_stops_no_promotion(lab: Lab) -> None:
    """Its lock and its record could be anybody's: none is used, and the operator is reported."""
    pair = replicated(lab, 100)
    pair.fw2.run("sh", "-ec", f"mkdir {RUN_DIR}; chmod 1777 {RUN_DIR}")

    hook = pair.fw2.hook("primary", "--json")

    event = json.loads(hook.stdout)
    assert (hook.returncode, event["outcome"], event["recovered"]) == (3, "degraded", 100)
    assert RUN_DIR in hook.stderr
    assert len(hook.stderr.splitlines()) == 1
    assert pair.fw2.run("ls", "-A", RUN_DIR).stdout == ""


@pytest.mark.parametrize("state", ["backup", "fault"])
def test_nothing_is_purged_without_a_trusted_run_directory(lab: Lab, state: str) -> None:
    """Without a lock nobody knows whether a newer promotion is at work."""
    pair = replicated(lab, 100)
    pair.fw2.run("sh", "-ec", f"mkdir {RUN_DIR}; chmod 1777 {RUN_DIR}")

    hook = pair.fw2.hook(state)

    assert RUN_DIR in hook.stderr
    assert len(hook.stderr.splitlines()) == 1
    assert "flushing conntrack table" not in pair.fw2.path("/var/log/conntrackd.log").read_text()
    assert pair.fw2.external() == 100
