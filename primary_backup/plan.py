"""Which steps each state asks of conntrackd, in order, for each replication mode."""

from enum import Enum


class Mode(Enum):
    """How two conntrackd daemons replicate: the ``Mode`` block of conntrackd.conf(5)."""

    FTFW = "FTFW"
    NOTRACK = "NOTRACK"
    ALARM = "ALARM"
