"""The conntrackd program: one request to its daemon, whether it lives, and starting it.

The client has no deadline of its own, and its exit status says only that it could connect and
send: 1 with "can't connect" where nobody listens, 1 or 2 with another message where it refuses
its configuration, 0 for everything the daemon then does or ignores (local.c, main.c).
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from primary_backup.conntrackd.conf import Conntrackd
from primary_backup.conntrackd.daemonlog import DaemonLog, message
from primary_backup.conntrackd.status import (
    Status,
    parse,
    parse_flushes,
    parse_flushing,
    parse_unacknowledged,
)
from primary_backup.proof import Kernel
from primary_backup.requests import Refused, Unanswered, Unreached, Unreadable, Unstartable
from primary_backup.system.kernel import look
from primary_backup.system.proc import Daemons, daemons
from primary_backup.system.run import NotInstalled, run

CALL_SECONDS = 5.0
START_SECONDS = 20.0
DEFAULT_CONFIG = "/etc/conntrackd/conntrackd.conf"
_CLIENT_ACTIONS = frozenset("cfFeiksnBRtxhv")
_NAME = "conntrackd"
_UNIT = "conntrackd.service"
_KINDS = {
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}

SocketIdentity = tuple[int, int, int]
"""Device, inode and change time (ns) of the daemon's UNIX socket: a new daemon binds a new one."""


class Daemon(NamedTuple):
    """The conntrackd that ``config`` describes, through the client ``program``."""

    program: str
    config: str
    conf: Conntrackd | None
    """None where the configuration could not be read."""
    interrupt: Callable[[], None] = lambda: None
    """Called now and then while a program is waited for; what it raises kills that program."""
    spare: Callable[[str], str | None] = lambda _: None
    """Another file for a client that refuses ``config``, which is told why; None: there is none."""

    def command(self, options: tuple[str, ...]) -> str:
        """The exact command of a request, as a person would type it."""
        import shlex

        return shlex.join((self.program, "-C", self.config, *options))

    def request(
        self, options: tuple[str, ...], working: Callable[[], bool] = lambda: False
    ) -> bytes:
        """Ask the daemon one thing and return what it printed.

        Raises Unreached (nothing listens), Unanswered (killed, or no answer within 5 s of it
        last being seen ``working``) or Refused (the client's own message).
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
        socket = self._socket()
        if socket is not None and not _may_be_daemons(socket):
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
        if finished.code is None or finished.code < 0:
            raise Unanswered(f"conntrackd did not answer {' '.join(options)} in time")
        if finished.code == 0:
            return finished.output
        if b"can't connect" in finished.errors:
            raise Unreached("conntrackd is not running")
        raise Unreadable(message(finished.errors) or f"the client exits {finished.code}")

    def status(self) -> Status:
        """What the daemon says of its caches and its peer."""
        status = parse(self.request(("-s",)))
        if status is None:
            raise Refused(
                "the conntrackd that answers does not synchronise: it has no Sync section"
            )
        return status

    def unacknowledged(self) -> int | None:
        """Messages that the peer has not acknowledged; None outside FTFW."""
        return parse_unacknowledged(self.request(("-s", "queue")))

    def flushing(self) -> bool:
        """Whether the daemon is flushing the kernel table right now."""
        return parse_flushing(self.request(("-s", "process")))

    def flushes(self) -> int | None:
        """How often this daemon has flushed the kernel table: ``-F``, and ``-t`` once it fires."""
        return parse_flushes(self.request(("-s", "runtime")))

    def kernel(self) -> Kernel:
        """The kernel's counters of the network namespace that the daemon works in: ours."""
        return look()

    def identity(self) -> SocketIdentity | None:
        """What tells this daemon from the next one; None while there is no socket."""
        found = self._socket()
        return (found.st_dev, found.st_ino, found.st_ctime_ns) if found is not None else None

    def _socket(self) -> os.stat_result | None:
        if self.conf is None or self.conf.socket is None:
            return None
        try:
            return os.lstat(self.conf.socket)
        except OSError:
            return None

    def unlock(self) -> str:
        """Remove a lock file that a killed daemon left; what was done. Raises Unstartable.

        It makes every start fail without a message. Only one that is proven stale is removed: a
        second daemon would take a running one's socket away.
        """
        if self.conf is None:
            raise Unstartable(f"{self.config} cannot be read: it may have another lock file")
        lock_file = self.conf.lock_file
        if self._find_lock() is None:
            return ""
        running = self._daemons()
        if running.installed:
            return f"the lock {lock_file} stays: conntrackd is running (pid {running.installed[0]})"
        self._check_alone(running, f"the lock {lock_file} stays: ")
        found = self._find_lock()
        if found is None or not self._is_unreached():
            return ""
        try:
            os.unlink(lock_file)
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise Unstartable(f"stale lock {lock_file}: {error.strerror}") from error
        whose = f" of uid {found.st_uid}" if found.st_uid else ""
        return f"stale lock {lock_file}{whose} removed"

    def _is_unreached(self) -> bool:
        """Whether a connection is refused; a full backlog, EACCES and a time-out prove nothing."""
        if self.conf is None or self.conf.socket is None:
            return True  # without one there is none that a second daemon could take away
        found = self._socket()
        if found is not None and not _may_be_daemons(found):
            return True
        import socket  # only a dead daemon needs it

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                return probe.connect_ex(self.conf.socket) in (errno.ENOENT, errno.ECONNREFUSED)
            except OSError:  # too long for a socket's address: a daemon may have cut it
                return False

    def _find_lock(self) -> os.stat_result | None:
        """The lock file; raises Unstartable where something else has its name."""
        lock_file = self.conf.lock_file if self.conf is not None else ""
        try:
            found = os.lstat(lock_file)
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "special file")
            raise Unstartable(
                f"{lock_file} is a {kind} of uid {found.st_uid} and no lock file: conntrackd does "
                "not start while it is there; remove it, and name a LockFile in a directory where "
                "only root can write"
            )
        return found

    def _daemons(self) -> Daemons:
        """The processes that are this daemon, or may be; its clients are none."""
        found = daemons(self.program, _NAME)
        return found._replace(
            installed=tuple(pid for pid in found.installed if not _is_client(pid)),
            foreign=tuple(each for each in found.foreign if not _is_client(each.pid)),
            unknown=tuple(each for each in found.unknown if not _is_client(each.pid)),
        )

    def _check_alone(self, found: Daemons, prefix: str = "") -> None:
        """Raise Unstartable where a daemon runs, or where that cannot be excluded."""
        if found.installed:
            socket = self.conf.socket if self.conf is not None else None
            raise Unstartable(
                f"{prefix}conntrackd is running (pid {found.installed[0]}) but does not answer on "
                f"{socket}: stop it, or correct `UNIX {{ Path }}` in {self.config}"
            )
        if found.foreign:
            other = found.foreign[0]
            # A container's program is never to be named: we would execute it.
            advice = "give its container a network namespace of its own"
            advice = advice if other.contained else "name its program with --conntrackd"
            raise Unstartable(
                f"{prefix}conntrackd (pid {other.pid}) runs {other.what}, which is not "
                f"{self.program}: stop it, or {advice}"
            )
        if found.unknown:
            other = found.unknown[0]
            raise Unstartable(
                f"{prefix}conntrackd (pid {other.pid}) cannot be identified: {other.what}"
            )
        if found.hidden:
            raise Unstartable(f"{prefix}conntrackd may be running: {found.hidden}")

    def start(self) -> tuple[str, str]:
        """Start the daemon; the command, and what had to be done first. Raises Unstartable."""
        if self.conf is None or self.conf.socket is None:
            raise Unstartable(f"{self.config} names no UNIX Path: no client can reach conntrackd")
        self._check_alone(self._daemons())
        removed = self.unlock()
        unit = self.unit_config()
        by_unit = unit is not None and os.path.realpath(unit) == os.path.realpath(self.config)
        log = DaemonLog(self.conf, _UNIT if by_unit else None, self._no_progress)
        if by_unit:
            run(
                "systemctl", "reset-failed", _UNIT,
                seconds=CALL_SECONDS,
                working=self._no_progress,
            )  # fmt: skip
            finished = run(
                "systemctl", "start", _UNIT,
                seconds=START_SECONDS,
                working=self._no_progress,
            )  # fmt: skip
        else:
            _allow_real_time()
            _keep_to_ourselves()
            finished = run(
                self.program, "-C", self.config, "-d",
                seconds=START_SECONDS,
                working=self._no_progress,
                left=True,  # half a start would leave a lock file
            )  # fmt: skip
        how = f"systemctl start {_UNIT}" if by_unit else self.command(("-d",))
        if finished.code != 0:
            why = log.last_error() or message(finished.errors) or "it logged no reason"
            raise Unstartable(f"conntrackd does not start (`{how}`): {why}; {log.where}")
        return how, removed

    def unit_config(self) -> str | None:
        """The configuration that systemd's conntrackd unit runs with; None where there is none."""
        if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
            return None
        try:
            shown = run(
                "systemctl", "show", "--property=LoadState,ExecStart", _UNIT,
                seconds=CALL_SECONDS,
                working=self._no_progress,
            )  # fmt: skip
        except NotInstalled:
            return None
        text = shown.output.decode(errors="replace")
        if "LoadState=masked" in text:
            raise Unstartable(f"{_UNIT} is masked: systemctl unmask {_UNIT}")
        if shown.code != 0 or "LoadState=loaded" not in text:
            return None
        _, _, argv = text.partition("argv[]=")
        words = argv.partition(";")[0].split()
        return words[words.index("-C") + 1] if "-C" in words[:-1] else DEFAULT_CONFIG

    def _no_progress(self) -> bool:
        self.interrupt()
        return False


