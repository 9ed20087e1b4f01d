"""Two booted Debian machines, set up as in the README, and what happens to a pair in its life."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.lab.firewall import ONE_MORE, RUN_DIR
from tests.waiting import stays, until

from .machine import Machine
from .pair import ALL_ALIVE, Live, Machines, removal

# What the operator's own commands have put there, and what daemons and apt keep for themselves.
OF_OTHERS = (
    "/root/",
    "/etc/conntrackd/conntrackd.conf",
    "/etc/default/ftfw-transition",
    "/etc/keepalived/keepalived.conf",
    "/etc/modules-load.d/ftfw.conf",
    "/etc/sysctl.d/ftfw.conf",
    "/etc/systemd/system/conntrackd.service.d",
    "/etc/systemd/system/keepalived.service.d",
    "/etc/systemd/system/sysinit.target.wants/nftables.service",
    "/etc/iproute2",  # keepalived's
    "/var/lib/apt/",
    "/var/lib/systemd/",
    "/tmp/systemd-private-",  # of each unit with PrivateTmp=, conntrackd's among them
    "/var/tmp/systemd-private-",
)
HOOKS = "/usr/share/doc/ftfw-transition/examples/keepalived/keepalived-hooks.conf"
UNITS = ("nftables", "conntrackd", "ftfw-transition", "keepalived")
VRRP = "112"
SYNC_PORT = "dport=3780"
EXPOSURE_TENTHS = {"ftfw-transition": 21, "conntrackd": 30}
"""systemd-analyze's measure. Of the follower's, most is SYS_PTRACE, root and UDP to the peer; of
conntrackd's, NET_ADMIN, SYS_NICE, the peer's network and root."""
UNPRIVILEGED = "setpriv --reuid 65534 --regid 65534 --clear-groups"

on_both = pytest.mark.parametrize("kept", ["bookworm", "trixie"], indirect=True, scope="module")
with_hooks = pytest.mark.parametrize(
    "kept", ["bookworm-trixie with hooks"], indirect=True, scope="module"
)
on_each = pytest.mark.parametrize(
    "kept", ["bookworm", "trixie", "bookworm-trixie"], indirect=True, scope="module"
)


def took_over(machine: Machine, before: int, within: float = 30) -> dict[str, Any]:
    """Wait for the record of a promotion that is not among the first `before`; that record."""

    def promoted() -> list[dict[str, Any]]:
        events = machine.events("transition.finished")[before:]
        return [event for event in events if event["state"] == "primary"]

    return machine.until(promoted, within, "takes over")[-1]


def endings(machine: Machine) -> list[tuple[str, str]]:
    """How each transition ended so far."""
    return [(e["state"], e["outcome"]) for e in machine.events("transition.finished")]


def fails_over(pair: Machines, harm: Callable[[Machine], object]) -> tuple[Machine, Machine, Live]:
    """Open connections, do harm to the primary, and see that the other has and keeps them all."""
    primary, backup = pair.settled()
    before = len(backup.events("transition.finished"))
    live = pair.open()

    harm(primary)

    record = took_over(backup, before)
    # The copies of what an earlier test has closed may go between the commit and the count.
    assert min(record["recovered"], record["expected"]) >= sum(ALL_ALIVE)
    assert record["outcome"] == "ok"
    assert live.alive() == ALL_ALIVE
    return primary, backup, live


def shuts_down(pair: Machines, machine: Machine) -> None:
    """Have a machine end in order, with a keepalived that takes a second before it begins to."""
    slow = "/run/systemd/system/keepalived.service.d"
    machine.shell(
        f"mkdir {slow}\n"
        f"printf '[Service]\\nExecStop=/bin/sleep 1\\n' >{slow}/slow.conf\n"
        "systemctl daemon-reload"
    )
    pair.shut_down(machine)


def is_known(machine: Machine, peer: str) -> bool:
    """Say whether its follower has a fresh report of the peer's."""
    known = json.loads(machine.shell(f"cat {RUN_DIR}/peer.json"))
    if known["seen"] is None:
        return False
    report, made = known["seen"]
    return bool(report["node"] == peer and known["watched"] - made < 3)


