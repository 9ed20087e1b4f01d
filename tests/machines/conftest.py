"""Pairs of booted machines, each kept for as many tests as leave it as they found it."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.lab.node import Node

from .machine import TREES, Disk, Machine, sweep
from .pair import ROOT, Machines

VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
MEASURED = pytest.StashKey[list[str]]()
WITNESS = pytest.StashKey[Machines | Machine]()
"""Whom a failed test's report asks."""
FAILED = pytest.StashKey[bool]()
_OTHERS = "conntrackd keepalived"
UNITS_OF_OTHERS = f"{{ systemctl cat {_OTHERS}; systemctl show -p DropInPaths {_OTHERS}; }}"
"""Prints the units that are not ours, with their drop-ins."""
IGNORED = shutil.ignore_patterns(".*", "dist", "__pycache__", "*.egg-info")

Checkout = Callable[[str], Path]
"""Makes a checkout as git has it, of another version if one is named."""


@pytest.fixture(scope="session", autouse=True)
def trees() -> None:
    """What machines boot from: fails where the tests are the gate, skips elsewhere."""
    lacking = None
    if os.geteuid() != 0:
        lacking = "machines are containers: run as root"
    elif not all((TREES / name).is_dir() for name in ("bookworm", "trixie", "builder")):
        lacking = f"there are no trees in {TREES}: run tests/machines/prepare"
    if lacking:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)
    sweep()


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Makes checkouts that a build may write into."""

    def make(version: str = "") -> Path:
        copy = tmp_path_factory.mktemp("checkout") / "ftfw-transition"
        shutil.copytree(ROOT, copy, ignore=IGNORED)
        if version:
            for name in ("pyproject.toml", "CHANGELOG.md"):
                file = copy / name
                file.write_text(file.read_text().replace(VERSION, version, 1))
        return copy

    return make


Builder = Callable[[str, Path], Path]
"""Runs `make deb` in a checkout, on a Debian 13 if its tree is named, else here; the package."""


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Builds packages."""

    def built(tree: str, checkout: Path) -> Path:
        if tree == "trixie":
            workdir = tmp_path_factory.mktemp("builder")
            disk = Disk(workdir / "disk", TREES / "builder")
            shutil.copytree(checkout, disk.directory / "upper/root/checkout")
            with Machine("builder", workdir / "machine", disk) as machine:
                made = machine.nspawn("--pipe", "--chdir=/root/checkout", "make", "deb")
                assert made.wait(timeout=600) == 0, machine.output(made)
            checkout = disk.directory / "upper/root/checkout"
        else:
            subprocess.run(["make", "deb"], cwd=checkout, check=True, timeout=600)
        (package,) = (checkout / "dist").glob("*.deb")
        return package

    return built


@pytest.fixture(scope="session")
def deb(checkout: Checkout, build: Builder) -> Callable[[str], Path]:
    """The package, for the machines of a tree: that of Debian 13 is built on one."""
    return functools.cache(lambda tree: build(tree, checkout("")))


@pytest.fixture(scope="session")
def newer_deb(checkout: Checkout, build: Builder) -> Callable[[str], Path]:
    """The next version of it."""
    return functools.cache(lambda tree: build(tree, checkout("99")))


class Kept:
    """The pair of one kind, made when it is asked for, and kept until it is spent."""

    def __init__(self, make: Callable[[], Machines]) -> None:
        self._make = make
        self._stack = contextlib.ExitStack()
        self._pair: Machines | None = None
        self._is_settled = False
        self.is_new = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.spend()

    def spend(self) -> None:
        """Let nobody have it any more."""
        self._pair = None
        self._stack.close()

    def get(self) -> Machines:
        """The pair as it was handed back; another one where it was not."""
        if not self._is_settled:
            self.spend()
        self._is_settled = False
        self.is_new = self._pair is None
        if self._pair is None:
            self._pair = self._stack.enter_context(self._make())
        return self._pair

    def hand_back(self) -> None:
        """See that whoever had it has left a pair: AssertionError if not, and no one gets it."""
        if self._pair is None:
            return
        try:
            self._pair.settled()
        except (AssertionError, subprocess.CalledProcessError) as error:
            # Here, because it may be gone before the report is made.
            error.add_note(_told(self._pair))
            raise
        self._is_settled = True


