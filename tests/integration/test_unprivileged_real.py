"""What a local user of a firewall can do to its failover: nothing; and what cannot be identified.

The user has uid 65534 and no group. Whatever it names its programs, creates in directories that all
may write, or starts in numbers, promotions and purges go as without it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab.firewall import CONNTRACKD_CONF, RUN_DIR, Firewall
from tests.lab.moments import asked, become, ended, finished, replicated, step
from tests.lab.node import UNPRIVILEGED
from tests.lab.pair import Lab, Pair, Wiring
from tests.waiting import stays

COUNT = 200
PURGE_SECONDS = 3
PURGES_SOON = {"PurgeTimeout 60": f"PurgeTimeout {PURGE_SECONDS}"}
WITHIN = 20
"""Seconds for what takes two or three on a machine with nothing else to do."""
HEALED = 40
"""Seconds for what an idle follower observes at one of its polls, every 5 s, and sees to."""
POLLS = 12
"""Seconds in which it polls twice at least."""

NO_PTRACE = ("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", "--")
SHARED = "/run/lab/shared"
"""A directory that all may write, as /tmp and /var/lock are."""
DUMPS = "/run/lab/tmp"
"""Where keepalived writes its dump."""


@pytest.fixture
def wiring() -> Wiring:
    """All tests here follow."""
    return "fifo"


def share(firewall: Firewall) -> None:
    """Make a directory that all may write."""
    firewall.run("mkdir", "-m", "1777", SHARED)


def named(firewall: Firewall, name: str) -> str:
    """A program of that name, which does nothing for a while; its path."""
    firewall.run("mkdir", "-p", "-m", "755", f"/tmp/{name}")
    path = f"/tmp/{name}/{name}"
    firewall.run("cp", "/bin/sleep", path)
    return path


@contextmanager
def running(firewall: Firewall, *arguments: str, number: int = 1) -> Iterator[list[int]]:
    """Processes of the firewall, by its own numbers, that do nothing until they are ended."""
    name = Path(arguments[-1]).name
    known = set(firewall.pids(name))
    started = [firewall.start(*arguments, "600") for _ in range(number)]

    def pids() -> list[int]:
        found = firewall.processes()
        return [
            pid
            for pid in set(firewall.pids(name, "600")) - known
            if arguments[-1] in found[pid].command and "--" not in found[pid].command
        ]

    firewall.until(lambda: len(pids()) == number, what=f"{number} of {name} run")
    try:
        yield pids()
    finally:
        for process in started:
            process.kill()
            process.wait()


def covered(lab: Lab) -> Pair:
    """A live primary, each of whose connections is also among the peer's own."""
    pair = lab(wiring="fifo", conntrackd=PURGES_SOON).start()
    pair.fw1.load_entries(COUNT)
    pair.fw2.load_entries(COUNT)
    for firewall in (pair.fw1, pair.fw2):
        firewall.until(lambda: firewall.external() >= COUNT, 90, "holds the copies")  # noqa: B023
    pair.fw1.stop_follower()  # which might revert what is typed here
    return pair


def keeps_every_entry(firewall: Firewall) -> None:
    """See that no purge fires."""
    stays(
        lambda: firewall.kernel_entries() >= COUNT,
        seconds=PURGE_SECONDS + 1, what="has every entry",
    )  # fmt: skip


# -- processes that are named like a daemon --------------------------------------------------------


def test_a_users_processes_named_keepalived_neither_delay_nor_blind_a_promotion(lab: Lab) -> None:
    """However many there are: they are not asked, not counted and not executed."""
    pair = lab(wiring="fifo").start()
    pair.fw1.load_entries(COUNT)
    pair.fw2.until(lambda: pair.fw2.external() >= COUNT, 90, "holds the copies")
    with running(pair.fw2, *UNPRIVILEGED, named(pair.fw2, "keepalived"), number=30):
        pair.fw2.stop_follower()
        pair.fw2.start_follower()
        reported = pair.fw2.events("keepalived.asked")[-1]
        assert (reported["outcome"], reported["reason"].rpartition("; ")[2]) == (
            "ok",
            "keepalived reports backup",
        )

        pair.fw1.cut()

        promoted = finished(pair.fw2, "primary")[0]
        assert promoted["recovered"] >= COUNT
        assert promoted["outcome"] == "ok"
    assert pair.fw2.events("keepalived.unasked") == []


