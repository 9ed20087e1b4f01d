"""Imports go down the list of CONTRIBUTING.md, never up; and no module grows out of sight."""

import ast
from itertools import chain
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "primary_backup"
LAYERS = (
    ("commands",),
    ("follower",),
    ("controller",),
    ("decide", "record"),
    ("transition",),
    ("commit", "purge"),
    ("peer",),
    ("answer",),
    ("requests",),
    ("conntrackd",),
    ("keepalived", "rundir"),
    ("pair",),
    ("intent", "memory", "past", "plan", "proof", "result", "settings", "site", "system"),
)
"""From the top; what stands on one line may import each other."""
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name(module: Path) -> str:
    """A module's folder, or its own name where it has none."""
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(module: Path) -> set[str]:
    """The modules of ours that it imports, be it late, with their dots."""
    nodes = ast.walk(ast.parse(module.read_text()))
    froms = (node.module or "" for node in nodes if isinstance(node, ast.ImportFrom))
    return {each.removeprefix("primary_backup.") for each in froms if "primary_backup." in each}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_goes_up(module: Path) -> None:
    """A folder is one outside thing, and the controller the place where they meet."""
    ranks = {each: RANKS[each.partition(".")[0]] for each in imported(module)}

    assert {each for each, rank in ranks.items() if rank < RANKS[name(module)]} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Each can be read, and tested, after those that it imports."""
    left = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): imported(path)
        for path in MODULES
    }
    while free := {each for each, needs in left.items() if needs.isdisjoint(left)}:
        left = {each: needs for each, needs in left.items() if each not in free}

    assert left == {}


def test_no_module_is_longer_than_250_lines() -> None:
    """One that is has two jobs; and nine of ten functions fit into 25 lines."""
    lines = {path.name: len(path.read_text().splitlines()) for path in MODULES}
    functions = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for node in chain.from_iterable(ast.walk(ast.parse(path.read_text())) for path in MODULES)
        if isinstance(node, ast.FunctionDef)
    )

    assert {each: length for each, length in lines.items() if length > 250} == {}
    assert functions[len(functions) * 9 // 10] <= 25
