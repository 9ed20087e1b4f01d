"""Processes that do nothing, and what proc(5) shows of them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from primary_backup.system.proc import Issued


@contextmanager
def running(program: str = "sleep") -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs until it is no longer needed."""
    process = subprocess.Popen([program, "100"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def issued_of(process: subprocess.Popen[bytes]) -> Issued:
    """When a process was started, which is when a hook's notification was issued."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return Issued(int(fields[19]), process.pid)
