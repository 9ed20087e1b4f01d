"""What two followers on a real pair know of each other, and what a promotion makes of it."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from tests.integration.following import COUNT, HEALED, WITHIN, replicated, requests
from tests.lab.firewall import HOOK, KEY, RUN_DIR, SECRET, Firewall
from tests.lab.moments import ended, finished
from tests.lab.node import UNPRIVILEGED
from tests.lab.pair import Lab, Pair
from tests.waiting import stays

OTHER_SECRET = "a5" * 32 + "\n"
SLOW = {
    "    advert_int 0.2\n": "    advert_int 3\n",
    "    advert_int 0.2                      # as in VI_1": "    advert_int 3",
}
MORE = 30
"""Connections that the link never carried."""
PORT = "3781"


def started(lab: Lab, *, keyed: bool = True, **edits: Any) -> Pair:
    """A pair with followers, which know of each other what they can."""
    pair = lab(wiring="fifo", **edits)
    for firewall in (pair.fw1, pair.fw2):
        if keyed:
            firewall.take_key(SECRET)
    pair.start()
    for firewall in (pair.fw1, pair.fw2):
        wanted = "seen" if keyed else "link"
        firewall.until(partial(known, firewall, wanted), HEALED, "knows its peer")
    return pair


@pytest.fixture
def keyed(lab: Lab) -> Pair:
    """A pair whose followers report to each other."""
    return started(lab)


def known(firewall: Firewall, field: str) -> Any:
    """What the follower knows of the peer, as it left it for a promotion."""
    path = firewall.path(f"{RUN_DIR}/peer.json")
    return json.loads(path.read_text())[field] if path.exists() else None


def is_fresh(firewall: Firewall, seconds: float = 4.0) -> bool:
    """Whether the peer's newest report is not older than that."""
    seen = known(firewall, "seen")
    return seen is not None and bool(known(firewall, "watched") - seen[1] <= seconds)


def silence(firewall: Firewall) -> float:
    """For how many seconds nothing was received, as far as the follower knows."""
    return float(known(firewall, "watched") - known(firewall, "link"))


def reasons(firewall: Firewall, name: str, text: str = "") -> list[str]:
    """The reasons of all events of that name that have this in them."""
    return [each["reason"] for each in firewall.events(name) if text in each["reason"]]


# -- a promotion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("advert", [{}, SLOW], ids=["0.2 s", "3 s"])
@pytest.mark.parametrize("with_key", [True, False], ids=["key", "no key"])
def test_a_peer_that_is_powered_off_is_the_ordinary_case(
    lab: Lab, advert: dict[str, str], *, with_key: bool
) -> None:
    """Everything is silent at once: what it had is here, and its own count shows it."""
    pair = started(lab, keyed=with_key, keepalived=advert)
    replicated(pair)
    if with_key:
        pair.fw2.until(lambda: known(pair.fw2, "certified"), HEALED, "is in sync")
    earlier = ended(pair.fw2)

    pair.fw1.cut()

    event = finished(pair.fw2, "primary", earlier)[0]
    assert event["outcome"] == "ok", event["reason"]
    assert ("fw-1 reported" in event["reason"]) is with_key
    assert event["recovered"] >= COUNT


@pytest.mark.parametrize("with_key", [True, False], ids=["key", "no key"])
def test_what_was_opened_after_the_link_was_cut_is_named_and_made_up_for(
    lab: Lab, *, with_key: bool
) -> None:
    """The copies that are here are all committed; those that never came are asked for later."""
    pair = started(lab, keyed=with_key)
    replicated(pair)
    pair.fw1.cut("eth2")
    pair.fw2.until(lambda: silence(pair.fw2) > 8, HEALED, "dates the silence")
    pair.fw1.load_entries(MORE, COUNT)
    earlier = ended(pair.fw2)

    pair.fw1.stop_keepalived()

    event = finished(pair.fw2, "primary", earlier)[0]
    assert event["outcome"] == "degraded"
    node = "fw-1" if with_key else "the peer"
    assert f"nothing was received from {node} on the dedicated link since" in event["reason"]
    assert "connections that began after that are lost" in event["reason"]
    assert COUNT <= pair.fw2.kernel_entries() < COUNT + MORE
    pair.fw1.fix("eth2")
    pair.fw2.until(
        lambda: pair.fw2.kernel_entries() >= COUNT + MORE, 2 * HEALED, "has committed them all"
    )


