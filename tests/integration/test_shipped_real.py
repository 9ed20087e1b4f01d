"""What is shipped, run as shipped: every mode and wiring, with all that a site has of traffic."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from primary_backup.site.model import MODES, WIRINGS
from primary_backup.site.read import read_site
from primary_backup.site.render import EXAMPLE, render
from tests.lab.bench import bulks
from tests.lab.firewall import RULESET
from tests.lab.moments import finished
from tests.lab.pair import Lab, Mode, Wiring

SITE = read_site(Path(EXAMPLE).read_text())
EACH = 10
"""Connections of each kind."""
WITHIN = 20


@pytest.mark.parametrize(
    ("mode", "wiring"),
    [("ftfw", "hooks"), ("direct", "hooks"), *((mode, "fifo") for mode in MODES)],
)
def test_translated_inbound_and_ipv6_connections_live_through_the_loss_of_the_primary(
    lab: Lab, mode: Mode, wiring: Wiring
) -> None:
    """Out by SNAT, in through a port of the virtual address, and IPv6: none is lost."""
    pair = lab(mode=mode, wiring=wiring).start()
    kinds = (pair.open_connections(EACH), pair.open_inbound(EACH), pair.open_ipv6(EACH))
    copies = pair.fw2.kernel_entries if mode == "direct" else pair.fw2.external
    pair.fw2.until(lambda: copies() >= 3 * EACH, WITHIN, "holds the copies")

    pair.fw1.cut()

    event = finished(pair.fw2, "primary")[-1]
    assert event["outcome"] == "ok", event["reason"]
    assert [traffic.finish(within=WITHIN)["alive"] for traffic in kinds] == [EACH] * 3


def test_adverts_and_the_replication_take_no_place_in_the_table(lab: Lab) -> None:
    """A full table stops neither of them: the ruleset keeps both out of it."""
    pair = lab().start()
    pair.open_connections(EACH)
    pair.fw2.until(lambda: pair.fw2.external() >= EACH, WITHIN, "holds the copies")

    for firewall in (pair.fw1, pair.fw2):
        table = firewall.run("conntrack", "-L").stdout
        assert [line for line in table.splitlines() if " 112 " in line or "=3780" in line] == []
    assert "dport=" in pair.fw1.run("conntrack", "-L").stdout


@pytest.mark.parametrize("wiring", WIRINGS)
def test_keepalived_finds_nothing_wrong_with_what_is_shipped(lab: Lab, wiring: Wiring) -> None:
    """`keepalived -t` reports nothing on both nodes, and exits 0."""
    pair = lab(wiring=wiring)
    for firewall in (pair.fw1, pair.fw2):
        tested = firewall.run("keepalived", "-t")
        assert tested.stdout + tested.stderr == ""


@pytest.mark.parametrize("mode", MODES)
def test_conntrackd_takes_every_notification_of_what_is_shipped(lab: Lab, mode: Mode) -> None:
    """The daemon starts, and its log has no warning."""
    pair = lab(mode=mode)
    for firewall in (pair.fw1, pair.fw2):
        firewall.start_conntrackd()
        log = firewall.path("/var/log/conntrackd.log").read_text()
        assert not re.search(r"warning|error|deprecated|unknown", log, re.IGNORECASE), log


@pytest.mark.parametrize(
    "names", [("ct", "log", "mark"), ("set", "type", "beef0"), ("WAN", "tcp", "br-lan.1")]
)
def test_every_interface_that_a_site_may_have_is_one_for_the_programs(
    lab: Lab, names: tuple[str, str, str]
) -> None:
    """keepalived, conntrackd and nft read a name as a name, whatever keyword it resembles."""
    text, firewall = Path(EXAMPLE).read_text(), lab().fw1
    for old, new in zip(("eth0", "eth1", "eth2"), names, strict=True):
        text = text.replace(f'"{old}"', f'"{new}"')
        firewall.ip(
            f"link set dev {old} down", f"link set dev {old} name {new}", f"link set dev {new} up"
        )
    for path, rendered in render(read_site(text), "fw-1").items():
        firewall.path(f"/run/{Path(path).name}").write_text(rendered)

    firewall.run("nft", "-f", "/run/ftfw.nft")
    firewall.run("conntrackd", "-d", "-C", "/run/conntrackd.conf")
    tested = firewall.run("keepalived", "-t", "-f", "/run/keepalived.conf")

    assert tested.stdout + tested.stderr == ""


def test_the_ruleset_loads_again_and_where_protocols_have_no_names(lab: Lab) -> None:
    """A second load changes nothing, and a small system lacks /etc/protocols (netbase)."""
    fw1 = lab().fw1
    fw1.run("rm", "/etc/protocols", "/etc/services")
    loaded = fw1.run("nft", "list", "ruleset").stdout

    fw1.run("nft", "-c", "-f", RULESET)
    fw1.run("nft", "-f", RULESET)

    assert fw1.run("nft", "list", "ruleset").stdout == loaded


def test_no_bulk_of_entries_moves_a_virtual_address(tmp_path: Path) -> None:
    """keepalived receives the adverts, whatever conntrackd has to do; `make bench` sends 20."""
    assert bulks(tmp_path, 3) == 0


def test_a_rendered_ruleset_without_ports_and_ipv6_loads(lab: Lab) -> None:
    """nft takes what is left when a site forwards nothing, twice over."""
    pair = lab()
    four = [node._replace(outside=node.outside[:1], inside=node.inside[:1]) for node in SITE.nodes]
    inside = SITE.inside._replace(vips=SITE.inside.vips4)
    site = SITE._replace(forwards=(), nodes=tuple(four), inside=inside)
    ruleset = render(site, "fw-1")["nftables/ftfw.nft"]

    for _ in range(2):
        pair.fw1.run("nft", "-f", "-", input=ruleset)

    assert "dnat" not in pair.fw1.run("nft", "list", "ruleset").stdout
