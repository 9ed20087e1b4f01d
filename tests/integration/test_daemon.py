"""The daemon dead, hung, unreachable, or killed half-way: what the hook does, with real ones."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.firewall import CONNTRACKD_CONF, Firewall
from tests.lab.moments import (
    become,
    in_mid_commit,
    inserted,
    replicated,
    reported,
    seen_from_here,
    step,
)
from tests.lab.pair import Lab

LOCK = "/run/conntrackd/conntrack.lock"
SOCKET = "/var/run/conntrackd.ctl"
"""As in the shipped conntrackd.conf."""
DIRECT = {"DisableExternalCache Off": "DisableExternalCache On"}

# A configuration of its own, that has nothing in common with the shipped one.
OTHER_CONF = """
General {
    HashSize 16384
    LogFile on
    LockFile /run/other.lock
    UNIX { Path /run/other.ctl }
}
Sync {
    Mode FTFW { }
    UDP { IPv4_address 127.0.0.1 IPv4_Destination_Address 127.0.0.1 Port 3781 Interface lo }
}
"""


def stop(firewall: Firewall, hook: subprocess.Popen[str]) -> None:
    """Stop a hook between two requests: the client that it may have started ends by itself."""
    hook.send_signal(signal.SIGSTOP)
    ours = firewall.hooks_running()

    def no_client() -> bool:
        children = (each for each in firewall.processes().values() if each.parent in ours)
        return not any(each.command - {""} for each in children)

    firewall.until(no_client, 20, "no client runs")


# -- killed -----------------------------------------------------------------------------------


def test_a_daemon_killed_in_mid_commit_is_started_again_and_what_the_kernel_got_is_reported(
    lab: Lab,
) -> None:
    """What was committed is counted by the kernel and sent to the peer; the rest died, and is
    neither guessed (expected is null) nor kept from the operator (degraded)."""
    pair = replicated(lab, 50_000)
    pair.fw2.cut("eth2")  # a peer that sends would send it again
    before = inserted(pair.fw2)
    dying = pair.fw2.conntrackd_pid
    victim = seen_from_here(pair.fw2, dying)

    hook = pair.fw2.start_hook("primary", "--json")
    with in_mid_commit(pair.fw2, before):
        os.kill(victim, signal.SIGKILL)
    hook.wait(timeout=60)

    event = reported(pair.fw2, hook)
    assert (hook.returncode, event["outcome"], event["expected"]) == (3, "degraded", None)
    assert event["recovered"] == inserted(pair.fw2) - before
    assert 0 < event["recovered"] < 50_000, "it was not killed in mid-commit"
    assert pair.fw2.conntrackd_pid != dying
    assert pair.fw2.internal() == event["recovered"]
    assert [step(event, name)["outcome"] for name in ("resync", "bulk-send")] == ["ok", "ok"]
    assert step(event, "flush")["attempts"] == 0


@pytest.mark.parametrize("end", ["kill_conntrackd", "stop_conntrackd"])
def test_a_backup_whose_conntrackd_ends_while_the_answer_arrives_holds_it_all_the_same(
    lab: Lab, end: str
) -> None:
    """The answer went into the former one's cache: a daemon that the hook or another program has
    started asks for it again."""
    pair = replicated(lab, 5000)
    pair.fw2.stop_conntrackd()
    pair.fw2.start_conntrackd()
    hook = pair.fw2.start_hook("backup", "--json")
    pair.fw2.until(lambda: pair.fw2.external() > 0, 20, "the answer arrives")
    stop(pair.fw2, hook)
    pair.fw2.until(lambda: pair.fw2.external() == 5000, 20, "the answer has arrived")

    getattr(pair.fw2, end)()
    if end == "stop_conntrackd":
        pair.fw2.start_conntrackd()
    hook.send_signal(signal.SIGCONT)
    hook.wait(timeout=60)

    event = reported(pair.fw2, hook)
    assert (event["outcome"], pair.fw2.external()) == ("ok", 5000)
    assert step(event, "request-resync")["reason"] == "5000 connections received from the peer"


def test_a_primary_whose_conntrackd_is_restarted_behind_its_bulk_has_not_proven_it(
    lab: Lab,
) -> None:
    """The successor's resend queue is empty: nothing in it was acknowledged."""
    pair = replicated(lab, 1000)
    pair.fw1.cut("eth2")  # the bulk waits in the queue, and the hook for the peer
    hook = pair.fw1.start_hook("primary", "--json")
    log = pair.fw1.path("/var/log/conntrackd.log")
    pair.fw1.until(lambda: "sending bulk update" in log.read_text(), 20, "sends")
    stop(pair.fw1, hook)

    pair.fw1.stop_conntrackd()
    pair.fw1.start_conntrackd()
    hook.send_signal(signal.SIGCONT)
    hook.wait(timeout=60)

    event = reported(pair.fw1, hook)
    sent = step(event, "bulk-send")
    assert (hook.returncode, sent["outcome"]) == (3, "degraded")
    assert sent["reason"].startswith("conntrackd was restarted meanwhile")


