"""A release: one version, and what is made of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CHANGES = """\
# Changelog

## Unreleased

- Not released.

## [1.1] - 2027-01-02

### Added

- A change that is
  explained on two lines.
- Another one.

### Fixed

- A line is wrapped at eighty columns, where the longest that Debian's tools accept ends.

## 1.0 – 2026-12-31

- The first.
"""
DEBIAN_CHANGES = """\
ftfw-transition (1.1) unstable; urgency=medium

  [ Added ]
  * A change that is explained on two lines.
  * Another one.

  [ Fixed ]
  * A line is wrapped at eighty columns, where the longest that Debian's tools
    accept ends.

 -- A Maintainer <a@example.org>  Sat, 02 Jan 2027 00:00:00 +0000

ftfw-transition (1.0) unstable; urgency=medium

  * The first.

 -- A Maintainer <a@example.org>  Thu, 31 Dec 2026 00:00:00 +0000
"""


def files() -> list[Path]:
    """What is shipped, and reports for whom and how."""
    shipped = (
        path for name in ("packaging", "primary_backup") for path in (ROOT / name).rglob("*")
    )
    files = [path for path in shipped if path.is_file() and "__pycache__" not in path.parts]
    return [*files, ROOT / "README.md", ROOT / "Makefile", ROOT / "CONTRIBUTING.md"]


def test_the_version_stands_in_one_place() -> None:
    """No file repeats what pyproject.toml reports: the next release has one line to change."""
    version = re.compile(rf"(?<![\d.]){re.escape(VERSION)}(?![\d.])")

    assert [path for path in files() if version.search(path.read_text())] == []


def test_debians_changelog_lists_the_changes_of_every_release(tmp_path: Path) -> None:
    """Those of CHANGELOG.md, in Debian's form, without what is not released yet."""
    (tmp_path / "CHANGELOG.md").write_text(CHANGES)

    printed = subprocess.run(
        [ROOT / "packaging/debian-changelog", "maintainer=A Maintainer <a@example.org>",
         tmp_path / "CHANGELOG.md"],
        stdout=subprocess.PIPE, text=True, check=True,
    ).stdout  # fmt: skip

    assert printed == DEBIAN_CHANGES


RELEASED = ("pyproject.toml", "CHANGELOG.md", "packaging/version", "packaging/make-release")
GIT = {
    "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull, "PATH": os.environ["PATH"],
}  # fmt: skip


def run(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, away from what the user has configured for git."""
    return subprocess.run(argv, cwd=cwd, env=GIT, capture_output=True, text=True, check=False)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with what a release is decided by, and nothing to build."""
    for name in RELEASED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for command in ("init --quiet", "add .", "commit --quiet --message=first"):
        assert run("git", *command.split(), cwd=tmp_path).returncode == 0
    return tmp_path


@pytest.mark.parametrize(
    ("version", "before", "why"),
    [
        ("", "true", "name the version"),
        ("99", "true", f"pyproject.toml has version {VERSION}"),
        (VERSION, "echo '#' >>pyproject.toml", "changes that are not committed"),
        (VERSION, "touch new", "changes that are not committed"),
        (VERSION, f"git tag v{VERSION}", f"git has the tag v{VERSION}"),
        ("99", "sed -i 's/^version = .*/version = \"99\"/' pyproject.toml", "## 99 – YYYY-MM-DD"),
        (VERSION, "sed -i 's/^## .*/## Unreleased/' CHANGELOG.md", f"## {VERSION} – YYYY-MM-DD"),
    ],
    ids=[
        "no version", "another version", "changed", "untracked", "tagged", "no heading", "no date",
    ],
)  # fmt: skip
def test_what_is_no_release_is_refused(
    repository: Path, version: str, before: str, why: str
) -> None:
    """The reason is printed; nothing is built, and nothing is tagged."""
    assert run("sh", "-c", before, cwd=repository).returncode == 0
    tags = run("git", "tag", cwd=repository).stdout

    refused = run("packaging/make-release", version, cwd=repository)

    assert (refused.returncode, refused.stdout) == (1, "")
    assert why in refused.stderr
    assert run("git", "tag", cwd=repository).stdout == tags
    assert not (repository / "dist").exists()
