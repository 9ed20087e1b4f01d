"""A pair of firewalls for every test that asks, and its whole story in the report of a failure."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.node import ENVIRONMENT
from tests.lab.pair import Lab, Pair, Wiring

PROGRAMS = ("conntrack", "conntrackd", "ip", "keepalived", "nft", "nsenter", "sysctl", "unshare")
COMMAND = Path(sys.executable).with_name("ftfw-transition")
PAIRS = pytest.StashKey[list[Pair]]()


@pytest.fixture
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Builds pairs as a test wants them, with Pair's arguments; `start()` starts their daemons."""
    if lacking := _lacking():
        # Where the tests are the gate, a lab that cannot be built is no reason to pass.
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)
    pairs = request.node.stash.setdefault(PAIRS, [])
    with contextlib.ExitStack() as stack:

        def build(command: Path = COMMAND, **edits: Any) -> Pair:
            assert command.exists(), f"{command} is not installed"
            pair = Pair(tmp_path / str(len(pairs)), command, **edits)
            stack.enter_context(pair)
            pairs.append(pair)
            return pair

        yield build


@pytest.fixture
def wiring() -> Wiring:
    """How keepalived shows, for those that do not say it."""
    return "hooks"


@pytest.fixture
def pair(lab: Lab, wiring: Wiring) -> Pair:
    """The pair as shipped: fw-1 is the primary, fw-2 its backup, and nothing is under way."""
    return lab(wiring=wiring).start()


def _lacking() -> str | None:
    if os.geteuid() != 0:
        return "the lab makes network namespaces: run as root"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=ENVIRONMENT["PATH"])]
    return f"the lab needs {', '.join(missing)}" if missing else None


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, object, None]:
    """Add what daemons and hooks have printed and logged, while the pair is still there."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]  # pluggy.Result
    if report.failed and call.when != "teardown":
        pairs: list[Pair] = item.stash.get(PAIRS, [])
        for number, pair in enumerate(pairs):
            report.sections.append((f"pair {number}", pair.report()))


def pytest_report_collectionfinish() -> list[str]:
    """Say what is under test. Not in the header, which pytest writes before it reads this file."""
    return [f"Linux {platform.release()}", *filter(None, map(_version, PROGRAMS[1:5]))]


def _version(program: str) -> str | None:
    found = shutil.which(program, path=ENVIRONMENT["PATH"])
    option = {"ip": "-V", "nft": "-v"}.get(program, "--version")
    if not found:
        return None
    result = subprocess.run([found, option], capture_output=True, text=True, check=False)
    return (result.stdout + result.stderr).partition("\n")[0]