# -- stopped ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["primary", "backup", "fault"])
def test_a_hung_daemon_ends_a_transition_within_a_minute_and_leaves_no_child(
    lab: Lab, state: str
) -> None:
    """The client has no deadline of its own: a hook must not wait for ever, nor leave a client
    behind, and a daemon that comes to itself finds nothing harmful in its mail."""
    pair = replicated(lab, 1000)
    pair.fw2.load_entries(50, first=5000)
    pair.fw2.until(lambda: pair.fw2.internal() == 50, 20, "its own entries")
    daemon = pair.fw2.conntrackd_pid
    pair.fw2.signal(signal.SIGSTOP, daemon)

    began = time.monotonic()
    event = become(pair.fw2, state)

    assert time.monotonic() - began < 60
    assert (event["exit"], event["outcome"]) == (1, "failed")
    assert pair.fw2.pids("conntrackd") == [daemon], "a client was left behind"
    assert not pair.fw2.hooks_running()
    pair.fw2.signal(signal.SIGCONT, daemon)
    assert pair.fw2.external() == 1000
    assert pair.fw2.kernel_entries() >= 50
    log = pair.fw2.path("/var/log/conntrackd.log").read_text()
    assert "flushing" not in log


def test_a_promotion_that_met_a_hung_daemon_can_be_repeated_once_it_runs(lab: Lab) -> None:
    """The copies outlive the hang, so that the advice given then, to run it again, is good."""
    pair = replicated(lab, 1000)
    daemon = pair.fw2.conntrackd_pid
    pair.fw2.signal(signal.SIGSTOP, daemon)
    assert "run `ftfw-transition primary` again" in become(pair.fw2, "primary")["advice"]
    pair.fw2.signal(signal.SIGCONT, daemon)

    event = become(pair.fw2, "primary")

    assert (event["exit"], event["expected"], event["recovered"]) == (0, 1000, 1000)
    assert pair.fw2.kernel_entries() >= 1000


# -- dead -------------------------------------------------------------------------------------


def test_a_daemon_dead_at_promotion_is_started_and_the_loss_of_its_cache_is_reported(
    lab: Lab,
) -> None:
    """The lock file it left would make every start fail and logs nothing."""
    pair = replicated(lab, 1000)
    pair.fw2.cut("eth2")  # a peer that sends would send it again
    pair.fw2.kill_conntrackd()
    assert pair.fw2.path(LOCK).exists()
    assert pair.fw2.path(SOCKET).exists()

    event = become(pair.fw2, "primary")

    assert (event["exit"], event["outcome"]) == (3, "degraded")
    assert (event["expected"], event["recovered"]) == (None, 0)
    assert "external cache was lost" in event["reason"]
    assert pair.fw2.external() == 0
    assert "bulk-send" in [each["name"] for each in event["steps"] if each["outcome"] == "ok"]


