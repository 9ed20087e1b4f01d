"""The paths that options name, and their defaults."""

import os
from typing import NamedTuple

CONFIG = "/etc/conntrackd/conntrackd.conf"
CONNTRACKD = "/usr/sbin/conntrackd"
KEEPALIVED = ("/usr/sbin/keepalived", "/usr/local/sbin/keepalived")
"""Where keepalived is installed by a distribution, or by its own makefile."""
RUN_DIR = "/run/ftfw-transition"
KEY = "/etc/ftfw-transition/pair.key"
"""Of the pair channel: the same file on both nodes."""
FIFO = f"{RUN_DIR}/notify.fifo"


def installed_keepalived() -> str:
    """The first path of KEEPALIVED that exists; the first of all if none does."""
    return next(filter(os.path.exists, KEEPALIVED), KEEPALIVED[0])


class Settings(NamedTuple):
    """Which daemons, through which client, and where our own state is: absolute paths."""

    config: str
    conntrackd: str
    run_dir: str
    keepalived: str
    """The installed keepalived: a process that runs another file is never asked."""
