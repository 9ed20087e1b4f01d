"""A release: one version, and what is made of it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

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
    """What is shipped, and says for whom and how."""
    shipped = (
        path for name in ("packaging", "primary_backup") for path in (ROOT / name).rglob("*")
    )
    files = [path for path in shipped if path.is_file() and "__pycache__" not in path.parts]
    return [*files, ROOT / "README.md", ROOT / "Makefile", ROOT / "CONTRIBUTING.md"]


def test_the_version_stands_in_one_place() -> None:
    """No file repeats what pyproject.toml says: the next release has one line to change."""
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