def test_a_daemon_dead_at_promotion_loses_nothing_in_direct_mode(lab: Lab) -> None:
    """With DisableExternalCache the kernel table is the replica, and outlives the daemon."""
    pair = replicated(lab, 1000, direct=True, conntrackd=DIRECT)
    pair.fw2.kill_conntrackd()

    event = become(pair.fw2, "primary")

    assert (event["exit"], event["outcome"]) == (3, "degraded")
    assert (event["expected"], event["recovered"]) == (None, 0)
    assert event["kernel_entries"] == pair.fw2.kernel_entries() == 1000
    assert pair.fw2.internal() == 1000
    assert "cache was lost" not in event["reason"]


def test_a_peer_that_has_traffic_does_not_hold_up_what_it_sends_again(lab: Lab) -> None:
    """Its notifications never pause: what has arrived is committed in seconds."""
    pair = replicated(lab, 1000)
    assert become(pair.fw2, "backup")["outcome"] == "ok"
    pair.fw2.stop_conntrackd()
    pair.fw2.start_conntrackd()
    hook = pair.fw2.start_hook("primary", "--json")
    number = 5000
    while hook.poll() is None:
        pair.fw1.load_entries(1, first=number)
        number += 1

    event = reported(pair.fw2, hook)

    assert event["recovered"] >= 1000, event["reason"]
    assert step(event, "commit")["seconds"] < 15


@pytest.mark.parametrize("end", ["stop_conntrackd", "kill_conntrackd"])
@pytest.mark.parametrize("restarted", [True, False])
def test_what_a_backup_s_daemon_has_lost_comes_from_a_peer_that_lives(
    lab: Lab, end: str, *, restarted: bool
) -> None:
    """Its link or its keepalived has failed, not its conntrackd: it holds every connection."""
    pair = replicated(lab, 1000)
    assert become(pair.fw2, "backup")["outcome"] == "ok"
    getattr(pair.fw2, end)()
    if restarted:
        pair.fw2.hook("unlock")
        pair.fw2.start_conntrackd()
        assert pair.fw2.external() == 0

    event = become(pair.fw2, "primary")

    assert event["outcome"] == ("ok" if restarted else "degraded"), event["reason"]
    assert (event["recovered"], event["expected"]) == (1000, 1000)
    assert "the peer has sent 1000 connections" in event["reason"]
    assert pair.fw2.kernel_entries() >= 1000
    assert pair.fw2.external() == 0
    assert pair.fw2.internal() == 1000


def test_what_was_lost_while_nobody_asked_is_not_forgotten(lab: Lab) -> None:
    """conntrackd was down at a fault, and has been started since by somebody else."""
    pair = replicated(lab, 1000)
    assert become(pair.fw2, "backup")["outcome"] == "ok"
    pair.fw2.stop_conntrackd()
    become(pair.fw2, "fault")
    pair.fw2.start_conntrackd()

    event = become(pair.fw2, "primary")

    assert (event["recovered"], event["expected"]) == (1000, 1000), event["reason"]


def test_copies_whose_end_was_not_received_are_reported(lab: Lab) -> None:
    """The link was down for longer than conntrackd resends: what ended meanwhile stays a copy."""
    few = {"ResendQueueSize 524288": "ResendQueueSize 64"}
    pair = replicated(lab, 1000, conntrackd=few)
    for _ in range(2):
        assert "copies" not in become(pair.fw2, "backup")["reason"]
    pair.fw2.cut("eth2")
    pair.fw1.flush_kernel()
    pair.fw1.load_entries(500, first=5000)
    pair.fw2.fix("eth2")
    pair.fw2.until(lambda: pair.fw2.external() > 1000, 20, "is sent the newest ones again")

    assert (
        "500 connections received from the peer, beside 1000 copies"
        in (become(pair.fw2, "backup")["reason"])
    )


def test_what_nobody_holds_any_more_is_called_lost(lab: Lab) -> None:
    """The daemon was restarted, and the peer is dead: that is no clean promotion."""
    pair = replicated(lab, 1000)
    assert become(pair.fw2, "backup")["outcome"] == "ok"
    pair.fw2.stop_conntrackd()
    pair.fw2.start_conntrackd()
    pair.fw1.kill_conntrackd()

    event = become(pair.fw2, "primary")

    assert (event["outcome"], event["recovered"]) == ("degraded", 0)
    assert "the peer had not answered this conntrackd yet" in event["reason"]