def _is_client(pid: int) -> bool:
    """Whether a process is a client of conntrackd's, by its arguments; one that has ended is."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            options = iter(file.read().split("\0")[1:])
    except (FileNotFoundError, ProcessLookupError):
        return True
    for option in options:
        if option == "-C":
            next(options, None)
        elif option[:1] == "-" and option[1:2] in _CLIENT_ACTIONS:
            return True
    return False


def _may_be_daemons(socket: os.stat_result) -> bool:
    """Whether conntrackd may have made that socket: where all may write, any user can make one."""
    return socket.st_uid in (0, os.geteuid())


def _allow_real_time() -> None:
    """Lift a limit that keepalived may leave its hooks, and that the daemon would inherit.

    With ``vrrp_rt_priority`` or ``vrrp_rlimit_rttime`` a hook runs with RLIMIT_RTTIME 0 (seen
    with 2.2.7): a conntrackd, which is a SCHED_RR process by default, is then killed at once.
    """
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
    for limit in (resource.RLIM_INFINITY, hard):
        with contextlib.suppress(ValueError, OSError):  # not ours to raise: then as far as it goes
            resource.setrlimit(resource.RLIMIT_RTTIME, (limit, limit))
            return


def _keep_to_ourselves() -> None:
    """Keep what our caller left open, a lock perhaps, from a daemon that would hold it for ever."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own is closed by now
            if int(name) > 2:
                os.set_inheritable(int(name), False)  # noqa: FBT003  # it takes no keyword
