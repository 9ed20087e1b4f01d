"""The package: what pip installs needs no checkout, and a commit waits for no import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from primary_backup.site.render import EXAMPLE

ROOT = Path(__file__).parents[1]
PACKAGING = ROOT / "packaging"
SOURCES = {
    str(path.relative_to(ROOT))
    for path in (ROOT / "primary_backup").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}


class Built(NamedTuple):
    """What is given to those who install with pip."""

    sdist: Path
    wheel: Path


def run(*argv: str | Path, cwd: str | Path = "/", path: str | Path = "") -> str:
    """Run a program to its end, away from the checkout; what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    ended = subprocess.run(
        argv, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The source distribution of a copy in which nothing is left over, and the wheel made of it."""
    tmp = tmp_path_factory.mktemp("built")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    copy = tmp / "copy"
    shutil.copytree(
        ROOT / "primary_backup", copy / "primary_backup",
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    backend = f"import setuptools.build_meta as backend; backend.build_sdist({str(tmp)!r})"
    run(sys.executable, "-c", backend, cwd=copy)
    (sdist,) = tmp.glob("*.tar.gz")
    run(
        *(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index"),
        *("--wheel-dir", tmp, sdist),
    )
    (wheel,) = tmp.glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="module")
def command(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment with the wheel, and the libraries of the tests'."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    python = environment / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built.wheel)  # noqa: E501  # fmt: skip
    # Not before: pip would find the package there. What is linked into the checkout stays out,
    # because no .pth file of a directory is read that is itself named by one.
    purelib = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    )
    (purelib / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin/ftfw-transition"


def test_both_distributions_hold_every_file_of_the_package(built: Built) -> None:
    """Templates and the example are no modules, and are as easily left out."""
    with tarfile.open(built.sdist) as sdist:
        assert {name.partition("/")[2] for name in sdist.getnames()} >= SOURCES
    with zipfile.ZipFile(built.wheel) as wheel:
        assert set(wheel.namelist()) >= SOURCES


def test_the_installed_command_renders_what_is_shipped(command: Path, tmp_path: Path) -> None:
    """From any directory, by the example that it prints, and without a checkout."""
    site = tmp_path / "site.toml"
    python = command.with_name("python")
    where = run(python, "-c", "import primary_backup.site.render as it; print(it.TEMPLATES)")
    assert Path(where).is_relative_to(command.parents[1])

    site.write_text(run(command, "render", "--example"))

    assert site.read_text() == Path(EXAMPLE).read_text()
    for node, directory in (("fw-1", PACKAGING), ("fw-2", PACKAGING / "fw-2")):
        output = tmp_path / node
        written = run(command, "render", "--site", site, "--node", node, "--output", output)
        assert len(written.splitlines()) == sum("/templates/" in name for name in SOURCES)
        for line in written.splitlines():
            path = Path(line).relative_to(output)
            shipped = directory / path if (directory / path).exists() else PACKAGING / path
            assert Path(line).read_bytes() == shipped.read_bytes(), path


@pytest.mark.parametrize("module", ["commands.transition", "follower.loop"])
def test_a_commit_does_not_wait_for_what_only_render_needs(module: str) -> None:
    """Libraries for templates and for validation are imported by `render` alone."""
    code = f"import sys, primary_backup.{module}; print(*sys.modules)"

    imported = set(run(sys.executable, "-c", code, path=ROOT).split())

    assert f"primary_backup.{module}" in imported
    assert imported.isdisjoint({"jinja2", "voluptuous", "tomllib"})