@pytest.mark.parametrize(
    ("damage", "reports"),
    [
        (lambda text: text + "Nonsense\n", "Nonsense"),
        (lambda _: "", "no Sync section"),
        (lambda text: text[: text.index("General")] + "General {\n", "General does not end"),
    ],
    ids=["a typing error", "empty", "cut"],
)
def test_a_configuration_that_was_damaged_in_a_running_pair_costs_no_connection(
    lab: Lab, damage: Callable[[str], str], reports: str
) -> None:
    """The daemon has read it before; the client, which reads it again, is given what it needs."""
    pair = replicated(lab, 1000)
    assert become(pair.fw2, "backup")["outcome"] == "ok"
    conf = pair.fw2.path(CONNTRACKD_CONF)
    conf.write_text(damage(conf.read_text()))
    assert pair.fw2.client("-s", check=False).returncode == 1

    event = become(pair.fw2, "primary")

    assert (event["outcome"], event["recovered"]) == ("degraded", 1000)
    assert reports in event["reason"]
    assert [step["outcome"] for step in event["steps"]] == ["ok", "ok", "skipped", "ok", "ok"]
    assert pair.fw2.kernel_entries() >= 1000


def test_a_masked_unit_is_not_gone_around(lab: Lab) -> None:
    """Whoever masked it wants no conntrackd: the record reports how to have one again."""
    pair = replicated(lab, 10)
    pair.fw2.kill_conntrackd()
    with_systemd(pair.fw2, "")
    systemctl = pair.fw2.path("/usr/bin/systemctl")
    systemctl.write_text(systemctl.read_text().replace("LoadState=loaded", "LoadState=masked"))

    event = become(pair.fw2, "primary")

    assert event["outcome"] == "failed"
    assert "systemctl unmask conntrackd.service" in event["reason"]
    assert pair.fw2.pids("conntrackd", "-d") == []


def test_a_daemon_dead_at_a_demotion_is_started_and_gets_its_replica(lab: Lab) -> None:
    """A backup whose daemon died holds no copies: it needs both, the daemon and the peer's."""
    pair = replicated(lab, 1000)
    pair.fw2.kill_conntrackd()

    event = become(pair.fw2, "backup")

    assert pair.fw2.external() == 1000
    assert "start" in [each["name"] for each in event["steps"]]


def test_a_daemon_that_a_hook_has_started_does_not_hold_the_hook_s_lock(lab: Lab) -> None:
    """conntrackd closes nothing that it inherits: the next hook would wait for as long as it
    lives."""
    pair = replicated(lab, 10)
    pair.fw2.kill_conntrackd()

    become(pair.fw2, "primary")

    pair.fw2.run("flock", "--nonblock", "/run/ftfw-transition/lock", "true")
    descriptors = Path(f"/proc/{pair.fw2.pid}/root/proc/{pair.fw2.conntrackd_pid}/fd")
    opened = [str(each.readlink()) for each in descriptors.iterdir()]
    assert not [path for path in opened if "ftfw-transition" in path]


@pytest.mark.parametrize("state", ["fault", "stop"])
def test_neither_a_fault_nor_a_stop_ever_starts_the_daemon(lab: Lab, state: str) -> None:
    """A node that stands aside needs none; its lock file is left to who will."""
    pair = replicated(lab, 10)
    pair.fw2.kill_conntrackd()

    become(pair.fw2, state)

    assert pair.fw2.pids("conntrackd") == []
    assert pair.fw2.path(LOCK).exists()


# -- alive, but out of reach ------------------------------------------------------------------


def remove_socket(firewall: Firewall) -> None:
    """What a tidy-up of /run does."""
    firewall.path(SOCKET).unlink()


def move_socket(firewall: Firewall) -> None:
    """The daemon goes on listening, elsewhere."""
    firewall.run("mv", SOCKET, "/run/elsewhere.ctl")


def replace_socket(firewall: Firewall) -> None:
    """A second daemon came and went, and took the path."""
    firewall.path(SOCKET).unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(firewall.path(SOCKET)))


