"""The one door to other programs: arguments in, exit code and output out, with a deadline."""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import sh

_ANY_EXIT = list(range(-64, 256))
_POLL_SECONDS = 0.05
_ENDING = 0.001
"""A program ends within so many seconds of its output."""
_LONGEST_OUTPUT = 1 << 20
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are searched: directories that only root writes. The caller's PATH may begin with
any other, as after a `su` without `-`; /usr/local/bin may belong to a group (Debian's staff).
"""


class NotInstalled(Exception):
    """The program is not there, or may not be executed."""


class Finished(NamedTuple):
    """What came of a program; ``code`` is None where it did not end in time and was killed."""

    code: int | None
    output: bytes
    errors: bytes


def run(
    program: str,
    *arguments: str,
    seconds: float,
    working: Callable[[], bool] = lambda: False,
    left: bool = False,
) -> Finished:
    """Run a program to its end, or until ``seconds`` passed since it was last ``working``.

    ``program`` is an absolute path, or a name that is searched in ``PATH``; the program has that
    ``PATH`` too. Raises NotInstalled.

    What ``working`` raises ends the waiting, and the program with it unless that is ``left``.

    ``sh``'s own ``_timeout`` polls every 100 ms, so that every call lasts as long.
    Here the program writes into pipes of ours: their end is its end, and select(2) the deadline.
    """
    try:
        command = sh.Command(program, search_paths=PATH.split(":"))
    except sh.CommandNotFound as error:
        raise NotInstalled(f"{program}: no such program, or not executable") from error
    out, out_end = os.pipe()
    errors, errors_end = os.pipe()
    with open(os.devnull, "rb") as nothing:
        try:
            running = command(
                *arguments,
                _in=nothing,
                _out=out_end,
                _err=errors_end,
                _bg=True,
                _bg_exc=False,
                # Python's descriptors are closed on exec anyway; sh 1.14 fails without /dev/fd.
                _close_fds=False,
                _new_session=True,
                _env={**os.environ, "PATH": PATH},
                _ok_code=_ANY_EXIT,
            )
        except BaseException as error:
            os.close(out)
            os.close(errors)
            if isinstance(error, sh.ForkException):
                raise NotInstalled(f"{program}: cannot be executed") from error
            raise
        finally:
            os.close(out_end)
            os.close(errors_end)
    printed = {out: b"", errors: b""}
    ended = False
    try:
        ended = _read(printed, running.process, seconds, working)
        left = False
    finally:
        os.close(out)
        os.close(errors)
        if not ended and not left:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself just now
                os.killpg(running.pgid, signal.SIGKILL)
    try:
        running.wait()
    except sh.SignalException:
        pass  # sh 1.14 raises it whatever _ok_code allows; the exit code has it too
    return Finished(running.process.exit_code if ended else None, printed[out], printed[errors])


def _read(
    printed: dict[int, bytes], process: Any, seconds: float, working: Callable[[], bool]
) -> bool:
    """Collect both pipes to their end and the program's; False where the deadline came first."""
    open_pipes = set(printed)
    deadline = time.monotonic() + seconds
    while open_pipes or process.is_alive()[0]:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        pause = _POLL_SECONDS if open_pipes else _ENDING
        ready, _, _ = select.select(list(open_pipes), [], [], min(left, pause))
        for pipe in ready:
            chunk = os.read(pipe, 65536)
            if chunk:
                printed[pipe] = (printed[pipe] + chunk)[:_LONGEST_OUTPUT]
            else:
                open_pipes.discard(pipe)
        # One that has closed both pipes is about to end: that is worth the wait.
        if not ready and open_pipes and working():
            deadline = time.monotonic() + seconds
    return True