def own_entries(machine: Machine) -> list[str]:
    """What the machine's kernel tracks of the adverts and of conntrackd's messages."""
    entries = machine.shell("conntrack -L -f ipv4\nconntrack -L -f ipv6").splitlines()
    return [entry for entry in entries if entry.split()[1] == VRRP or SYNC_PORT in entry.split()]


def is_strict(machine: Machine) -> bool:
    """Say whether the kernel picks up no TCP connection in its middle."""
    return machine.shell("sysctl --values net.netfilter.nf_conntrack_tcp_loose") == "0\n"


@on_each
def test_the_commands_of_the_readme_make_a_pair(pair: Machines) -> None:
    """fw-1 is primary and fw-2 its backup, both well, and all of it is there after a boot too."""
    assert pair.settled() == pair.both
    for machine in pair.both:
        for unit in UNITS:
            assert machine.run("systemctl", "is-enabled", unit).stdout == "enabled\n"
            assert machine.show(unit, "ActiveState") == "active"
        assert machine.run("systemctl", "is-system-running").stdout == "running\n"
        outcomes = [outcome for _, outcome in endings(machine)]
        # The first one was alone until the other was there: nothing showed what that one held.
        alone = outcomes.index("ok") if machine is pair.both[0] else 0
        assert set(outcomes[alone:]) <= {"ok", "superseded"}
        assert is_strict(machine)
        assert own_entries(machine) == []


@on_both
def test_keepalived_goes_before_conntrackd_and_both_before_all_others(pair: Machines) -> None:
    """Both are real-time processes: a bulk keeps no advert from being sent or received."""
    for machine in pair.both:
        lines = machine.shell("ps -o rtprio=,comm= -C keepalived,conntrackd").split("\n")
        assert {" ".join(line.split()) for line in lines if line} == {
            "20 keepalived",
            "10 conntrackd",
        }


@on_each
def test_each_keepalived_finds_nothing_wrong_with_either_wiring(pair: Machines) -> None:
    """`keepalived -t` reports nothing, of what was rendered and of the example with hooks."""
    for machine in pair.both:
        for path in ("/etc/keepalived/keepalived.conf", HOOKS):
            tested = machine.run("keepalived", "-t", "-f", path)
            assert tested.stdout + tested.stderr == ""


@on_each
def test_connections_outlive_a_keepalived_that_is_stopped(pair: Machines) -> None:
    """And come back with it as a backup; both journals have the story."""
    primary, backup, live = fails_over(
        pair, lambda primary: primary.shell("systemctl stop keepalived")
    )
    backup.until(lambda: backup.stands("primary"), 10, "has recorded the promotion")
    primary.until(lambda: primary.stands("stop"), 10, "has recorded the stop")
    assert primary.events("transition.finished")[-1]["cause"].endswith("STOP 0")

    primary.shell("systemctl start keepalived")

    assert pair.settled() == (backup, primary)
    assert primary.events("transition.finished")[-1]["state"] == "backup"
    assert live.finish() == ALL_ALIVE


@on_each
def test_connections_outlive_the_loss_of_a_link(pair: Machines) -> None:
    """One side of the primary is dead: the other firewall takes both, and keeps them."""
    primary, backup, live = fails_over(pair, lambda primary: primary.cut("eth1"))
    backup.until(lambda: backup.stands("primary"), 10, "has recorded the promotion")
    primary.until(lambda: primary.last()["state"] == "fault", 10, "has recorded the fault")

    primary.fix("eth1")

    assert pair.settled() == (backup, primary)
    assert live.finish() == ALL_ALIVE


@on_each
def test_connections_outlive_a_primary_that_loses_its_power(pair: Machines) -> None:
    """It boots again as the backup, in sync, without a hand."""
    primary, backup, live = fails_over(pair, pair.power_off)

    machine = pair.switch_on(primary)

    assert pair.settled() == (backup, machine)
    assert live.alive() == ALL_ALIVE
    assert machine.external() >= sum(ALL_ALIVE)
    assert is_strict(machine)
    assert own_entries(machine) == []
    assert live.finish() == ALL_ALIVE