@pytest.mark.parametrize("lose", [remove_socket, move_socket, replace_socket])
def test_a_living_daemon_without_its_socket_is_named_and_not_touched(
    lab: Lab, lose: Callable[[Firewall], None]
) -> None:
    """A second daemon would steal the path, and leave the first one with the only copies for ever
    out of reach."""
    pair = replicated(lab, 1000)
    daemon = pair.fw2.conntrackd_pid
    lose(pair.fw2)
    here = pair.fw2.path(SOCKET)
    lock, left = pair.fw2.path(LOCK).stat(), here.exists() and here.stat()

    event = become(pair.fw2, "primary")

    assert (event["exit"], event["outcome"]) == (1, "failed")
    assert f"pid {daemon}" in event["reason"]
    assert pair.fw2.pids("conntrackd") == [daemon]
    assert pair.fw2.path(LOCK).stat() == lock
    assert (here.exists() and here.stat()) == left


def test_a_daemon_whose_program_was_upgraded_under_it_still_counts_as_alive(lab: Lab) -> None:
    """Its /proc/PID/exe then ends in " (deleted)"."""
    pair = lab()
    pair.fw2.run("sh", "-ec", "mkdir /tmp/old; cp /usr/sbin/conntrackd /tmp/old")
    pair.fw2.run("/tmp/old/conntrackd", "-d", "-C", CONNTRACKD_CONF)
    pair.fw2.run("rm", "/tmp/old/conntrackd", SOCKET)
    daemon = pair.fw2.conntrackd_pid

    event = become(pair.fw2, "primary")

    assert event["exit"] == 1
    assert f"pid {daemon}" in event["reason"]
    assert pair.fw2.pids("conntrackd") == [daemon]
    assert pair.fw2.path(LOCK).exists()


# -- what is no living daemon -----------------------------------------------------------------


def hung_client(firewall: Firewall) -> None:
    """A `conntrackd -s` that waits for the answer of another, stopped daemon."""
    firewall.path("/run/other.conf").write_text(OTHER_CONF)
    silent = (
        "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('/run/other.ctl');"
        " s.listen(); print('listening', flush=True); time.sleep(1000)"
    )
    server = firewall.start(sys.executable, "-c", silent)
    firewall.until(lambda: firewall.output(server), 10, "a silent daemon listens")
    firewall.start("conntrackd", "-C", "/run/other.conf", "-s")
    firewall.until(lambda: firewall.pids("conntrackd", "-s"), 10, "a client waits")


def zombie(firewall: Firewall) -> None:
    """A conntrackd that has ended, and whose parent does not care."""
    careless = (
        "import subprocess, time, os; p = subprocess.Popen(['conntrackd', '-v'],"
        " stdout=subprocess.DEVNULL); os.waitid(os.P_PID, p.pid, os.WEXITED | os.WNOWAIT);"
        " print(p.pid, flush=True); time.sleep(1000)"
    )
    parent = firewall.start(sys.executable, "-c", careless)
    firewall.until(lambda: firewall.output(parent), 10, "a zombie")
    pid = firewall.output(parent).strip()
    stat = Path(f"/proc/{firewall.pid}/root/proc/{pid}/stat").read_text()
    assert "(conntrackd) Z" in stat


def daemon_elsewhere(firewall: Firewall) -> None:
    """A daemon of another network namespace, such as a container's."""
    firewall.path("/run/other.conf").write_text(OTHER_CONF)
    start = "ip link set lo up; exec conntrackd -d -C /run/other.conf"
    firewall.run("unshare", "--net", "sh", "-ec", start)
    firewall.run("conntrackd", "-C", "/run/other.conf", "-s")


@pytest.mark.parametrize("bystander", [hung_client, zombie, daemon_elsewhere])
def test_what_is_no_living_daemon_of_this_node_does_not_stop_a_start(
    lab: Lab, bystander: Callable[[Firewall], None]
) -> None:
    """Or the promotion would fail because of somebody who has nothing to do with it."""
    pair = replicated(lab, 10)
    pair.fw2.kill_conntrackd()
    bystander(pair.fw2)

    event = become(pair.fw2, "primary")

    assert event["outcome"] == "degraded", event["reason"]
    assert pair.fw2.external() == 0
    assert step(event, "start")["outcome"] == "ok"


