"""The key file of the pair: root's alone, and changed without a gap."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from primary_backup.pair.keys import (
    BadKeys,
    NoKeys,
    add_key,
    drop_key,
    make_keys,
    read_keys,
    use_key,
)

KEY = "5a" * 32


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the key goes; its directory is not there yet."""
    return str(tmp_path / "etc" / "pair.key")


def test_a_new_key_is_root_s_alone_and_like_no_other(path: str, tmp_path: Path) -> None:
    """256 random bits; nothing else is left beside it."""
    make_keys(path)
    make_keys(f"{tmp_path}/other.key")

    (key,) = read_keys(path)
    assert len(key) == 32
    assert read_keys(f"{tmp_path}/other.key") != (key,)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.listdir(os.path.dirname(path)) == ["pair.key"]


def test_a_key_that_is_there_is_never_replaced(path: str) -> None:
    """The peer has it too."""
    make_keys(path)
    before = read_keys(path)

    with pytest.raises(BadKeys, match="is there already: `ftfw-transition key add` adds a key"):
        make_keys(path)

    assert read_keys(path) == before
    assert os.listdir(os.path.dirname(path)) == ["pair.key"]


def test_a_key_is_changed_in_three_steps(path: str) -> None:
    """The first signs; at every moment both nodes accept what the other signs."""
    make_keys(path)
    (old,) = read_keys(path)

    add_key(path)
    first, new = read_keys(path)
    assert (first, new != old) == (old, True)
    use_key(path)
    assert read_keys(path) == (new, old)
    drop_key(path)
    assert read_keys(path) == (new,)
    assert os.stat(path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("change", "needs"), [(use_key, 2), (drop_key, 2), (add_key, 1)])
def test_a_step_out_of_order_changes_nothing(
    path: str, change: Callable[[str], None], needs: int
) -> None:
    """One line, with what to do."""
    with pytest.raises(NoKeys, match="does not exist"):
        change(path)
    make_keys(path)
    if needs == 1:
        add_key(path)
    before = read_keys(path)

    with pytest.raises(BadKeys, match=r"has (one key|two keys): "):
        change(path)

    assert read_keys(path) == before


@pytest.mark.parametrize(
    "text",
    ["", "# a comment\n", KEY[:-1], f"{KEY}0", KEY.upper().replace("5", "G"), f"{KEY}\n" * 3, "é"],
)
def test_a_file_that_is_no_key_is_refused_without_a_word_of_it(path: str, text: str) -> None:
    """A key with a slip in it is still most of a key."""
    make_keys(path)
    Path(path).write_text(text)

    with pytest.raises(BadKeys, match="one or two lines of 64 hexadecimal digits") as raised:
        read_keys(path)

    assert KEY[:16] not in str(raised.value)


def test_comments_and_blank_lines_are_passed_over(path: str) -> None:
    """As in any file of /etc."""
    make_keys(path)
    Path(path).write_text(f"# the pair's\n\n {KEY} \n")

    assert read_keys(path) == (bytes.fromhex(KEY),)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o601])
def test_a_key_that_others_may_know_is_not_used(path: str, mode: int) -> None:
    """A new one is made."""
    make_keys(path)
    os.chmod(path, mode)

    with pytest.raises(BadKeys, match="others than root: make a new key"):
        read_keys(path)


def test_no_link_no_directory_and_no_fifo_is_a_key(path: str) -> None:
    """A FIFO would stop the follower."""
    os.makedirs(path)
    with pytest.raises(BadKeys, match=r"pair\.key"):
        read_keys(path)
    os.rmdir(path)
    os.mkfifo(path, 0o600)
    with pytest.raises(BadKeys, match="is not a plain file"):
        read_keys(path)
    os.unlink(path)
    os.symlink("elsewhere", path)
    with pytest.raises(BadKeys, match="symbolic link"):
        read_keys(path)


def test_another_user_s_key_is_not_used(path: str) -> None:
    """Its owner knows it."""
    make_keys(path)
    try:
        os.chown(path, 12345, -1)
    except PermissionError:
        pytest.skip("only root gives a file away")

    with pytest.raises(BadKeys, match="belongs to uid 12345"):
        read_keys(path)


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """It names the file."""
    (tmp_path / "etc").write_text("a file")
    with pytest.raises(BadKeys, match=r"etc/pair.key: "):
        make_keys(f"{tmp_path}/etc/pair.key")