@on_each
def test_connections_outlive_a_primary_that_is_rebooted(pair: Machines) -> None:
    """keepalived has given the addresses away before the ruleset is flushed, however slowly."""
    primary, backup, live = fails_over(pair, partial(shuts_down, pair))

    machine = pair.switch_on(primary)

    assert pair.settled() == (backup, machine)
    assert live.finish() == ALL_ALIVE


@on_both
def test_a_follower_that_is_not_enabled_is_started_with_keepalived(pair: Machines) -> None:
    """A reboot never leaves a FIFO without a reader, in which every notification is lost."""
    primary, backup = pair.settled()
    backup.shell("systemctl disable ftfw-transition")
    assert backup.show("ftfw-transition", "ActiveState") == "active"

    pair.shut_down(backup)
    machine = pair.switch_on(backup)

    assert machine.show("ftfw-transition", "ActiveState") == "active"
    assert machine.show("ftfw-transition", "UnitFileState") == "disabled"
    assert pair.settled() == (primary, machine)
    machine.shell("systemctl enable ftfw-transition")


@with_hooks
def test_connections_outlive_a_reboot_that_no_follower_sees(pair: Machines) -> None:
    """Where hooks do it, keepalived starts no follower either."""
    primary, backup, live = fails_over(pair, partial(shuts_down, pair))

    machine = pair.switch_on(primary)

    assert pair.settled() == (backup, machine)
    assert live.finish() == ALL_ALIVE
    assert machine.show("ftfw-transition", "ActiveState") == "inactive"


@with_hooks
def test_connections_outlive_a_failover_that_no_follower_sees(pair: Machines) -> None:
    """The hooks alone do the same, and tell the same; nobody has enabled the service."""
    primary, backup, live = fails_over(
        pair, lambda primary: primary.shell("systemctl stop keepalived")
    )
    primary.until(lambda: primary.stands("stop"), 10, "has recorded the stop")

    primary.shell("systemctl start keepalived")

    assert pair.settled() == (backup, primary)
    assert live.finish() == ALL_ALIVE
    for machine, states in ((primary, ["primary", "stop", "backup"]), (backup, ["primary"])):
        well = [(state, "ok") for state in states]
        machine.until(lambda: endings(machine)[-len(well) :] == well, 10, "has logged it all")  # noqa: B023
        assert machine.show("ftfw-transition", "UnitFileState") == "disabled"
        assert machine.show("ftfw-transition", "ActiveState") == "inactive"


@on_both
def test_a_flow_that_is_not_replicated_is_made_anew_by_its_next_packet(pair: Machines) -> None:
    """UDP is none of the filter's protocols: the new primary learns of it from its client."""

    def flows(machine: Machine) -> str:
        return machine.run("conntrack", "-L", "-p", "udp", "--orig-src", "10.10.0.10").stdout

    primary, backup = pair.settled()
    before = len(backup.events("transition.finished"))
    pair.start_echo()
    assert pair.echo("before") == "before"
    assert flows(primary)

    primary.shell("systemctl stop keepalived")
    took_over(backup, before)

    assert not flows(backup)
    assert pair.echo("after") == "after"
    assert flows(backup)
    primary.shell("systemctl start keepalived")
    assert pair.settled() == (backup, primary)


@on_both
@pytest.mark.parametrize("role", ["primary", "backup"])
@pytest.mark.parametrize(
    "harm", ["systemctl restart conntrackd", "systemctl kill --signal=KILL conntrackd"]
)
def test_a_conntrackd_that_is_started_anew_is_brought_back_in_sync(
    pair: Machines, role: str, harm: str
) -> None:
    """Stopped or killed, on either machine: the backup holds everything again, by itself."""
    live = pair.open()
    primary, backup = pair.settled()
    machine = primary if role == "primary" else backup
    lost = len(machine.events("sync.lost"))
    before = machine.main_pid("conntrackd")

    machine.shell(harm)

    machine.until(
        lambda: machine.main_pid("conntrackd") not in (0, before), 20, "a new conntrackd runs"
    )
    machine.until(lambda: len(machine.events("sync.lost")) > lost, 20, "the loss is seen")
    assert pair.settled() == (primary, backup)
    backup.until(lambda: backup.external() >= sum(ALL_ALIVE), 20, "has a copy of each again")
    assert live.finish() == ALL_ALIVE


