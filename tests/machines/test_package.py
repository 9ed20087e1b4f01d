"""One booted Debian machine on which the package was installed, and nothing else was done."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.node import ENVIRONMENT

from .conftest import UNITS_OF_OTHERS, VERSION
from .machine import Machine
from .pair import ROOT

EXAMPLES = "/usr/share/doc/ftfw-transition/examples"
BASH_COMPLETION = "/usr/share/bash-completion/completions/ftfw-transition"
SYSTEM = "/etc/systemd/system"
OWN_UNIT = f"{SYSTEM}/conntrackd.service"
DROP_IN = f"cp -r {EXAMPLES}/systemd/conntrackd.service.d {SYSTEM}\nsystemctl daemon-reload"

# Files of conntrackd's that an operator may have; each begins with Debian's own.
AS_INSTALLED = ""
WITHOUT_A_SOCKET = "sed -i '/UNIX {/,/}/d' /etc/conntrackd/conntrackd.conf"
ELSEWHERE = f"""mv /etc/conntrackd/conntrackd.conf /etc/conntrackd/site.conf
mkdir -p {OWN_UNIT}.d
cat >{OWN_UNIT}.d/site.conf <<.
[Service]
ExecStart=
ExecStart=/usr/sbin/conntrackd -C /etc/conntrackd/site.conf
.
systemctl daemon-reload"""

# What a process of conntrackd's unit that is not conntrackd might try: it names what succeeds.
PROBE = """#!/bin/sh
{
touch /etc/probe && echo writes a configuration
touch /run/systemd/system/probe.service && echo writes a unit
touch /run/ftfw-transition/probe && echo writes for the follower
systemd-run --wait true && echo has systemd start a program
busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 \\
    org.freedesktop.systemd1.Manager Reload && echo gives systemd orders
head -c 1 /proc/1/environ && echo reads of other processes
unshare --mount true && echo makes a namespace
} >/run/conntrackd/probe
exit 0
"""

on_both = pytest.mark.parametrize(
    "installed", ["bookworm", "trixie"], indirect=True, scope="module"
)
CONFIGURATIONS = {
    "as installed": AS_INSTALLED,
    "without a socket": WITHOUT_A_SOCKET,
    "elsewhere": ELSEWHERE,
}
whatever_it_reads = pytest.mark.parametrize(
    "configure", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys()
)


@pytest.fixture
def conntrackd(machine: Machine) -> Iterator[Machine]:
    """A machine on which conntrackd is stopped, and may be set up in any way for one test."""
    machine.shell("systemctl stop conntrackd\ncp -a /etc/conntrackd saved")
    yield machine
    machine.shell(
        "systemctl stop conntrackd\n"
        "rm -r /etc/conntrackd\n"
        "mv saved /etc/conntrackd\n"
        f"rm -rf {OWN_UNIT} {OWN_UNIT}.d\n"
        "systemctl daemon-reload\n"
        "systemctl start conntrackd"
    )


def is_at_rest(machine: Machine) -> bool:
    """Say whether nobody has enabled the follower or started it."""
    states = (
        machine.show("ftfw-transition", "UnitFileState"),
        machine.show("ftfw-transition", "ActiveState"),
    )
    return states == ("disabled", "inactive")


def comes_back(machine: Machine, harm: str) -> None:
    """Do harm to the conntrackd that runs, and see that another one runs after it."""
    before = machine.main_pid("conntrackd")
    assert before

    machine.shell(harm)

    machine.until(
        lambda: (
            machine.main_pid("conntrackd") not in (0, before)
            and machine.show("conntrackd", "ActiveState") == "active"
        ),
        20,
        "a new conntrackd runs",
    )


@on_both
def test_an_installation_neither_enables_nor_starts_the_follower(machine: Machine) -> None:
    """Nor does a keepalived that is started after it."""
    assert is_at_rest(machine)

    machine.shell(f"cp {EXAMPLES}/keepalived/keepalived.conf /etc/keepalived/")
    machine.shell("systemctl restart keepalived")

    assert machine.show("keepalived", "ActiveState") == "active"
    assert is_at_rest(machine)
    machine.shell("systemctl stop keepalived")
    assert is_at_rest(machine)


@on_both
def test_an_installation_changes_no_unit_of_others(machine: Machine) -> None:
    """conntrackd and keepalived run as their own packages have it, until drop-ins are copied."""
    assert "Conntrack Daemon" in machine.shell("cat units-before")
    assert machine.shell(f"{UNITS_OF_OTHERS} | diff units-before -") == ""


@on_both
def test_what_a_hook_has_started_outlives_keepalived(machine: Machine) -> None:
    """Such as a conntrackd; the hook itself keepalived ends, whatever the unit reports."""
    machine.shell(
        "ftfw-transition render --example >site.toml\n"
        "sed -i '/^wiring/s/fifo/hooks/' site.toml\n"
        "ftfw-transition render --site site.toml --node fw-1 --output pair\n"
        f"cp -r pair/systemd/keepalived.service.d {SYSTEM}\n"
        "systemctl daemon-reload\n"
        "printf '#!/bin/sh\\nsetsid --fork sleep 60\\n' >/usr/local/sbin/hook\n"
        "chmod 755 /usr/local/sbin/hook\n"
        "sed 's,/usr/bin/ftfw-transition backup,/usr/local/sbin/hook,' "
        "pair/keepalived/keepalived.conf >/etc/keepalived/keepalived.conf\n"
        "systemctl restart keepalived"
    )
    find = ("pgrep", "--exact", "sleep")
    started = machine.until(lambda: machine.run(*find, check=False).stdout, 20, "the hook has run")

    machine.shell("systemctl stop keepalived")

    assert machine.run(*find).stdout == started
    assert is_at_rest(machine)
    machine.shell(f"kill {started}\nrm -r {SYSTEM}/keepalived.service.d\nsystemctl daemon-reload")


@on_both
@whatever_it_reads
def test_the_drop_in_keeps_no_conntrackd_from_being_restarted(
    conntrackd: Machine, configure: str
) -> None:
    """Whatever configuration it runs with, one that ftfw-transition cannot read included."""
    conntrackd.shell(f"{DROP_IN}\n{configure}\nsystemctl start conntrackd")
    assert "/ftfw-transition.conf" in conntrackd.show("conntrackd", "DropInPaths")

    comes_back(conntrackd, "systemctl restart conntrackd")

    assert is_at_rest(conntrackd)


@on_both
@whatever_it_reads
def test_a_conntrackd_that_is_killed_comes_back(conntrackd: Machine, configure: str) -> None:
    """Although its lock file is left, which makes it refuse to start."""
    conntrackd.shell(f"{DROP_IN}\n{configure}\nsystemctl start conntrackd")

    comes_back(conntrackd, "systemctl kill --signal=KILL conntrackd")

    assert is_at_rest(conntrackd)


@on_both
def test_the_whole_unit_of_conntrackd_does_what_its_drop_in_does(conntrackd: Machine) -> None:
    """For a system that has none: killed it is started again, stopped it leaves nothing."""

    def left() -> str:
        return conntrackd.shell("find /run -name conntrackd.ctl -o -name conntrack.lock")

    conntrackd.shell(
        f"cp {EXAMPLES}/conntrackd/conntrackd.conf /etc/conntrackd/\n"
        f"cp {EXAMPLES}/systemd/conntrackd.service {OWN_UNIT}\n"
        "systemctl daemon-reload\n"
        "systemctl start conntrackd"
    )
    assert conntrackd.show("conntrackd", "FragmentPath") == OWN_UNIT
    assert conntrackd.show("conntrackd", "DropInPaths") == ""
    assert len(left().splitlines()) == 2

    comes_back(conntrackd, "systemctl kill --signal=KILL conntrackd")
    comes_back(conntrackd, "conntrackd -k")

    conntrackd.shell("systemctl stop conntrackd")
    assert conntrackd.show("conntrackd", "Result") == "success"
    assert left() == ""


@on_both
def test_what_takes_conntrackd_over_stays_within_its_unit(conntrackd: Machine) -> None:
    """It neither writes a unit, nor has systemd start one, nor writes what the follower reads."""
    probe = conntrackd.path("/usr/local/bin/probe")
    probe.write_text(PROBE)
    probe.chmod(0o755)
    conntrackd.shell(
        f"{DROP_IN}\n"
        f"printf '[Service]\\nExecStartPost=/usr/local/bin/probe\\n' >{OWN_UNIT}.d/probe.conf\n"
        "systemctl daemon-reload\n"
        "systemctl start conntrackd"
    )

    assert conntrackd.shell("cat /run/conntrackd/probe") == ""
    conntrackd.shell("rm /usr/local/bin/probe /run/conntrackd/probe")


@on_both
def test_a_conntrackd_that_does_not_start_is_explained_from_the_journal(
    conntrackd: Machine,
) -> None:
    """Where it logs to syslog alone: what it reported of this start, and who holds its port."""
    conntrackd.shell(
        f"sed 's/LogFile on/Syslog on/' {EXAMPLES}/conntrackd/conntrackd.conf "
        ">/etc/conntrackd/conntrackd.conf\n"
        "systemd-run --quiet --unit=holder python3 -c 'import socket, time; "
        's = socket.socket(type=socket.SOCK_DGRAM); s.bind(("", 3780)); time.sleep(600)\'\n'
    )
    conntrackd.until(lambda: conntrackd.shell("ss -Hlun sport = :3780"), 10, "the port is taken")

    event = json.loads(conntrackd.run("ftfw-transition", "primary", "--json", check=False).stdout)

    conntrackd.shell("systemctl stop holder")
    assert event["outcome"] == "failed"
    assert "can't open channel socket: Address already in use" in event["reason"]
    assert "uid 0 holds UDP port 3780" in event["reason"]


@on_both
def test_a_follower_whose_run_directory_was_removed_starts_again(machine: Machine) -> None:
    """The advice where others could write into it is to remove it."""
    machine.shell("systemctl start ftfw-transition\nrm -r /run/ftfw-transition")

    machine.shell("systemctl restart ftfw-transition")

    machine.shell("systemctl stop ftfw-transition")
    left = machine.shell("find /run/ftfw-transition -maxdepth 0 -user root -perm 0700")
    assert left == "/run/ftfw-transition\n"


@on_both
def test_the_smoke_test_of_the_package_passes(machine: Machine) -> None:
    """As Debian's test machines would run it."""
    machine.path("/root/smoke").write_text((ROOT / "packaging/debian/tests/smoke").read_text())

    machine.shell("sh smoke")