def test_a_replica_that_lacks_what_the_peer_reported_is_named(keyed: Pair) -> None:
    """The link carries reports, and none of conntrackd's packets: a count is all that shows it."""
    keyed.fw2.until(lambda: known(keyed.fw2, "counted"), WITHIN, "knows a count")
    drop = "add rule inet ftfw raw_prerouting iifname eth2 udp dport 3780 drop"
    keyed.fw2.run("nft", *drop.split())
    keyed.fw1.load_entries(COUNT)
    keyed.fw2.until(lambda: known(keyed.fw2, "counted")[2] >= COUNT, HEALED, "knows it")
    keyed.fw2.until(lambda: known(keyed.fw2, "doubt"), HEALED, "has compared")
    earlier = ended(keyed.fw2)

    keyed.fw1.stop_keepalived()

    event = finished(keyed.fw2, "primary", earlier)[0]
    assert event["outcome"] == "degraded"
    assert f"fw-1 reported {COUNT} connections" in event["reason"]
    assert "here were" in event["reason"]


@pytest.mark.parametrize("with_key", [True, False], ids=["key", "no key"])
def test_a_node_in_fault_purges_once_its_peer_reports_that_it_is_primary(
    lab: Lab, *, with_key: bool
) -> None:
    """It receives no adverts: without a report no other master is certain."""
    pair = started(lab, keyed=with_key, conntrackd={"PurgeTimeout 60": "PurgeTimeout 2"})
    replicated(pair)
    pair.fw1.cut("eth1", "eth2")
    finished(pair.fw2, "primary")
    assert "-t" not in requests(pair.fw1)
    pair.fw1.until(partial(reasons, pair.fw2, "peer.silent"), HEALED, "is silent")

    pair.fw1.fix("eth2")

    pair.fw1.until(lambda: pair.fw1.external() >= COUNT, HEALED, "holds the copies")
    if with_key:
        pair.fw1.until(lambda: pair.fw1.kernel_entries() < MORE, HEALED, "has purged")
        assert pair.fw2.kernel_entries() >= COUNT
    else:
        stays(lambda: "-t" not in requests(pair.fw1), seconds=12)


# -- what is reported as it happens ---------------------------------------------------------------


@pytest.mark.parametrize("with_key", [True, False], ids=["key", "no key"])
def test_a_silence_is_reported_while_it_lasts_and_when_it_ends(lab: Lab, *, with_key: bool) -> None:
    """Once each: a pair that is none any more is known before the failover."""
    pair = started(lab, keyed=with_key)
    pair.fw1.cut("eth2")
    for firewall in (pair.fw1, pair.fw2):
        firewall.until(partial(reasons, firewall, "peer.silent"), HEALED, "reports the silence")
    pair.fw1.fix("eth2")
    for firewall in (pair.fw1, pair.fw2):
        firewall.until(partial(reasons, firewall, "peer.back"), HEALED, "reports its end")
        assert len(reasons(firewall, "peer.silent")) == 1


def test_a_link_that_works_one_way_is_named(keyed: Pair) -> None:
    """The side that still receives knows that it is not received."""
    drop = "add rule inet ftfw raw_prerouting iifname eth2 udp dport 3781 drop"
    keyed.fw1.run("nft", *drop.split())

    keyed.fw2.until(
        lambda: reasons(keyed.fw2, "peer.differs", "fw-1 does not receive this node"),
        HEALED, "names it",
    )  # fmt: skip
    keyed.fw1.run("nft", "flush", "chain", "inet", "ftfw", "raw_prerouting")
    keyed.fw2.until(lambda: reasons(keyed.fw2, "peer.agrees"), HEALED, "takes it back")
    # conntrackd's packets came all the time.
    assert not reasons(keyed.fw1, "peer.silent")


def test_two_primaries_are_named_by_both(keyed: Pair) -> None:
    """Their adverts do not reach each other; their reports do."""
    for chain in ("raw_prerouting", "raw_output"):
        drop = f"insert rule inet ftfw {chain} ip protocol 112 drop"
        keyed.fw2.run("nft", *drop.split())
    for firewall in (keyed.fw1, keyed.fw2):
        firewall.until(
            partial(reasons, firewall, "peer.differs", "both primary"), HEALED, "names them"
        )


