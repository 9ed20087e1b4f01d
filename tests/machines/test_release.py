"""A release, made whole: it needs Debian's build dependencies, as the package alone does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .conftest import VERSION, Checkout

GIT = "git -c user.name=A -c user.email=a@example.org"
IDENTITY = {"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org"}


def test_a_release_is_built_checksummed_and_tagged(
    checkout: Checkout, deb: Callable[[str], Path]
) -> None:
    """The package is the one that `make deb` builds; the tag is on what was built."""
    repository = checkout("")

    def run(command: str) -> str:
        return subprocess.run(
            command, shell=True, cwd=repository, check=True, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **IDENTITY, "PYTHON": sys.executable},
        ).stdout  # fmt: skip

    run(f"git init --quiet && git add . && {GIT} commit --quiet --message=first")
    printed = run(f"packaging/make-release {VERSION}")

    made = {path.name for path in (repository / "dist").iterdir()}
    package = f"ftfw-transition_{VERSION}_all.deb"
    assert made == {
        package,
        f"ftfw_transition-{VERSION}.tar.gz",
        f"ftfw_transition-{VERSION}-py3-none-any.whl",
        "SHA256SUMS",
    }
    checked = run("cd dist && sha256sum --check --strict SHA256SUMS")
    assert {line.partition(":")[0] for line in checked.splitlines()} == made - {"SHA256SUMS"}
    assert (repository / "dist" / package).read_bytes() == deb("bookworm").read_bytes()
    assert run(f"git cat-file -t v{VERSION}") == "tag\n"
    assert run(f"git rev-parse v{VERSION}^{{commit}}") == run("git rev-parse HEAD")
    assert f"git push origin HEAD v{VERSION}" in printed
    assert run("git status --porcelain -- ':!dist'") == ""