# -- how it is started ------------------------------------------------------------------------

# What systemctl(1) reports of a unit, and a start that is real.
SYSTEMCTL = """#!/bin/sh
echo "$*" >>/run/systemctl-calls
case $1 in
show)
    echo LoadState=loaded
    echo "ExecStart={ path=/usr/sbin/conntrackd ; argv[]=/usr/sbin/conntrackd@WORDS@ ; \
ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }"
    ;;
start) exec /usr/sbin/conntrackd -d -C /etc/conntrackd/conntrackd.conf ;;
esac
"""


def with_systemd(firewall: Firewall, arguments: str) -> None:
    """Make the node look as if systemd ran there, with a unit that has this command line."""
    # Without the machine's own one, which may be a link to somewhere else.
    firewall.run("sh", "-ec", "mkdir -p /run/systemd/system; rm -f /usr/bin/systemctl")
    systemctl = firewall.path("/usr/bin/systemctl")
    systemctl.write_text(SYSTEMCTL.replace("@WORDS@", arguments))
    systemctl.chmod(0o755)


def systemctl_verbs(firewall: Firewall) -> list[str]:
    """What systemctl has been asked, in order."""
    calls = Path(f"/proc/{firewall.pid}/root/run/systemctl-calls")
    return [line.split()[0] for line in calls.read_text().splitlines()] if calls.exists() else []


@pytest.mark.parametrize("arguments", ["", " -C /etc/conntrackd/conntrackd.conf"])
def test_the_unit_is_started_where_it_runs_this_configuration(lab: Lab, arguments: str) -> None:
    """systemd then knows its daemon; it would refuse after a series of crashes without
    reset-failed, and for ever with the stale lock."""
    pair = replicated(lab, 10)
    pair.fw2.kill_conntrackd()
    with_systemd(pair.fw2, arguments)

    event = become(pair.fw2, "primary")

    assert systemctl_verbs(pair.fw2) == ["show", "reset-failed", "start"]
    assert event["outcome"] == "degraded"
    assert pair.fw2.external() == 0
    assert "systemctl start" in step(event, "start")["command"]


def test_a_unit_of_another_configuration_is_left_alone(lab: Lab) -> None:
    """Starting it would start another daemon, and not the one that keepalived's hook speaks to."""
    pair = replicated(lab, 10)
    pair.fw2.kill_conntrackd()
    with_systemd(pair.fw2, " -C /etc/conntrackd/other.conf")

    event = become(pair.fw2, "primary")

    assert systemctl_verbs(pair.fw2) == ["show"]
    assert pair.fw2.external() == 0
    assert "conntrackd.conf -d" in step(event, "start")["command"]


def test_a_daemon_started_by_a_real_time_keepalived_lives(lab: Lab) -> None:
    """keepalived with vrrp_rt_priority leaves its hooks no real-time allowance, and conntrackd is a
    real-time process: with what it inherits, the kernel would kill it and logs nothing."""
    pair = replicated(lab, 5000)
    pair.fw2.kill_conntrackd()
    # keepalived's is 0:0. Raising the second number takes CAP_SYS_RESOURCE, which root of a
    # container may lack: there the first one does the same harm, and raising that is free.
    raised = ("prlimit", "--rttime=0:0", "prlimit", "--rttime=unlimited", "true")
    none = "0:0" if pair.fw2.run(*raised, check=False).returncode == 0 else "0:unlimited"

    pair.fw2.run("prlimit", f"--rttime={none}", "ftfw-transition", "primary", check=False)

    assert pair.fw2.pids("conntrackd", "-d"), "it was killed"
    # Work for the daemon: real-time work is what the limit is about.
    pair.fw1.client("-B")
    pair.fw2.until(lambda: pair.fw2.external() == 5000, 10, "the peer's copies")
    pair.fw2.client("-c")
    assert pair.fw2.kernel_entries() >= 5000
    assert pair.fw2.pids("conntrackd", "-d"), "it was killed at work"
