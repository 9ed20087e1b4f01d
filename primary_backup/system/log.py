"""JSON lines to the system's log socket, or to stderr; a short table for a person."""

import logging
import os
import select
import socket
import sys
import time
from collections import deque
from typing import Any

try:
    from pythonjsonlogger.json import JsonFormatter
except ImportError:  # before 3.1
    from pythonjsonlogger.jsonlogger import JsonFormatter  # type: ignore[attr-defined]

from primary_backup.system.printable import printable

IDENTIFIER = "ftfw-transition"
SOCKET = "/dev/log"
LEVELS = {
    "ok": logging.INFO,
    "skipped": logging.INFO,
    "superseded": logging.INFO,
    "degraded": logging.WARNING,
    "failed": logging.ERROR,
}
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
_DAEMON = 3 << 3
"""The facility LOG_DAEMON of syslog(3)."""
_UNSENT = 1000
"""At most so many events wait for room in the log; after that the oldest are lost."""
_ROOM_SECONDS = 0.5
"""How long the last events of a process wait for it."""


class SystemLog(logging.Handler):
    """Datagrams to ``/dev/log``, as syslog(3) sends them, but never waiting for a reader.

    A transition must not hang because journald does: what does not fit is sent later. (Ten lines of
    keepalived's fill the queue where systemd has not raised net.unix.max_dgram_qlen.) Each goes to
    the path again, because the reader may have been restarted.
    """

    def __init__(self, path: str, fallback: logging.Handler) -> None:
        """``fallback`` gets a record when /dev/log has no reader."""
        super().__init__()
        self._path = path
        self._fallback = fallback
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._unsent: deque[tuple[bytes, logging.LogRecord]] = deque(maxlen=_UNSENT)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record with its priority, the identifier and our pid."""
        priority = _DAEMON | _PRIORITIES.get(record.levelno, 6)
        line = f"<{priority}>{IDENTIFIER}[{os.getpid()}]: {self.format(record)}"
        self._unsent.append((line.encode(errors="backslashreplace"), record))
        self.send()

    def send(self, seconds: float = 0) -> None:
        """Send what has not been sent, as far as there is room within ``seconds``."""
        until = time.monotonic() + seconds
        while self._unsent:
            line, record = self._unsent[0]
            try:
                self._socket.sendto(line, self._path)
            except BlockingIOError:
                if time.monotonic() >= until:
                    return
                time.sleep(0.005)  # poll(2) works for connected sockets only
                continue
            except OSError:
                self._fallback.emit(record)
            self._unsent.popleft()


class Buffered(logging.Handler):
    """JSON lines for stderr, buffered: a pipe without a reader must not stop a transition."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Buffer one event's line."""
        self.lines.append(self.format(record))


class Table(Buffered):
    """The events on a terminal: a line for each step, and how the transition ended.

    Buffered too: a terminal may be stopped, or be lost with the very connection that fails over.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Buffer one event's line."""
        event = record.__dict__
        if record.msg == "step.finished":
            text = "  {step:<15} {outcome:<10} {seconds:>7.2f} s  {reason}".format_map(event)
        elif record.msg == "transition.finished":
            text = "{state}: {outcome} – {reason}".format_map(event)
            if event["advice"]:
                text += f"\n  next: {event['advice']}"
        elif event["outcome"] == "failed":
            return  # the command itself prints why it has not begun
        else:
            text = f"{record.msg}: {event['reason']}"
        self.lines.append(text.rstrip())


class Log:
    """Where the events of one transition go."""

    def __init__(self, level: str) -> None:
        """``level`` is a name of logging's, events below it are not written."""
        self._formatter = JsonFormatter(
            "%(levelname)s %(message)s",
            rename_fields={"levelname": "level"},
            timestamp="time",
            json_ensure_ascii=False,
        )
        self._logger = logging.Logger(IDENTIFIER, level.upper())  # noqa: LOG001  # ours alone
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._buffered = Table() if terminal else Buffered()
        self._buffered.setFormatter(self._formatter)
        self._log = SystemLog(SOCKET, logging.NullHandler() if terminal else self._buffered)
        self._log.setFormatter(self._formatter)
        self._logger.addHandler(self._log)
        if terminal:
            self._logger.addHandler(self._buffered)

    def show(self, *, wait: bool) -> None:
        """Write what was buffered, to stderr too; unless it may ``wait``, only what is taken now.

        What stderr does not take is dropped; the log gets it again.
        """
        self._log.send(_ROOM_SECONDS if wait else 0)
        lines, self._buffered.lines = self._buffered.lines, []
        if not lines or sys.stderr is None:
            return
        text = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
        stderr = sys.stderr.fileno()
        try:
            for start in range(0, len(text), select.PIPE_BUF):
                if not wait and not select.select([], [stderr], [], 0)[1]:
                    return
                os.write(stderr, text[start : start + select.PIPE_BUF])
        except OSError:
            pass  # it has no reader

    def event(self, name: str, fields: dict[str, Any]) -> str:
        """Log one event at its outcome's level; returns the JSON line, which is printable.

        The fields are any JSON values; their texts may come from outside.
        """
        fields = _printable(fields)
        level = LEVELS[fields["outcome"]]
        record = self._logger.makeRecord(IDENTIFIER, level, "", 0, name, (), None, extra=fields)
        if self._logger.isEnabledFor(level):
            self._logger.handle(record)
        return self._formatter.format(record)


def _printable(value: Any) -> Any:
    """A JSON value with every text in it fit for a line; a terminal shows it as ``jq -r`` does."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {name: _printable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(each) for each in value]
    return value