def test_a_users_process_named_conntrackd_keeps_no_daemon_from_being_started(lab: Lab) -> None:
    """Nor a dead daemon's lock from being removed."""
    pair = replicated(lab, COUNT)
    with running(pair.fw2, *UNPRIVILEGED, named(pair.fw2, "conntrackd")):
        pair.fw2.kill_conntrackd()
        assert "removed" in pair.fw2.hook("unlock", check=True).stdout

        event = become(pair.fw2, "primary")

    assert step(event, "start")["outcome"] == "ok"
    assert pair.fw2.external() == 0


def test_another_conntrackd_of_roots_keeps_the_lock_and_is_named(lab: Lab) -> None:
    """It may be the lock's holder; what admits it stands in the reason."""
    pair = replicated(lab, 1)
    path = named(pair.fw2, "conntrackd")
    with running(pair.fw2, path) as (pid,):
        pair.fw2.kill_conntrackd()
        unlocked = pair.fw2.hook("unlock")
        failed = become(pair.fw2, "primary")

    named_so = f"conntrackd (pid {pid}) runs {path}, which is not /usr/sbin/conntrackd"
    assert unlocked.returncode == 1
    assert named_so in unlocked.stderr
    assert "stays" in unlocked.stderr
    assert failed["outcome"] == "failed"
    assert named_so in failed["reason"]
    assert "--conntrackd" in failed["reason"]


def test_a_conntrackd_that_cannot_be_identified_keeps_the_lock(lab: Lab) -> None:
    """That it does not run is not shown; the capability that is missing is named."""
    pair = replicated(lab, 1)
    pair.fw2.run("mv", "/run/conntrackd.ctl", "/run/moved.ctl")
    locked = pair.fw2.run("find", lock_file(pair.fw2)).stdout

    unlocked = pair.fw2.run(*NO_PTRACE, "ftfw-transition", "unlock", check=False)

    assert unlocked.returncode == 1
    assert f"conntrackd (pid {pair.fw2.conntrackd_pid}) cannot be identified" in unlocked.stderr
    assert "CAP_SYS_PTRACE" in unlocked.stderr
    assert pair.fw2.run("find", lock_file(pair.fw2)).stdout == locked
    pair.fw2.kill_conntrackd()
    unlocked = pair.fw2.run(*NO_PTRACE, "ftfw-transition", "unlock")
    assert "removed" in unlocked.stdout


def test_the_lock_of_a_conntrackd_that_answers_stays(lab: Lab) -> None:
    """There is nothing wrong with it, and nothing to be done."""
    pair = replicated(lab, 1)

    unlocked = pair.fw2.hook("unlock", check=True)

    pid = pair.fw2.conntrackd_pid
    assert unlocked.stdout == (
        f"the lock {lock_file(pair.fw2)} stays: conntrackd is running (pid {pid})\n"
    )
    assert unlocked.stderr == ""


def test_where_processes_are_hidden_the_lock_stays(lab: Lab) -> None:
    """hidepid= and no CAP_SYS_PTRACE: a conntrackd may be running, and is; its socket was moved."""
    pair = replicated(lab, 1)
    pair.fw2.run("mv", "/run/conntrackd.ctl", "/run/moved.ctl")
    hide = 'mount -t proc -o hidepid=ptraceable proc /proc; exec "$@"'

    unlocked = pair.fw2.run(
        "unshare", "--mount", "--", "sh", "-ec", hide, "sh",
        *NO_PTRACE, "ftfw-transition", "unlock",
        check=False,
    )  # fmt: skip

    assert unlocked.returncode == 1
    assert "stays: conntrackd may be running" in unlocked.stderr
    assert pair.fw2.run("find", lock_file(pair.fw2)).stdout


def lock_file(firewall: Firewall) -> str:
    """Where the firewall's conntrackd has its lock."""
    arguments = firewall.path(CONNTRACKD_CONF).read_text().split()
    return arguments[arguments.index("LockFile") + 1]


