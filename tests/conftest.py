"""Nodes with a fake conntrackd, for every test that asks."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.fake.node import Node


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
