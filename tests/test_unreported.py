"""follower/unreported.py: a state that no line reported, and what to write where."""

from __future__ import annotations

import pytest

from primary_backup.follower.unreported import Silence, explain
from primary_backup.keepalived.notify import Followed
from primary_backup.plan import State

FIFO = "/run/ftfw-transition/notify.fifo"
SILENCE = Silence(Followed("GROUP", "G1"), FIFO, others=(), readers=(), writes=True)
OF_AN_INSTANCE = SILENCE._replace(followed=Followed("INSTANCE", "VI_1"))


@pytest.mark.parametrize(
    ("silence", "advice"),
    [
        (SILENCE._replace(readers=("cat (pid 77)",)), f"cat (pid 77) reads {FIFO} too"),
        (
            SILENCE._replace(others=('GROUP "firewall"', 'INSTANCE "VI_1"')),
            'of GROUP "firewall": follow --group "firewall" (/etc/default/ftfw-tr',
        ),
        (
            SILENCE._replace(others=('INSTANCE "VI_2"', 'INSTANCE "VI_1"')),
            'INSTANCE "VI_1" alone: follow --instance "VI_1" (/etc/default/ftfw-tr',
        ),
        (
            OF_AN_INSTANCE._replace(others=('GROUP "G1"', 'INSTANCE "VI_2"')),
            'of INSTANCE "VI_2": follow --instance "VI_2"',
        ),
        (
            OF_AN_INSTANCE._replace(others=('GROUP "G1"',)),
            'of GROUP "G1": follow --group "G1"',
        ),
        (SILENCE, 'compare the names in keepalived.conf with GROUP "G1"'),
        (SILENCE._replace(writes=False), f"name {FIFO} in vrrp_notify_fifo"),
    ],
)
def test_the_cause_is_named_with_what_to_write_where(silence: Silence, advice: str) -> None:
    """A reader comes first: what it takes away is not seen."""
    assert advice in explain(State.PRIMARY, State.BACKUP, silence)


@pytest.mark.parametrize(
    ("ours", "here"),
    [(State.BACKUP, "this node was made backup"), (None, "this node was made nothing yet")],
)
def test_both_sides_are_named(ours: State | None, here: str) -> None:
    """What keepalived reports, and what this node was made."""
    assert explain(State.PRIMARY, ours, SILENCE).startswith(
        f'keepalived reports primary, but {here}: no line of GROUP "G1" reported it; '
    )