# -- a guard that cannot be asked ------------------------------------------------------------------


def test_a_user_who_squats_on_keepalived_s_dump_turns_no_guard_off(lab: Lab) -> None:
    """Where keepalived has no TMPDIR of its own, its dump is in /tmp: the master stays unpurged."""
    pair = covered(lab)
    pair.fw1.run("rm", "-f", f"{DUMPS}/keepalived.json")  # of an earlier question
    pair.fw1.run("chmod", "1777", DUMPS)
    pair.fw1.run(*UNPRIVILEGED, "mkdir", f"{DUMPS}/keepalived.json")

    event = pair.fw1.hook_json("backup")

    assert event["outcome"] == "degraded"
    assert "nothing purged: keepalived does not answer (keepalived (pid" in event["reason"]
    assert "-t" not in asked(event)
    keeps_every_entry(pair.fw1)
    assert "-t" in asked(pair.fw1.hook_json("backup", "--force"))


def test_a_follower_that_could_not_ask_promotes_a_master_once_it_can(lab: Lab) -> None:
    """It reports why, and asks again by itself."""
    firewall = lab(wiring="fifo").fw1
    firewall.start_conntrackd()
    firewall.run("mkdir", "-m", "700", RUN_DIR)
    firewall.start_keepalived()
    firewall.until(firewall.is_master, WITHIN, "is master")
    firewall.run("chmod", "1777", DUMPS)
    firewall.run(*UNPRIVILEGED, "mkdir", f"{DUMPS}/keepalived.json")
    firewall.run("rm", f"{RUN_DIR}/notify.fifo")  # with every line in it
    firewall.start_follower()
    blind = firewall.events("keepalived.asked")[0]
    assert blind["outcome"] == "degraded"
    assert "keepalived (pid " in blind["reason"]
    assert firewall.events("transition.finished") == []

    firewall.run("rmdir", f"{DUMPS}/keepalived.json")

    firewall.until(lambda: firewall.events("transition.finished"), HEALED, "is promoted")
    assert finished(firewall, "primary")[0]["cause"].endswith("keepalived reports primary")


def test_a_hook_that_may_not_identify_keepalived_purges_nothing(lab: Lab) -> None:
    """A profile or a container without CAP_SYS_PTRACE: keepalived is not "not running"."""
    pair = covered(lab)

    ended = pair.fw1.run(*NO_PTRACE, "ftfw-transition", "backup", check=False)

    assert ended.returncode == 3
    event = finished(pair.fw1, "backup")[-1]
    assert "nothing purged: keepalived does not answer" in event["reason"]
    assert "CAP_SYS_PTRACE" in event["reason"]
    assert "-t" not in asked(event)
    keeps_every_entry(pair.fw1)


def test_a_purge_that_a_foreign_keepalived_deferred_is_asked_once_it_is_gone(lab: Lab) -> None:
    """The follower names it once, never signals it, and makes up for the purge."""
    pair = lab(wiring="fifo", conntrackd=PURGES_SOON).start()
    path = named(pair.fw2, "keepalived")
    with running(pair.fw2, path) as (pid,):
        event = pair.fw2.hook_json("backup")
        assert event["outcome"] == "degraded"
        assert f"keepalived (pid {pid}) runs {path}, which is not the installed" in event["reason"]
        assert "--keepalived" in event["reason"]
        assert "-t" not in asked(event)
        (named_once,) = pair.fw2.until(
            lambda: pair.fw2.events("keepalived.unasked"), HEALED, "names it"
        )
        assert f"(pid {pid}) runs {path}" in named_once["reason"]
        assert named_once["outcome"] == "degraded"
        before = ended(pair.fw2)
        # Until it is gone the purge is not asked for, and nothing is reported again.
        stays(lambda: ended(pair.fw2) == before, seconds=POLLS, what="asks for no purge")
        assert pids_of(pair.fw2, path) == [pid]
        assert pair.fw2.events("keepalived.unasked") == [named_once]

    def made_up() -> list[dict[str, Any]]:
        events = pair.fw2.events("transition.finished")[before:]
        return [event for event in events if "-t" in asked(event)]

    pair.fw2.until(made_up, HEALED, "has made up for the purge")
    assert len(pair.fw2.events("keepalived.unasked")) == 1