@on_both
def test_what_is_done_to_the_follower_of_a_live_primary_disturbs_nothing(
    pair: Machines, newer_deb: Callable[[str], Path]
) -> None:
    """A new version, a restart, a crash: conntrackd is asked nothing, every connection lives."""

    def renewed(line: str) -> None:
        before = len(primary.events("transition.finished"))
        primary.shell(line)
        records = primary.until(
            lambda: primary.events("transition.finished")[before:], 20, f"follows after: {line}"
        )
        assert [(record["state"], record["outcome"], record["steps"]) for record in records] == [
            ("primary", "ok", [])
        ]
        assert primary.show("ftfw-transition", "ActiveState") == "active"
        primary.until(
            lambda: primary.show("ftfw-transition", "StatusText").startswith("primary: ok"),
            10, "says what it has done",
        )  # fmt: skip

    live = pair.open()
    primary, _ = pair.settled()
    package = newer_deb(primary.disk.tree.name.partition("-")[0])
    primary.path("/root/newer.deb").write_bytes(package.read_bytes())
    reported = primary.shell("cat /var/log/conntrackd.log")

    renewed("apt-get install -y ./newer.deb")
    assert primary.shell("ftfw-transition --version") == "ftfw-transition 99\n"
    renewed("systemctl restart ftfw-transition")
    renewed("systemctl kill --signal=KILL ftfw-transition")
    primary.shell("systemctl reload ftfw-transition")

    # Longer than the follower takes from one look at conntrackd to the next.
    stays(
        lambda: primary.shell("cat /var/log/conntrackd.log") == reported,
        seconds=6, what="conntrackd is asked nothing",
    )  # fmt: skip
    assert live.finish() == ALL_ALIVE


@on_both
def test_a_keepalived_that_reads_its_file_again_disturbs_nothing(pair: Machines) -> None:
    """One more address, and away with it: no transition, and every connection lives."""
    live = pair.open()
    primary, backup = pair.settled()
    records = len(primary.events("transition.finished"))

    primary.shell(
        "cp /etc/keepalived/keepalived.conf before\n"
        "sed -i '0,/virtual_ipaddress_excluded {/s//&\\n"
        f"        {ONE_MORE}\\/32/' /etc/keepalived/keepalived.conf\n"
        "systemctl reload keepalived"
    )
    primary.until(lambda: primary.holds(ONE_MORE), 10, "has read its file again")
    primary.shell("mv before /etc/keepalived/keepalived.conf\nsystemctl reload keepalived")
    primary.until(lambda: not primary.holds(ONE_MORE), 10, "has read it once more")

    assert pair.settled() == (primary, backup)
    later = primary.events("transition.finished")[records:]
    assert [step for record in later for step in record["steps"] if step["attempts"]] == []
    assert live.finish() == ALL_ALIVE


@on_both
def test_connections_outlive_a_keepalived_that_is_restarted(pair: Machines) -> None:
    """Whoever is primary afterwards, the pair is whole."""
    live = pair.open()
    primary, _ = pair.settled()
    before = primary.main_pid("keepalived")

    primary.shell("systemctl restart keepalived")

    assert primary.main_pid("keepalived") != before
    pair.settled()
    assert live.finish() == ALL_ALIVE


@on_both
def test_the_follower_does_all_it_has_to_within_what_its_unit_lets_it(pair: Machines) -> None:
    """Nothing was refused to it, whatever happened so far."""
    for machine in pair.both:
        assert machine.shell("journalctl --quiet -t ftfw-transition-stderr -o cat") == ""


@on_both
def test_the_nodes_report_to_each_other_from_their_confined_units(pair: Machines) -> None:
    """A key on both is all it takes: ruleset, ports and confinement are as shipped."""
    for machine, peer in (pair.both, pair.both[::-1]):
        until(partial(is_known, machine, peer.name), within=20, what=f"{peer.name} is known")
        assert not machine.events("pair.refused")


