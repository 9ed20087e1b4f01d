"""The Debian package is the same to the last bit wherever, whenever and by whom it is built."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Builder, Checkout

# What make reads instead of the Makefile. TZ needs no tzdata this way; TMPDIR is where it is built.
ANOTHER_CALLER = """
export TZ := XYZ-14
export LC_ALL := C
export LANG := C
export TMPDIR := $(CURDIR)/another-and-longer-directory
deb:
\tumask 077 && mkdir $$TMPDIR && packaging/make-deb
"""
# In seconds: 1970, and 2100. Debian's tools make a time that is later than the changelog's the
# changelog's, and leave an earlier one.
TIMES = ((0, 0), (4102444800, 4102444800))


def contents(package: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, time and content of each file, by name: a failure names what differs."""
    found = {}
    for part in ("--ctrl-tarfile", "--fsys-tarfile"):
        tar = subprocess.run(["dpkg-deb", part, package], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(tar)) as members:
            for member in members:
                content = members.extractfile(member) if member.isfile() else None
                digest = hashlib.sha256(content.read() if content else b"").hexdigest()
                found[f"{part} {member.name}"] = (member.mode, int(member.mtime), digest)
    return found


def another_day(checkout: Path) -> None:
    """Give the files the modes of a checkout under umask 077, and times before and after today."""
    for directory, _, names in os.walk(checkout):
        for number, path in enumerate(map(Path(directory).joinpath, (".", *sorted(names)))):
            path.chmod(path.stat().st_mode & ~0o077)
            os.utime(path, TIMES[number % 2])


@pytest.mark.parametrize("tree", ["bookworm", "trixie"])
def test_two_builds_make_the_same_package(
    tree: str, deb: Callable[[str], Path], checkout: Checkout, build: Builder
) -> None:
    """In another directory, with another umask, time zone and locale, and other times of files."""
    other = checkout("")
    another_day(other)
    (other / "GNUmakefile").write_text(ANOTHER_CALLER)

    again = build(tree, other)

    assert contents(again) == contents(deb(tree))
    assert again.read_bytes() == deb(tree).read_bytes()
