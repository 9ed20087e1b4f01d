"""Nodes with a fake conntrackd, for every test that asks; and the tests of values alone."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fake.keepalived import Place
from tests.fake.node import Follower, Node

EFFECTS = {"namespaces", "tmp_path", "tmp_path_factory"}
OUTSIDE = {
    "os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen",
    "fcntl.flock", "fcntl.lockf", "socket.bind", "socket.connect", "socket.sendto",
}  # fmt: skip
"""What Python audits before it starts a program, waits for a lock, or uses a socket."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Values in, values out: `make unit`."""
    parser.addoption("--values", action="store_true", help="leave out nodes, programs and locks")


def pytest_configure(config: pytest.Config) -> None:
    """Fewer examples of what holds for any value, for --values: it is for every save of a file."""
    if config.option.values:
        settings.register_profile("values", max_examples=20)
        settings.load_profile("values")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, for --values, what has a node or a directory."""
    if config.option.values:
        kept = [item for item in items if EFFECTS.isdisjoint(getattr(item, "fixturenames", ()))]
        config.hook.pytest_deselected(items=set(items).difference(kept))
        items[:] = kept


@pytest.fixture(scope="session", autouse=True)
def values_alone(request: pytest.FixtureRequest) -> None:
    """Skip, for --values, a test where it leaves values: no list of such tests can go stale."""

    def skip(event: str, _: object) -> None:
        if event in OUTSIDE:
            pytest.skip(f"not of values alone: {event}")

    if request.config.option.values:
        sys.addaudithook(skip)


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Namespaces can be made here: fails where the tests are the gate, skips elsewhere."""
    made = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False)
    if made.returncode != 0:
        lacking = "a node needs namespaces of its own: run as root"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)


@pytest.fixture(scope="module")
def nodes(
    namespaces: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Node]]:
    """Makes nodes that live as long as the module's tests."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Node(tmp_path_factory.mktemp("node"))))


@pytest.fixture
def node(namespaces: None, tmp_path: Path) -> Iterator[Node]:
    """One node for one test."""
    with closing(Node(tmp_path)) as node:
        yield node


@pytest.fixture
def follower(node: Node) -> Follower:
    """A follower of the group G1, with nothing to do yet."""
    node.has(internal=3, external=3, holds=3)
    return node.follow()


@pytest.fixture
def place(namespaces: None, tmp_path: Path) -> Iterator[Place]:
    """A network namespace for real keepalived processes."""
    with Place("place", tmp_path) as place:
        yield place
