"""The pure modules, as pyproject.toml lists them: values in, values out."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PURE: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]["run"][
    "include"
]
EFFECTS = {
    "fcntl", "io", "logging", "os", "pathlib", "random", "select", "sh", "shutil", "signal",
    "socket", "subprocess", "sys", "tempfile", "threading", "time",
}  # fmt: skip


def uses(module: Path) -> set[str]:
    """What a module imports, and the built-in functions that it calls; without their parts."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        match node:
            case ast.Import(names=names):
                found |= {name.name for name in names}
            case ast.ImportFrom(module=str(name)) | ast.Call(func=ast.Name(id=name)):
                found.add(name)
    return {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_asks_nothing_of_the_world(name: str) -> None:
    """No file, no clock, no program, no randomness: its tests need nothing but values."""
    assert uses(ROOT / name).isdisjoint(EFFECTS | {"open", "print", "input"})
