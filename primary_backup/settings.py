"""Which daemon, through which client; and what its conntrackd.conf says, read from the file."""

import os
from typing import NamedTuple

from primary_backup.conntrackd.conf import ConfError, Conntrackd, read_conntrackd
from primary_backup.plan import Replication

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


def read_conf(path: str) -> Conntrackd:
    """Read conntrackd.conf; raises ConfError naming it, also where the file cannot be read."""
    try:
        return read_conntrackd(read_file(path))
    except OSError as error:
        raise ConfError(f"{path}: {error.strerror}") from error
    except ConfError as error:
        raise ConfError(f"{path}: {error}") from error


def read_file(path: str) -> bytes:
    """Read a file; of a FIFO nothing: nobody has to write into it before a promotion commits."""
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
        return file.read()


def replication(conf: Conntrackd | None) -> Replication | None:
    """The settings that decide the plan; None where the configuration could not be read."""
    if conf is None or conf.mode is None:
        return None
    return Replication(conf.mode, conf.internal_cache, conf.external_cache)
