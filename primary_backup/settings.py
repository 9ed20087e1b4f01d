"""Which daemon, through which client; and what its conntrackd.conf says, read from the file."""

import os
from typing import NamedTuple

KEEPALIVED = ("/usr/sbin/keepalived", "/usr/local/sbin/keepalived")
"""Where keepalived is installed by a distribution, or by its own makefile."""


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