@on_both
@pytest.mark.parametrize("unit", EXPOSURE_TENTHS)
def test_little_is_left_of_what_a_unit_exposes(
    pair: Machines, measured: list[str], unit: str
) -> None:
    """By systemd's own measure, of the unit with its drop-ins."""
    for machine in pair.both:
        analyze = f"systemd-analyze security --no-pager --offline=true {unit}.service"
        exposure = machine.shell(f"{analyze} | tail -n 1").strip()
        measured.append(f"{machine.disk.tree.name}: {exposure}")
        machine.shell(f"{analyze} --threshold={EXPOSURE_TENTHS[unit]}")


@on_both
def test_a_local_user_keeps_no_keepalived_from_answering(pair: Machines) -> None:
    """keepalived's state lies in a directory of root's, not where others may be first."""
    for machine in pair.settled():
        machine.shell(f"rm -f /tmp/keepalived.json\n{UNPRIVILEGED} mkdir /tmp/keepalived.json")
        before = len(machine.events("keepalived.asked"))

        machine.shell("systemctl restart ftfw-transition")

        asked = machine.until(
            lambda: machine.events("keepalived.asked")[before:],  # noqa: B023
            10, "has asked keepalived",
        )  # fmt: skip
        assert asked[-1]["outcome"] == "ok"
        assert machine.shell("ls -A /tmp/keepalived.json; rmdir /tmp/keepalived.json") == ""
    pair.settled()


@on_both
def test_what_a_local_user_logs_is_not_shown_by_the_line_of_the_readme(pair: Machines) -> None:
    """Any user may log under any name; the README's line shows root's events alone."""
    line = """-t ftfw-transition '{"message": "forged", "outcome": "ok"}'"""
    for machine in pair.both:
        machine.shell(f"{UNPRIVILEGED} logger {line}")
        machine.until(
            lambda: "forged" in machine.shell("journalctl -t ftfw-transition -o cat"),  # noqa: B023
            10, "has it in its journal",
        )  # fmt: skip
        assert machine.events("forged") == []
        assert machine.events("transition.finished")


@on_both
def test_a_package_that_is_removed_leaves_nothing_running_and_purged_nothing_behind(
    last_pair: Machines,
) -> None:
    """keepalived and conntrackd go on without it, and can be started again; connections live."""
    live = last_pair.open()
    primary, backup = last_pair.settled()
    daemons = ("keepalived", "conntrackd")
    before = [primary.main_pid(unit) for unit in daemons]

    primary.shell("apt-get remove -y ftfw-transition")

    assert primary.run("pgrep", "--full", "ftfw-transition", check=False).stdout == ""
    assert primary.show("ftfw-transition", "LoadState") == "not-found"
    assert primary.show("ftfw-transition", "ActiveState") == "inactive"
    assert [primary.main_pid(unit) for unit in daemons] == before
    assert [primary.show(unit, "NeedDaemonReload") for unit in daemons] == ["no", "no"]
    assert live.alive() == ALL_ALIVE

    primary.shell(removal())

    assert [primary.main_pid(unit) for unit in daemons] == before
    assert [primary.show(unit, "DropInPaths") for unit in daemons] == ["", ""]

    primary.shell("apt-get purge -y ftfw-transition")

    left = primary.files() - last_pair.files[primary.name]
    assert {path for path in left if not path.startswith(OF_OTHERS)} == set()
    assert primary.shell("find /run /var/lib/systemd -name '*ftfw*'") == ""
    assert primary.shell("grep -rl ftfw-transition /var/lib/systemd || true") == ""
    assert primary.shell("systemctl list-units --all --plain --no-legend 'ftfw*'") == ""

    for unit in daemons:
        primary.shell(f"systemctl restart {unit}")
        assert primary.show(unit, "ActiveState") == "active"
    backup.until(lambda: backup.stands("primary"), 20, "takes over")
    assert live.finish() == ALL_ALIVE
