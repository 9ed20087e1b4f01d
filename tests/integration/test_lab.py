"""The lab itself: a test that fails in it must not be the lab's fault."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.pair import Lab, Pair
from tests.waiting import until

IDLE = Path("/bin/true")
"""A hook that does nothing."""
ROOT = Path(__file__).parents[2]


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    """Keeps namespaces open, so that no other test's gets the number of one that is gone."""
    with contextlib.ExitStack() as stack:
        yield stack


def _namespaces(pids: list[int], held: contextlib.ExitStack) -> set[Path]:
    paths = [Path(f"/proc/{pid}/ns/{kind}") for pid in pids for kind in ("net", "mnt", "pid")]
    for path in paths:
        held.enter_context(path.open("rb"))
    return {path.readlink() for path in paths}


def _inhabitants(namespaces: set[Path]) -> list[Path]:
    def lives_there(process: Path) -> bool:
        try:
            return any(link.readlink() in namespaces for link in (process / "ns").iterdir())
        except OSError:  # it has just ended
            return False

    return [process for process in Path("/proc").glob("[0-9]*") if lives_there(process)]


def _machine() -> tuple[str, str]:
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True)
    return Path("/proc/self/mountinfo").read_text(), links.stdout


def test_what_one_firewall_tracks_is_in_the_others_external_cache(lab: Lab) -> None:
    """Replication works, in both caches and in the numbers the lab reads."""
    pair = lab(command=IDLE).start()

    pair.fw1.load_entries(1000)

    pair.fw2.until(lambda: pair.fw2.external() == 1000, within=20, what="1000 in external cache")
    assert pair.fw1.internal() == 1000
    assert pair.fw1.kernel_entries() >= 1000
    assert pair.fw2.kernel_entries() < 1000


def test_a_pulled_cable_moves_both_virtual_addresses(lab: Lab) -> None:
    """One side lost is both sides moved, and each firewall's hook is reported."""
    pair = lab(command=IDLE).start()

    pair.fw1.cut("eth1")

    pair.fw2.until(pair.fw2.is_master, within=20, what="holds both virtual addresses")
    pair.fw2.until(lambda: pair.fw2.was_made("primary"), within=20, what="has its state")
    pair.fw1.until(lambda: pair.fw1.was_made("fault"), within=20, what="has its state")
    assert not pair.fw1.is_master()


def test_no_connection_survives_a_failover_in_which_nothing_is_committed(lab: Lab) -> None:
    """The traffic shows the living from the dead, so that a failover test can fail."""
    pair = lab(command=IDLE).start()
    traffic = pair.open_connections(10)
    assert traffic.alive() == 10

    pair.fw1.cut()

    pair.fw2.until(pair.fw2.is_master, within=20, what="holds both virtual addresses")
    summary = traffic.finish(within=2)
    assert summary["alive"] == 0
    assert summary["dead"] == {"silent": 10}


def test_what_a_hook_logs_is_in_the_journal(lab: Lab) -> None:
    """The log socket takes what the C library and the tests' own parser agree on."""
    pair = lab(command=IDLE)

    pair.fw1.run("logger", "--tag", "ftfw-transition", '{"message": "step.finished"}')

    pair.fw1.until(lambda: pair.fw1.events("step.finished"), within=20, what="one event")
    assert pair.fw1.events("transition.finished") == []
    assert pair.fw2.journal() == []


def test_nothing_is_left_of_a_pair_that_is_closed(
    tmp_path: Path, lab: Lab, held: contextlib.ExitStack
) -> None:
    """Neither a process nor a namespace, and never anything in the machine's own network."""
    before = _machine()

    with Pair(tmp_path / "closed", IDLE) as pair:
        pair.start()
        pair.open_connections(5)
        nodes = (pair.fw1, pair.fw2, pair.client, pair.server)
        namespaces = _namespaces([node.pid for node in nodes], held)
        assert len(_inhabitants(namespaces)) > len(nodes)
        assert _machine() == before

    assert _inhabitants(namespaces) == []
    assert _machine() == before


def test_nothing_is_left_of_a_pair_whose_test_is_killed(
    lab: Lab, held: contextlib.ExitStack
) -> None:
    """The kernel cleans up where no code of ours can run any more."""
    test = subprocess.Popen(
        [sys.executable, "-m", "tests.lab.pair", IDLE],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with test:
        assert test.stdout is not None
        pids = [int(test.stdout.readline().split()[-1]) for _ in range(4)]
        namespaces = _namespaces(pids, held)
        assert len(_inhabitants(namespaces)) > 4

        test.send_signal(signal.SIGKILL)

    until(lambda: not _inhabitants(namespaces), within=20, what="every process ends")