@on_both
def test_nothing_of_the_callers_changes_what_the_installed_command_runs(machine: Machine) -> None:
    """Debian's interpreter, isolated: no variable and no directory of the caller's sends."""
    assert machine.shell("head -n 1 /usr/bin/ftfw-transition").replace("#! ", "#!") == (
        "#!/usr/bin/python3 -I\n"
    )
    machine.shell("mkdir other\necho 'raise SystemExit(9)' | tee other/click.py >other/sh.py")

    reported = machine.shell("cd other\nPYTHONPATH=$PWD ftfw-transition --version")

    assert reported == f"ftfw-transition {VERSION}\n"


@on_both
def test_the_man_page_and_the_completions_are_where_they_are_looked_for(machine: Machine) -> None:
    """man is no part of the machine; bash is, and completes a command."""
    for path in (
        "/usr/share/man/man8/ftfw-transition.8.gz",
        BASH_COMPLETION,
        "/usr/share/zsh/vendor-completions/_ftfw-transition",
        "/usr/share/fish/vendor_completions.d/ftfw-transition.fish",
    ):
        assert machine.shell(f"find -L {path} -type f -size +0") == f"{path}\n"

    completed = machine.run(
        "bash", "-ec",
        f"source {BASH_COMPLETION}\n"
        "words=($(complete -p ftfw-transition))\n"
        "while [ ${words[0]} != -F ]; do words=(${words[@]:1}); done\n"
        "COMP_WORDS=(ftfw-transition pri) COMP_CWORD=1\n"
        "${words[1]} ftfw-transition pri ftfw-transition\n"
        'echo "${COMPREPLY[@]}"',
    ).stdout  # fmt: skip

    assert completed == "primary\n"