def pids_of(firewall: Firewall, path: str) -> list[int]:
    """The processes that run a program, by the firewall's own numbers."""
    return firewall.pids(path, "600")


# -- a conntrackd that does not start --------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        ("mkdir {}", "directory"),
        ("ln -s /nonexistent {}", "symbolic link"),
        ("mkfifo {}", "FIFO"),
    ],
)
def test_what_a_user_has_put_in_place_of_the_lock_is_named(lab: Lab, make: str, kind: str) -> None:
    """Where the lock is in a directory that all may write: what it is, whose, and what to do."""
    firewall = lab(conntrackd=lock_in(SHARED)).fw1
    share(firewall)
    firewall.run(*UNPRIVILEGED, "sh", "-ec", make.format(f"{SHARED}/conntrack.lock"))

    unlocked = firewall.hook("unlock")
    event = become(firewall, "primary")

    for reported in (unlocked.stderr, event["reason"]):
        assert f"{SHARED}/conntrack.lock is a {kind} of uid 65534" in reported
        assert "only root can write" in reported
    assert unlocked.returncode == 1
    assert event["outcome"] == "failed"


def lock_in(directory: str) -> dict[str, str]:
    """An edit of the shipped conntrackd.conf: another directory for its lock."""
    shipped = (Path(__file__).parents[2] / "packaging/conntrackd/conntrackd.conf").read_text()
    arguments = shipped.split()
    before = arguments[arguments.index("LockFile") + 1]
    return {f"LockFile {before}": f"LockFile {directory}/conntrack.lock"}


TAKE = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 3780)); "
TAKE += "print('taken', flush=True); time.sleep(600)"


def taken(firewall: Firewall) -> subprocess.Popen[str]:
    """Take conntrackd's port."""
    process = firewall.start("python3", "-c", TAKE)
    firewall.until(lambda: "taken" in firewall.output(process), what="the port is taken")
    return process


def test_a_conntrackd_that_does_not_start_quotes_its_log_and_who_holds_its_port(lab: Lab) -> None:
    """The client prints nothing: the reason is in the log alone, and the port's owner nowhere."""
    firewall = lab().fw1
    taken(firewall)

    event = become(firewall, "primary")

    assert event["outcome"] == "failed"
    assert "can't open channel socket: Address already in use" in event["reason"]
    assert "uid 0 holds UDP port 3780 (`ss -lunp` names the process)" in event["reason"]


def test_an_older_error_in_the_log_is_not_quoted(lab: Lab) -> None:
    """Only what this start has logged is why it failed."""
    firewall = lab().fw1
    holder = taken(firewall)
    become(firewall, "primary")
    holder.kill()
    holder.wait()
    firewall.ip("address flush dev eth2")

    event = become(firewall, "primary")

    assert "can't open channel socket: Cannot assign requested address" in event["reason"]
    assert "in use" not in event["reason"]


SQUAT = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as squatted:
    squatted.bind(sys.argv[1])
    os.chmod(sys.argv[1], 0o777)
    squatted.listen()
    print("listening", flush=True)
    while True:
        squatted.accept()
        print("connected", flush=True)
"""


def test_a_user_who_listens_in_place_of_conntrackd_is_not_asked(lab: Lab) -> None:
    """Its socket is in a directory that all may write: whose it is decides, not that it answers."""
    path = f"{SHARED}/conntrackd.ctl"
    firewall = lab(conntrackd={"Path /var/run/conntrackd.ctl": f"Path {path}"}).fw1
    share(firewall)
    squatter = firewall.start(*UNPRIVILEGED, "python3", "-c", SQUAT, path)
    firewall.until(lambda: "listening" in firewall.output(squatter), what="another user listens")

    event = become(firewall, "primary")

    assert step(event, "start")["outcome"] == "ok"
    assert event["outcome"] == "degraded"
    assert "connected" not in firewall.output(squatter)
    assert firewall.path(path).stat().st_uid == 0
