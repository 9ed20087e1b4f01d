"""Why a conntrackd did not start: what it logged meanwhile, and who holds its port."""

import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from primary_backup.conntrackd.conf import Conntrackd
from primary_backup.system.run import NotInstalled, run

JOURNAL_SECONDS = 2.0
"""journalctl answers in some 10 ms; a newer notification may be waiting."""
_SYSLOG = "/var/log/syslog"
_IDENTIFIER = "conntrack-tools"
"""conntrackd's name in the system's log (log.c)."""
_ERRORS = 3
"""conntrackd 1.4.7 logs the cause, and then two lines that only report that it does not start."""
_LONGEST = 65536


class _Mark(NamedTuple):
    """A log file, and its size at one moment, in bytes."""

    path: str
    size: int

    @classmethod
    def now(cls, path: str) -> "_Mark":
        try:
            return cls(path, os.stat(path).st_size)
        except OSError:
            return cls(path, 0)

    def appended(self) -> list[str]:
        """The lines since then."""
        try:
            with open(self.path, "rb", opener=_without_waiting) as file:
                size = os.fstat(file.fileno()).st_size
                # One that is shorter than it was has been rotated.
                file.seek(max(self.size if size >= self.size else 0, size - _LONGEST))
                return file.read(_LONGEST).decode(errors="replace").splitlines()
        except OSError:
            return []


class DaemonLog:
    """What a conntrackd logs from now on, wherever its configuration sends it."""

    def __init__(
        self,
        conf: Conntrackd,
        unit: str | None,
        working: Callable[[], bool] = lambda: False,
    ) -> None:
        """``unit``: the unit that systemd starts it by, if it does; ``working``: as of ``run``."""
        self._conf = conf
        self._unit = unit
        self._working = working
        self._file = _Mark.now(conf.log_file) if conf.log_file is not None else None
        self._syslog = _Mark.now(_SYSLOG)
        self._began = int(time.time())

    @property
    def where(self) -> str:
        """Where a person finds it."""
        if self._conf.log_file is not None:
            return f"see {self._conf.log_file}"
        return f"see `journalctl -u {self._unit}`" if self._unit else "see the system's log"

    def last_error(self) -> str:
        """The errors of its last start, and whose its port is if that is why; may be empty."""
        lines = self._file.appended() if self._file is not None else []
        lines = lines or self._journal()
        lines = lines or [line for line in self._syslog.appended() if _IDENTIFIER in line]
        found = _errors(lines)
        if any("in use" in error for error in found):
            found += sorted({*_holders(self._conf.ports)})
        lock = self._conf.lock_file
        if any("lockfile" in error for error in found) and not os.path.lexists(lock):
            # conntrackd logs the same whatever keeps it from making the file.
            found.append(f"there is no {lock}: conntrackd may not write there (ReadWritePaths=)")
        return "; ".join(found)

    def _journal(self) -> list[str]:
        # Any user may log under any name.
        whose = (
            [f"--unit={self._unit}"] if self._unit else [f"--identifier={_IDENTIFIER}", "_UID=0"]
        )
        try:
            finished = run(
                "journalctl", "--quiet", "--no-pager", "--output=short-unix", "--no-hostname",
                f"--since=@{self._began}", *whose,
                seconds=JOURNAL_SECONDS,
                working=self._working,
            )  # fmt: skip
        except NotInstalled:
            return []
        lines = (
            line.partition(" ")[2].partition(": ")
            for line in finished.output.decode(errors="replace").splitlines()
        )
        # systemd itself only logs that the unit has failed.
        return [text for who, _, text in lines if who.partition("[")[0] != "systemd"]


def _without_waiting(path: str, flags: int) -> int:
    """Open a log file, which may be a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK)


def message(errors: bytes) -> str:
    """A program's last error in one line, without its time stamp and pid."""
    return next(reversed(_errors(errors.decode(errors="replace").splitlines())), "")


def _errors(lines: list[str]) -> list[str]:
    """The last lines that are errors, or the last line of all where none is."""
    lines = [line for line in lines if line.strip()]
    wanted = [line for line in lines if "[ERROR]" in line or line.startswith("ERROR: ")]
    errors = [line.rpartition("[ERROR]")[2].removeprefix("ERROR: ").strip() for line in wanted]
    # Where conntrackd logs to syslog as well, the journal has each line twice.
    return [*dict.fromkeys(errors)][-_ERRORS:] or lines[-1:]


def _holders(ports: tuple[int, ...]) -> Iterator[str]:
    """Whose sockets have one of these UDP ports: proc(5), /proc/net/udp."""
    for path in ("/proc/net/udp", "/proc/net/udp6"):
        try:
            with open(path, encoding="ascii") as file:
                rows = file.read().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            port = int(fields[1].rpartition(":")[2], 16)
            if port in ports:
                uid = fields[7]
                yield f"uid {uid} holds UDP port {port} (`ss -lunp` names the process)"