@on_both
def test_a_removal_that_fails_leaves_the_follower_running(machine: Machine) -> None:
    """It is started again if it was enabled, and left alone if it was not."""
    damage = (
        "cp -a $prerm saved\necho exit 1 >>$prerm\n! dpkg --remove ftfw-transition\nmv saved $prerm"
    )
    damage = f"prerm=/var/lib/dpkg/info/ftfw-transition.prerm\n{damage}"
    machine.shell(damage)
    assert is_at_rest(machine)

    machine.shell("systemctl enable --now ftfw-transition")
    before = machine.main_pid("ftfw-transition")
    machine.shell(damage)

    assert machine.show("ftfw-transition", "ActiveState") == "active"
    assert machine.main_pid("ftfw-transition") != before
    machine.shell("systemctl disable --now ftfw-transition")


@on_both
def test_a_follower_that_does_not_stop_does_not_keep_its_package(machine: Machine) -> None:
    """apt removes it all the same."""
    machine.shell(
        "mkdir /run/systemd/system/ftfw-transition.service.d\n"
        "printf '[Unit]\\nRefuseManualStop=yes\\n' "
        ">/run/systemd/system/ftfw-transition.service.d/refuse.conf\n"
        "systemctl daemon-reload\n"
        "systemctl start ftfw-transition"
    )

    machine.shell("apt-get remove -y ftfw-transition")

    assert machine.shell("dpkg --list ftfw-transition | grep ^rc")


