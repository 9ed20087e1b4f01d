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
    """The source distribution of a checkout, and the wheel made of it."""
    copy = tmp_path_factory.mktemp("built") / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "dist", "__pycache__"))
    run("env", f"PYTHON={sys.executable}", copy / "packaging/make-dist")
    (sdist,) = (copy / "dist").glob("*.tar.gz")
    (wheel,) = (copy / "dist").glob("*.whl")
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


def test_the_source_distribution_holds_the_whole_source(built: Built) -> None:
    """Who packages it finds the man page, the units, the licence, and the tests."""
    with tarfile.open(built.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}

    assert names >= {
        str(path.relative_to(ROOT))
        for part in ("packaging/**/*", "tests/**/*", "*.md", "LICENSE", "Makefile")
        for path in ROOT.glob(part)
        if "__pycache__" not in path.parts
    }


def test_another_build_makes_the_same_distributions(built: Built, tmp_path: Path) -> None:
    """To the last bit, of files with other times and modes: anyone can check what is published."""
    copy = tmp_path / "another"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "dist", "__pycache__"))
    for path in copy.rglob("*"):
        path.chmod(path.stat().st_mode & ~0o077)
        os.utime(path, (0, 0))

    run("env", f"PYTHON={sys.executable}", "TZ=XYZ-14", copy / "packaging/make-dist")

    for path in built:
        assert (copy / "dist" / path.name).read_bytes() == path.read_bytes()


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
