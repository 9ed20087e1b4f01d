"""Waiting for a fact, with a deadline: the only place where a test sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(fact: Callable[[], T], what: str = "", within: float = 10, every: float = 0.005) -> T:
    """Wait for a fact's first true value; AssertionError after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not (value := fact()):
        assert time.monotonic() < deadline, f"not within {within} s: {what or fact}"
        time.sleep(every)
    return value


def stays(fact: Callable[[], object], *, seconds: float, what: str = "") -> None:
    """Watch a fact for as long as it could be undone; AssertionError once it is not so."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert fact(), f"no longer so: {what or fact}"
        time.sleep(0.1)
    assert fact(), f"no longer so: {what or fact}"
