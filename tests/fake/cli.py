"""What the tests of the command share: a promotion, and one in the middle of its commit."""

from __future__ import annotations

from tests.fake.node import Ended, Hook, Node
from tests.waiting import until

REFUSES = "refuse \"parsing config file in line (3), symbol 'Nonsense': syntax error\""
WAITS = ": >$world/committing; until_released go"
"""A request that waits, and reports that it does."""
FIRST_WAITS = f"[ -e $world/committing ] || {{ {WAITS}; }}"
"""The same; the next ones do not."""


def promoted(node: Node) -> Ended:
    """Promote the node, which ends ok."""
    ended = node.run("primary")
    assert ended.code == 0, ended.err
    return ended


def in_mid_commit(node: Node) -> Hook:
    """Start a promotion; its commit runs until the node releases it."""
    node.on("-c", WAITS)
    hook = node.start("primary")
    until((node.world / "committing").exists, "the commit runs")
    return hook
