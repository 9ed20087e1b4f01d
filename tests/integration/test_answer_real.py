"""The peer's answer on real daemons: over a slow link, beside traffic, and with too little room."""

from __future__ import annotations

import re

from tests.lab.firewall import CONNTRACKD_CONF, Firewall
from tests.lab.moments import asked, become, replicated, step
from tests.lab.pair import Lab, Pair
from tests.waiting import stays

SMALL, MANY = 1_000, 3_000
LARGE_COUNT = 250_000
"""More than ResendQueueSize was in the files of other projects: 131,072."""
SLOW_COUNT = 10_000
"""Some 10 s of a link of 1 Mbit/s."""
NEW_SECONDS = 8.0
"""How long a backup may take beside traffic; it took 30 s when it waited for a pause."""
_TRAFFIC = """
import itertools, subprocess, sys, time
line = ("-I -p tcp -s 10.30.{}.{} -d 198.51.100.9 --sport 40000 --dport 443"
        " --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 4\\n")
for n in itertools.count(0, 15):
    lines = [line.format(i >> 8 & 255, i & 255) for i in range(n, n + 15)]
    subprocess.run(["conntrack", "-R", "-"], input="".join(lines), text=True, check=True)
    time.sleep(0.1)
"""


def limited(firewall: Firewall) -> None:
    """Give its caches room for a thousand connections."""
    file = firewall.path(CONNTRACKD_CONF)
    file.write_text(file.read_text().replace("HashLimit 524288", f"HashLimit {SMALL}"))


def unreplicated(lab: Lab, count: int) -> Pair:
    """A pair whose first node has connections, and whose second is not running yet."""
    pair = lab()
    pair.fw1.start_conntrackd()
    pair.fw1.load_entries(count)
    pair.fw1.until(lambda: pair.fw1.internal() >= count, 90, "has cached them")
    return pair


def test_a_backup_whose_cache_is_full_is_degraded_and_purges_nothing(lab: Lab) -> None:
    """Its copy is a part, whatever the numbers are later."""
    pair = unreplicated(lab, MANY)
    limited(pair.fw2)
    pair.fw2.start_conntrackd()

    event = become(pair.fw2, "backup")

    assert event["outcome"] == "degraded"
    assert "could not create" in step(event, "request-resync")["reason"]
    assert "HashLimit" in event["advice"]
    assert "-t" not in asked(event)


def test_a_primary_whose_cache_is_full_is_degraded(lab: Lab) -> None:
    """The peer never receives what is not in it."""
    pair = lab()
    limited(pair.fw1)
    pair.fw1.start_conntrackd()
    become(pair.fw1, "primary")
    pair.fw1.load_entries(MANY)

    event = become(pair.fw1, "primary")

    assert event["outcome"] == "degraded"
    assert "the internal cache is full" in event["reason"]


def test_a_bulk_that_the_resend_queue_has_no_room_for_is_degraded(lab: Lab) -> None:
    """What the peer loses of it is never sent again."""
    pair = replicated(lab, MANY, conntrackd={"ResendQueueSize 524288": "ResendQueueSize 64"})

    event = become(pair.fw1, "primary")

    assert event["outcome"] == "degraded"
    assert "found no room to be sent again" in step(event, "bulk-send")["reason"]
    assert "ResendQueueSize" in event["advice"]


def test_a_large_table_survives_a_failover_whole(lab: Lab) -> None:
    """As shipped there is room for all of it: in the queue, in both caches and in the kernel."""
    pair = lab()
    pair.fw1.load_entries(LARGE_COUNT)  # first: so many events at once are not all received
    pair.fw1.start_conntrackd()
    assert pair.fw1.internal() == LARGE_COUNT
    pair.fw2.start_conntrackd()

    event = become(pair.fw2, "backup")

    assert step(event, "request-resync")["outcome"] == "ok"
    assert pair.fw2.external() == LARGE_COUNT
    assert set(re.findall(r"space errors:\s+(\d+)", pair.fw1.client("-s", "queue").stdout)) == {"0"}
    pair.fw1.kill_conntrackd()
    event = become(pair.fw2, "primary")
    assert (event["outcome"], event["recovered"]) == ("ok", LARGE_COUNT)
    assert pair.fw2.kernel_entries() >= LARGE_COUNT


def test_an_answer_over_a_slow_link_is_waited_for(lab: Lab) -> None:
    """Its pauses are no end: what is reported is there."""
    pair = unreplicated(lab, SLOW_COUNT)
    shape = "tc qdisc add dev eth2 root tbf rate 1mbit burst 16kb latency 20ms"
    pair.fw1.run(*shape.split())
    pair.fw2.start_conntrackd()

    event = become(pair.fw2, "backup")

    assert step(event, "request-resync")["outcome"] == "ok"
    assert pair.fw2.external() >= 0.99 * SLOW_COUNT


def test_an_answer_beside_traffic_ends(lab: Lab) -> None:
    """150 new connections a second: connections are counted, and no messages."""
    pair = replicated(lab, MANY)
    traffic = pair.fw1.start("python3", "-c", _TRAFFIC)
    # As many end as begin after that: each has four seconds.
    stays(lambda: traffic.poll() is None, seconds=8, what="there is traffic")
    assert pair.fw2.external() > MANY + 150

    event = become(pair.fw2, "backup")

    assert traffic.poll() is None
    traffic.terminate()
    answer = step(event, "request-resync")
    assert answer["outcome"] == "ok"
    assert answer["seconds"] < NEW_SECONDS
    received = int(answer["reason"].split()[0])
    assert received <= pair.fw2.external() + 150