@pytest.mark.parametrize("tree", ["bookworm", "trixie"])
def test_the_package_has_the_version_of_its_release(
    deb: Callable[[str], Path], tree: str, tmp_path: Path
) -> None:
    """pyproject.toml's: in its control file, its changelog and the foot of its man page."""

    def output(*argv: str | Path, text: bytes | None = None) -> str:
        return subprocess.run(argv, input=text, stdout=subprocess.PIPE, check=True).stdout.decode()

    output("dpkg-deb", "--extract", deb(tree), tmp_path)
    changelog = (tmp_path / "usr/share/doc/ftfw-transition/changelog.gz").read_bytes()
    page = (tmp_path / "usr/share/man/man8/ftfw-transition.8.gz").read_bytes()

    assert output("dpkg-deb", "--field", deb(tree), "Version") == f"{VERSION}\n"
    assert output(
        "dpkg-parsechangelog", "--file", "-", "--show-field", "Version",
        text=gzip.decompress(changelog),
    ) == f"{VERSION}\n"  # fmt: skip
    title, _, _ = gzip.decompress(page).decode().partition("\n")
    assert f'"ftfw-transition {VERSION}"' in title


@pytest.mark.parametrize("tree", ["bookworm", "trixie"])
def test_lintian_has_nothing_to_say_about_the_package(
    deb: Callable[[str], Path], tree: str
) -> None:
    """At its default level, as a Debian developer would run it; of either Debian's build."""
    lintian = subprocess.run(
        ["lintian", "--allow-root", deb(tree)],
        capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip

    assert (lintian.returncode, lintian.stdout) == (0, "")