def test_copies_that_no_promotion_commits_are_named(keyed: Pair) -> None:
    """Those of an instance that is in no group, which is master on the other node."""
    keyed.fw2.load_entries(COUNT)

    keyed.fw1.until(lambda: reasons(keyed.fw1, "copies.late", f"holds {COUNT} "), HEALED, "named")


def test_a_peer_that_was_rebooted_is_named(keyed: Pair) -> None:
    """Its follower is one of another boot."""
    keyed.fw1.stop_follower()
    boot_id = "/proc/sys/kernel/random/boot_id"
    keyed.fw1.path("/run/lab/boot_id").write_text("11111111-2222-3333-4444-555555555555\n")
    keyed.fw1.run("mount", "--bind", "/run/lab/boot_id", boot_id)
    keyed.fw1.start_follower()

    keyed.fw2.until(lambda: reasons(keyed.fw2, "peer.rebooted", "fw-1"), WITHIN, "names it")


# -- who is believed ------------------------------------------------------------------------------


def test_without_a_key_nothing_is_sent_and_that_is_said_once(lab: Lab) -> None:
    """Everything else works as it does with one."""
    pair = started(lab, keyed=False)

    (why,) = reasons(pair.fw2, "pair.channel")
    assert why.startswith(f"{KEY} does not exist")
    assert f":{PORT} " not in pair.fw2.run("ss", "-Hnlu").stdout


def test_a_key_is_changed_without_a_gap(lab: Lab) -> None:
    """add, copied; use on both; drop on both: a key that is not known would show within 6 s."""
    pair = lab(wiring="fifo")
    pair.fw1.run(HOOK, "key")
    pair.fw2.take_key(pair.fw1.path(KEY).read_text())
    pair.start()
    for firewall in (pair.fw1, pair.fw2):
        firewall.until(partial(known, firewall, "seen"), WITHIN, "knows its peer")

    pair.fw1.run(HOOK, "key", "add")
    pair.fw2.take_key(pair.fw1.path(KEY).read_text())
    for action in ("use", "drop"):
        for firewall in (pair.fw1, pair.fw2):
            firewall.run(HOOK, "key", action)
            stays(lambda: all(map(is_fresh, (pair.fw1, pair.fw2))), seconds=6)

    for firewall in (pair.fw1, pair.fw2):
        assert not reasons(firewall, "pair.refused")
        assert pair.fw1.path(KEY).read_text() == firewall.path(KEY).read_text()
        assert firewall.path(KEY).read_text().splitlines()[-1] not in firewall.report()


def test_another_key_is_counted_and_never_believed(lab: Lab) -> None:
    """The event says what to compare."""
    pair = lab(wiring="fifo")
    pair.fw1.take_key(SECRET)
    pair.fw2.take_key(OTHER_SECRET)
    pair.start()

    for firewall in (pair.fw1, pair.fw2):
        firewall.until(partial(reasons, firewall, "pair.refused", "forged"), WITHIN, "counts them")
        (why, *_) = reasons(firewall, "pair.refused")
        assert "compare the key files of both nodes" in why
        assert known(firewall, "seen") is None


def test_a_follower_that_was_killed_is_known_again_with_its_first_message(keyed: Pair) -> None:
    """No clock and no counter has to be kept for it."""
    keyed.fw1.kill_follower()
    keyed.fw2.until(lambda: not is_fresh(keyed.fw2), WITHIN, "misses it")

    keyed.fw1.start_follower()

    keyed.fw1.until(lambda: is_fresh(keyed.fw1), WITHIN, "is known")
    keyed.fw2.until(lambda: is_fresh(keyed.fw2), WITHIN, "is known")


def test_no_other_program_shares_the_port(keyed: Pair) -> None:
    """Root's neither, whatever it sets; another user's is refused below the kept port."""
    bind = (
        "import socket as s; t = s.socket(s.AF_INET, s.SOCK_DGRAM); "
        "t.setsockopt(s.SOL_SOCKET, s.SO_REUSEADDR, 1); "
        f"t.setsockopt(s.SOL_SOCKET, s.SO_REUSEPORT, 1); t.bind(('10.99.99.2', {PORT}))"
    )
    assert "in use" in keyed.fw2.run("python3", "-c", bind, check=False).stderr
    keyed.fw2.stop_follower()
    denied = keyed.fw2.run(*UNPRIVILEGED, "python3", "-c", bind, check=False)
    assert "Permission denied" in denied.stderr
