"""What a command prints, where its events go, and its exit status."""

import contextlib
import os
import sys
from typing import Any, NamedTuple, NoReturn

from primary_backup.proof import Outcome
from primary_backup.settings import Settings
from primary_backup.system.printable import printable

PROGRAM = "ftfw-transition"
EXIT_STATUS = {
    Outcome.OK: 0,
    Outcome.FAILED: 1,
    Outcome.DEGRADED: 3,
    Outcome.SUPERSEDED: 4,
}
USAGE = 2
"""The exit status of a command line that is wrong."""


class Common(NamedTuple):
    """The options before a command's name."""

    settings: Settings
    log_level: str


class Emitter:
    """Opens the log with the first event: a commit does not wait for its import."""

    def __init__(self, level: str) -> None:
        self._level = level
        self._log: Any = None

    def __call__(self, name: str, fields: dict[str, Any]) -> str:
        """Log one event; returns its line."""
        if self._log is None:
            from primary_backup.system.log import Log

            self._log = Log(self._level)
        line: str = self._log.event(name, fields)
        return line

    def show(self, *, wait: bool = True) -> None:
        """Write what was buffered; unless it may ``wait``, what is taken now."""
        if self._log is not None:
            self._log.show(wait=wait)


def echo(*lines: str, err: bool = False) -> None:
    """Write lines to standard output or stderr: the only place of ours that does; raises OSError.

    In UTF-8, as the log is: a locale without our dashes and arrows costs no traceback, and
    ``render`` reads its own example.
    """
    stream = sys.stderr if err else sys.stdout
    if stream is None:  # the caller has closed it
        return
    try:
        stream.buffer.write("".join(f"{printable(line)}\n" for line in lines).encode())
        stream.buffer.flush()
    except OSError:
        # Python would try once more at its end, and exit with 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise


def complain(*lines: str) -> None:
    """Write lines to stderr, under the name of the program."""
    with contextlib.suppress(OSError):  # a full or closed stderr changes no exit status
        echo(*(f"{PROGRAM}: {line}" for line in lines), err=True)


def print_lines(*lines: str) -> None:
    """Write lines to standard output; a full disk ends the command with exit status 1."""
    try:
        echo(*lines)
    except OSError as error:
        fail(f"standard output: {error.strerror}")


def fail(*lines: str) -> NoReturn:
    """Write lines to stderr, and end with exit status 1."""
    complain(*lines)
    sys.exit(EXIT_STATUS[Outcome.FAILED])