@pytest.fixture(scope="module")
def kept(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    deb: Callable[[str], Path],
) -> Iterator[Kept]:
    """The kept pair that the parameter describes: `bookworm`, or `bookworm-trixie with hooks`."""
    trees, _, wiring = request.param.partition(" with ")
    first, _, second = trees.partition("-")

    def make() -> Machines:
        workdir = tmp_path_factory.mktemp("pair")
        return Machines(workdir, (first, second or first), deb(first), wiring or "fifo")

    with Kept(make) as kept:
        yield kept


@pytest.fixture
def pair(kept: Kept, request: pytest.FixtureRequest) -> Iterator[Machines]:
    """Two machines, set up as in the README; one is primary, one its backup, also afterwards."""
    pair = kept.get()
    request.node.stash[WITNESS] = pair
    if kept.is_new:
        pair.set_up()
    yield pair
    if not request.node.stash.get(FAILED, False):
        kept.hand_back()


@pytest.fixture
def last_pair(kept: Kept, pair: Machines) -> Iterator[Machines]:
    """The same, for a test after which it is no pair any more."""
    yield pair
    kept.spend()


@pytest.fixture(scope="module")
def installed(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    deb: Callable[[str], Path],
) -> Iterator[Machine]:
    """One machine of the tree that the parameter names, with the addresses of the shipped fw-1."""
    workdir = tmp_path_factory.mktemp("installed")
    package = deb(request.param)
    disk = Disk(workdir / "disk", TREES / request.param)
    disk.write(f"/root/{package.name}", package)
    with Node("wall", workdir) as wall, Machine("fw-1", workdir / "machine", disk) as machine:
        for device, address in (
            ("eth0", "192.0.2.2/24"), ("eth1", "10.10.0.2/24"), ("eth2", "10.99.99.1/30"),
        ):  # fmt: skip
            machine.plug(device, wall, device)
            machine.ip(f"address add {address} dev {device}")
        machine.up()
        machine.shell(f"{UNITS_OF_OTHERS} >units-before")
        machine.shell(f"apt-get install -y ./{package.name}")
        yield machine


@pytest.fixture
def machine(installed: Machine, request: pytest.FixtureRequest) -> Machine:
    """The package is installed on it, and nothing else was done."""
    request.node.stash[WITNESS] = installed
    return installed


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the end of the report."""
    return request.config.stash.setdefault(MEASURED, [])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, object, None]:
    """Add what the machines have to tell, while they are still there."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]  # pluggy.Result
    item.stash[FAILED] = report.failed
    witness = item.stash.get(WITNESS, None)
    if report.failed and call.when != "teardown" and witness is not None:
        report.sections.append(("the machines", _told(witness)))


def _told(witness: Machines | Machine) -> str:
    try:
        return witness.report()
    except Exception as error:  # noqa: BLE001  # the first failure is the one to be explained
        return f"the machines cannot tell: {error!r}"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was measured."""
    for line in config.stash.get(MEASURED, []):
        terminalreporter.write_line(line)


def pytest_report_collectionfinish() -> list[str]:
    """Say what is under test: the kernel that all share, and the daemons of each tree."""
    return [f"Linux {platform.release()}", *map(_versions, ("bookworm", "trixie"))]


def _versions(tree: str) -> str:
    result = subprocess.run(
        ["dpkg-query", f"--root={TREES / tree}", "--show",
         "--showformat=${Package} ${Version}, ", "keepalived", "conntrackd", "systemd"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"{tree}: {result.stdout.rstrip(', ') or 'missing'}"
