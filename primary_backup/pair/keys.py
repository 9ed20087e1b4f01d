"""The file of the pair's key: root's alone, the same on both nodes.

One key is one line of 64 hexadecimal digits. There may be two: the first signs, both are accepted,
so that a key is changed without a gap.
"""

import contextlib
import os
import re
import secrets
import stat

_BYTES = 32
_MOST = 2
_HEADER = "# The key of ftfw-transition's pair channel, the same on both nodes: keep it secret.\n"


class NoKeys(Exception):
    """There is no key file."""


class BadKeys(Exception):
    """A key file that must not be used, or cannot be: one line, with advice."""


def read_keys(path: str) -> tuple[bytes, ...]:
    """One or two keys of 32 bytes; raises NoKeys or BadKeys."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(path, flags), encoding="ascii", errors="replace") as file:
            found = os.fstat(file.fileno())
            _trust(path, found)
            lines = file.read(4096).splitlines()
    except FileNotFoundError as error:
        raise NoKeys(f"{path} does not exist") from error
    except OSError as error:
        raise BadKeys(f"{path}: {error.strerror}") from error
    typed = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    # Never the text itself: a key with a slip in it is still most of a key.
    if not 1 <= len(typed) <= _MOST or not all(re.fullmatch("[0-9a-f]{64}", k) for k in typed):
        what = "one or two lines of 64 hexadecimal digits are expected"
        raise BadKeys(f"{path}: {what}: copy the peer's file")
    return tuple(bytes.fromhex(key) for key in typed)


def _trust(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise BadKeys(f"{path} is not a plain file: remove it")
    if found.st_uid != os.geteuid():
        raise BadKeys(f"{path} belongs to uid {found.st_uid}: make a new key, others may know it")
    if found.st_mode & 0o077:
        advice = f"make a new key, and `chmod 600 {path}`"
        raise BadKeys(f"{path} can be read or written by others than root: {advice}")


def make_keys(path: str) -> None:
    """Write a first key; raises BadKeys where there is a file already."""
    _write(path, (secrets.token_bytes(_BYTES),), new=True)


def add_key(path: str) -> None:
    """Write a second key behind the first; raises NoKeys or BadKeys."""
    first = _read(path, 1, "`ftfw-transition key drop` removes the second")
    _write(path, (*first, secrets.token_bytes(_BYTES)))


def use_key(path: str) -> None:
    """Make the second key the first; raises NoKeys or BadKeys."""
    first, second = _read(path, _MOST, "`ftfw-transition key add` adds a second")
    _write(path, (second, first))


def drop_key(path: str) -> None:
    """Remove the second key; raises NoKeys or BadKeys."""
    _write(path, _read(path, _MOST, "there is no second key to drop")[:1])


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _read(path: str, count: int, advice: str) -> tuple[bytes, ...]:
    keys = read_keys(path)
    if len(keys) != count:
        raise BadKeys(f"{path} has {'one key' if len(keys) == 1 else 'two keys'}: {advice}")
    return keys


def _write(path: str, keys: tuple[bytes, ...], *, new: bool = False) -> None:
    """Replace the whole file, or leave it as it is and raise BadKeys."""
    text = _HEADER + "".join(f"{key.hex()}\n" for key in keys)
    beside = f"{path}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with contextlib.suppress(FileExistsError):
            os.makedirs(os.path.dirname(path), mode=0o755)
        with contextlib.ExitStack() as written:
            with open(os.open(beside, flags, 0o600), "w", encoding="ascii") as file:
                written.callback(_remove, beside)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            place = os.link if new else os.rename  # link(2) replaces nothing
            place(beside, path)
    except FileExistsError as error:
        raise BadKeys(f"{path} is there already: `ftfw-transition key add` adds a key") from error
    except OSError as error:
        raise BadKeys(f"{path}: {error.strerror}") from error
