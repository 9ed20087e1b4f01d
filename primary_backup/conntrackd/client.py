"""The conntrackd client: one request to its daemon, and what an error allows next.

The client has no deadline of its own, and its exit status shows only that it could connect and
send: 1 with "can't connect" where no daemon listens, 1 or 2 with another message where it refuses
its configuration, 0 for everything the daemon then does or ignores (local.c, main.c).
"""

import os
import signal
from collections.abc import Callable
from typing import NamedTuple

from primary_backup.conntrackd.conf import Conntrackd
from primary_backup.conntrackd.daemonlog import message
from primary_backup.conntrackd.status import (
    Queue,
    Status,
    parse,
    parse_flushes,
    parse_flushing,
    parse_queue,
)
from primary_backup.memory import SocketIdentity
from primary_backup.proof import Kernel
from primary_backup.system.kernel import observe
from primary_backup.system.run import NotInstalled, run

CALL_SECONDS = 5.0


class Unreached(Exception):
    """No daemon listens: the request was not made, ask again."""


class Unanswered(Exception):
    """The request was made, perhaps: the daemon may still be at it, never ask again."""


class Refused(Exception):
    """The client refuses, with its own message: asking again cannot help."""


class Unreadable(Refused):
    """It refuses its configuration, and has reached no daemon."""


class Daemon(NamedTuple):
    """The conntrackd that ``config`` describes, through the client ``program``."""

    program: str
    config: str
    conf: Conntrackd | None
    """None where the configuration could not be read."""
    kernel: Callable[[], Kernel] = observe
    """The kernel's counters of the network namespace that the daemon works in: ours."""
    interrupt: Callable[[], None] = lambda: None
    """Called now and then while a program is waited for; what it raises kills that program."""
    spare: Callable[[str], str | None] = lambda _: None
    """Another file for a client that refuses ``config``, given its message; None: there is none."""

    def command(self, options: tuple[str, ...]) -> str:
        """The exact command of a request, as a person would type it."""
        import shlex

        return shlex.join((self.program, "-C", self.config, *options))

    def request(
        self, options: tuple[str, ...], working: Callable[[], bool] = lambda: False
    ) -> bytes:
        """Ask the daemon one thing and return what it printed.

        Raises Unreached (nothing listens), Unanswered (killed, or no answer within 5 s of it
        being ``working`` last) or Refused (the client's own message).
        """

        def still_working() -> bool:
            self.interrupt()
            return working()

        try:
            return self._ask(self.config, options, still_working)
        except Unreadable as error:
            spare = self.spare(str(error))
            if spare is None:
                raise
            return self._ask(spare, options, still_working)

    def _ask(
        self, config: str, options: tuple[str, ...], still_working: Callable[[], bool]
    ) -> bytes:
        socket = self.find_socket()
        if socket is not None and not may_be_daemons(socket):
            raise Unreached(f"uid {socket.st_uid} has put a socket in place of conntrackd's")
        try:
            finished = run(
                self.program, "-C", config, *options,
                seconds=CALL_SECONDS,
                working=still_working,
            )  # fmt: skip
        except NotInstalled as error:
            raise Refused(f"{error}; install conntrackd, or name it with --conntrackd") from error
        except OSError as error:  # no process or memory left: nothing was sent
            raise Unreached(f"the client cannot be started: {error.strerror}") from error
        if finished.code == -signal.SIGPIPE:  # it sends once, four bytes
            raise Unreached("conntrackd ended before it was asked")
        if finished.code is None or finished.code < 0:
            raise Unanswered(f"conntrackd did not answer {' '.join(options)} in time")
        if finished.code == 0:
            return finished.output
        if b"can't connect" in finished.errors:
            raise Unreached("conntrackd is not running")
        raise Unreadable(message(finished.errors) or f"the client exits {finished.code}")

    def status(self) -> Status:
        """The daemon's caches, and its traffic with the peer."""
        # One that ends before it answers prints nothing either: then the second one finds out.
        for _ in range(2):
            status = parse(self.request(("-s",)))
            if status is not None:
                return status
        raise Refused("the conntrackd that answers does not synchronise: it has no Sync section")

    def queue(self) -> Queue | None:
        """What waits for the peer's acknowledgement; None outside FTFW."""
        return parse_queue(self.request(("-s", "queue")))

    def flushing(self) -> bool:
        """Whether the daemon is flushing the kernel table right now."""
        return parse_flushing(self.request(("-s", "process")))

    def flushes(self) -> int | None:
        """How often this daemon has flushed the kernel table: ``-F``, and ``-t`` once it fires."""
        return parse_flushes(self.request(("-s", "runtime")))

    def identity(self) -> SocketIdentity | None:
        """What distinguishes this daemon from the next one; None while there is no socket."""
        found = self.find_socket()
        return (found.st_dev, found.st_ino, found.st_ctime_ns) if found is not None else None

    def find_socket(self) -> os.stat_result | None:
        """The daemon's UNIX socket; None where there is none, or its path is not known."""
        if self.conf is None or self.conf.socket is None:
            return None
        try:
            return os.lstat(self.conf.socket)
        except OSError:
            return None

    def no_progress(self) -> bool:
        """For a program that shows none while it is waited for; raises what ``interrupt`` does."""
        self.interrupt()
        return False


def may_be_daemons(socket: os.stat_result) -> bool:
    """Whether conntrackd may have made that socket: where all may write, any user can make one."""
    return socket.st_uid in (0, os.geteuid())
