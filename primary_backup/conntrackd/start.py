"""Starting conntrackd: as systemd's unit or by itself, after a stale lock file is removed."""

import contextlib
import errno
import os
import stat

from primary_backup.conntrackd.client import (
    CALL_SECONDS,
    Daemon,
    may_be_daemons,
)
from primary_backup.conntrackd.daemonlog import DaemonLog, message
from primary_backup.settings import CONFIG
from primary_backup.system.identity import Daemons, daemons
from primary_backup.system.run import NotInstalled, run

START_SECONDS = 20.0
_CLIENT_ACTIONS = frozenset("cfFeiksnBRtxhv")
_NAME = "conntrackd"
_UNIT = "conntrackd.service"
_KINDS = {
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}


class Unstartable(Exception):
    """The daemon is down and cannot be started."""


def unlock(daemon: Daemon) -> str:
    """Remove a lock file that a killed daemon left; what was done. Raises Unstartable.

    It makes every start fail without a message. Only one that is proven stale is removed: a
    second daemon would take a running one's socket away.
    """
    if daemon.conf is None:
        raise Unstartable(f"{daemon.config} cannot be read: it may have another lock file")
    lock_file = daemon.conf.lock_file
    if _find_lock(daemon) is None:
        return ""
    running = _daemons(daemon)
    if running.installed:
        return f"the lock {lock_file} stays: conntrackd is running (pid {running.installed[0]})"
    _check_alone(daemon, running, f"the lock {lock_file} stays: ")
    found = _find_lock(daemon)
    if found is None or not _is_unreached(daemon):
        return ""
    try:
        os.unlink(lock_file)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Unstartable(f"stale lock {lock_file}: {error.strerror}") from error
    whose = f" of uid {found.st_uid}" if found.st_uid else ""
    return f"stale lock {lock_file}{whose} removed"


def _is_unreached(daemon: Daemon) -> bool:
    """Whether a connection is refused; a full backlog, EACCES and a time-out prove nothing."""
    if daemon.conf is None or daemon.conf.socket is None:
        return True  # without one there is none that a second daemon could take away
    found = daemon.find_socket()
    if found is not None and not may_be_daemons(found):
        return True
    import socket  # only a dead daemon needs it

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            return probe.connect_ex(daemon.conf.socket) in (errno.ENOENT, errno.ECONNREFUSED)
        except OSError:  # too long for a socket's address: a daemon may have cut it
            return False


def _find_lock(daemon: Daemon) -> os.stat_result | None:
    """The lock file; raises Unstartable where something else has its name."""
    lock_file = daemon.conf.lock_file if daemon.conf is not None else ""
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


def _daemons(daemon: Daemon) -> Daemons:
    """The processes that are this daemon, or may be; its clients are none."""
    found = daemons(daemon.program, _NAME)
    return found._replace(
        installed=tuple(pid for pid in found.installed if not _is_client(pid)),
        foreign=tuple(each for each in found.foreign if not _is_client(each.pid)),
        unknown=tuple(each for each in found.unknown if not _is_client(each.pid)),
    )


def _check_alone(daemon: Daemon, found: Daemons, prefix: str = "") -> None:
    """Raise Unstartable where a daemon runs, or where that cannot be excluded."""
    if found.installed:
        socket = daemon.conf.socket if daemon.conf is not None else None
        raise Unstartable(
            f"{prefix}conntrackd is running (pid {found.installed[0]}) but does not answer on "
            f"{socket}: stop it, or correct `UNIX {{ Path }}` in {daemon.config}"
        )
    if found.foreign:
        other = found.foreign[0]
        # A container's program is never to be named: we would execute it.
        advice = "give its container a network namespace of its own"
        advice = advice if other.contained else "name its program with --conntrackd"
        raise Unstartable(
            f"{prefix}conntrackd (pid {other.pid}) runs {other.what}, which is not "
            f"{daemon.program}: stop it, or {advice}"
        )
    if found.unknown:
        other = found.unknown[0]
        raise Unstartable(
            f"{prefix}conntrackd (pid {other.pid}) cannot be identified: {other.what}"
        )
    if found.hidden:
        raise Unstartable(f"{prefix}conntrackd may be running: {found.hidden}")


def start(daemon: Daemon) -> tuple[str, str]:
    """Start the daemon; the command, and what had to be done first. Raises Unstartable."""
    if daemon.conf is None or daemon.conf.socket is None:
        raise Unstartable(f"{daemon.config} names no UNIX Path: no client can reach conntrackd")
    _check_alone(daemon, _daemons(daemon))
    removed = unlock(daemon)
    unit = unit_config(daemon)
    by_unit = unit is not None and os.path.realpath(unit) == os.path.realpath(daemon.config)
    log = DaemonLog(daemon.conf, _UNIT if by_unit else None, daemon.no_progress)
    if by_unit:
        run(
            "systemctl", "reset-failed", _UNIT,
            seconds=CALL_SECONDS,
            working=daemon.no_progress,
        )  # fmt: skip
        finished = run(
            "systemctl", "start", _UNIT,
            seconds=START_SECONDS,
            working=daemon.no_progress,
        )  # fmt: skip
    else:
        _allow_real_time()
        _keep_to_ourselves()
        finished = run(
            daemon.program, "-C", daemon.config, "-d",
            seconds=START_SECONDS,
            working=daemon.no_progress,
            left=True,  # half a start would leave a lock file
        )  # fmt: skip
    how = f"systemctl start {_UNIT}" if by_unit else daemon.command(("-d",))
    if finished.code != 0:
        why = log.last_error() or message(finished.errors) or "it logged no reason"
        raise Unstartable(f"conntrackd does not start (`{how}`): {why}; {log.where}")
    return how, removed


def unit_config(daemon: Daemon) -> str | None:
    """The configuration that systemd's conntrackd unit runs with; None where there is none."""
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        return None
    try:
        shown = run(
            "systemctl", "show", "--property=LoadState,ExecStart", _UNIT,
            seconds=CALL_SECONDS,
            working=daemon.no_progress,
        )  # fmt: skip
    except NotInstalled:
        return None
    text = shown.output.decode(errors="replace")
    if "LoadState=masked" in text:
        raise Unstartable(f"{_UNIT} is masked: systemctl unmask {_UNIT}")
    if shown.code != 0 or "LoadState=loaded" not in text:
        return None
    _, _, argv = text.partition("argv[]=")
    arguments = argv.partition(";")[0].split()
    return arguments[arguments.index("-C") + 1] if "-C" in arguments[:-1] else CONFIG


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
