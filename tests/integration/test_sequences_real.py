"""What can happen to a pair, in any order: where it is `ok` nothing was lost, nothing live purged.

Each sequence is in the report of its failure. `python -m tests.lab.sequences` carries out others.
"""

from __future__ import annotations

import random

import pytest

from tests.lab.pair import Lab
from tests.lab.sequences import EDITS, FOUND, actions, carry_out


@pytest.mark.parametrize("seed", range(1, 25))
def test_a_promotion_that_is_ok_has_lost_nothing(lab: Lab, seed: int) -> None:
    """Whatever came before it, by the kernel's own table."""
    keyed = seed % 2 == 0
    carry_out(lab(wiring="fifo", conntrackd=EDITS), actions(seed), keyed=keyed)


@pytest.mark.parametrize("with_key", [True, False], ids=["key", "no key"])
@pytest.mark.parametrize("what", FOUND)
def test_what_was_wrong_once(lab: Lab, what: str, *, with_key: bool) -> None:
    """Sequences that have shown a fault, without what did not matter."""
    carry_out(lab(wiring="fifo", conntrackd=EDITS), FOUND[what], keyed=with_key)


def test_a_sequence_that_is_another_each_time(lab: Lab) -> None:
    """Its seed is in the report of its failure."""
    seed = random.randrange(10**6, 10**9)
    print(f"seed {seed}")
    carry_out(lab(wiring="fifo", conntrackd=EDITS), actions(seed), keyed=seed % 2 == 0)
