"""A failover to watch: two firewalls, live connections, the primary dies.

python -m tests.lab.demo
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from .pair import Pair

COMMAND = Path(sys.executable).with_name("ftfw-transition")
CONNECTIONS = 50


def main() -> int:
    """Run the failover and print what happened; the status is 0 if every connection lives."""
    print("Two firewalls in network namespaces, with real keepalived and real conntrackd.")
    print("Nothing leaves the namespaces, and they go with this program.\n")
    with (
        tempfile.TemporaryDirectory() as directory,
        Pair(Path(directory), COMMAND, wiring="fifo") as pair,
    ):
        pair.start()
        print("fw-1 is primary, fw-2 is its backup.")
        traffic = pair.open_connections(CONNECTIONS)
        replicated = pair.fw2.until(
            lambda: (entries := pair.fw2.external()) >= CONNECTIONS and entries,
            within=10,
            what="the connections are replicated",
        )
        print(f"{CONNECTIONS} TCP connections run through fw-1, {replicated} entries are on fw-2.")
        print("All cables of fw-1 are cut …")
        pair.fw1.cut()
        pair.fw2.until(pair.fw2.is_master, within=10, what="fw-2 takes over")
        pair.fw2.until(
            lambda: pair.fw2.was_made("primary"), within=30, what="its connections are recovered"
        )
        summary = traffic.finish()
        lines = [
            line.message for line in pair.fw2.journal() if '"state": "primary"' in line.message
        ]
        event = json.loads(lines[-1])
    print("fw-2 has taken over both virtual addresses.\n")
    print(f"  connections alive   {summary['alive']} of {summary['opened']}")
    print(f"  longest silence     {summary['longest_gap']:.2f} s")
    print(f"  recovered/expected  {event['recovered']}/{event['expected']}")
    print(f"  outcome             {event['outcome']}: {event['reason']}\n")
    for step in event["steps"]:
        print("  {name:<15} {outcome:<8} {seconds:>6.3f} s  {reason}".format_map(step))
    print("\nThe record, as `journalctl _UID=0 -t ftfw-transition -o cat` would show it on fw-2:\n")
    print("\n".join(lines))
    return 0 if summary["alive"] == summary["opened"] and event["outcome"] == "ok" else 1


if __name__ == "__main__":
    sys.exit(main())
