"""A pair's configuration files for one of its nodes, from the templates of this package."""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any

import jinja2

from primary_backup.site.model import Site

ADVERT_SECONDS = 0.2
_PRIORITIES = ((100, "above {}'s 90"), (90, "below {}'s 100"))
_TITLES = {
    "ftfw": "FTFW, committed in a failover",
    "direct": "FTFW straight into the peer's kernel table",
    "notrack": "NOTRACK",
    "alarm": "ALARM",
}
FOLLOWER = frozenset({"systemd/ftfw-transition.service", "default/ftfw-transition"})
"""What hooks do without."""
TEMPLATES = os.path.join(os.path.dirname(__file__), "templates")
EXAMPLE = os.path.join(os.path.dirname(__file__), "example.toml")
"""The site file of which the files in packaging/ are the rendering."""


class Existing(Exception):
    """A file is there already and differs: its path."""


class Linked(Exception):
    """A symbolic link stands for a directory or a file that is to be written: one line, advice."""


def render(site: Site, name: str) -> dict[str, str]:
    """All files of the node of that name, by their path below the output directory.

    Raises ValueError where the site has no such node.
    """
    names = [node.name for node in site.nodes]
    if name not in names:
        raise ValueError(f"the site has no node {name}: it has {' and '.join(names)}")
    number = names.index(name)
    own, peer = site.nodes[number], site.nodes[1 - number]
    priority, reason = _PRIORITIES[number]
    ignored = list(_ignored(site))
    nodes = {
        side: [address for _, address, where in ignored if where == side]
        for side in ("outside", "inside")
    }
    values = {
        "site": site,
        "own": own,
        "peer": peer,
        "title": _TITLES[site.mode],
        "priority": priority,
        "priority_reason": reason.format(peer.name),
        "advert_seconds": ADVERT_SECONDS,
        "detection_seconds": round((3 + (256 - priority) / 256) * ADVERT_SECONDS, 2),
        "ignored": ignored,
        "nodes": nodes,
        "inside_own": [*nodes["inside"], *site.inside.vips],
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  # nothing here is HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(site=_site, note=_note)
    return {
        path: environment.get_template(path).render(values)
        for path in environment.list_templates()
        if site.wiring == "fifo" or path not in FOLLOWER
    }


def write(files: dict[str, str], directory: str) -> list[str]:
    """Write them below a directory, all or none; raises Existing, Linked, or OSError with its path.

    The paths of those that were not there yet; what is there and differs is never touched. After
    an error all that was written is removed again, but for new directories; a kill leaves a part.
    """
    with contextlib.ExitStack() as opened:
        tree = _Tree(directory, opened)
        missing = [path for path, text in files.items() if not tree.has(path, text.encode())]
        tree.add({path: files[path].encode() for path in missing})
    return missing


class _Tree:
    """The directory that was named and those below it, each opened once and never by a link.

    A link that another user has put there would lead root's files elsewhere. Between a check by
    path and the use of that path it could still be put there; an open directory stays the same.
    """

    def __init__(self, directory: str, opened: contextlib.ExitStack) -> None:
        """``opened`` closes the directories."""
        # Without `.` and `/` at its end, for which the kernel follows a link.
        parts = [part for part in directory.split("/") if part not in ("", ".")]
        self._root = "/" * directory.startswith("/") + "/".join(parts) or "."
        self._opened = opened
        self._descriptors: dict[str, int] = {}

    def has(self, path: str, data: bytes) -> bool:
        """Whether that file is there and holds this; raises Existing where it holds another."""
        try:
            directory, name = self._parent(path)
            with self._naming(path, name, directory):
                # Before it is opened: opening a device may act upon it.
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) and self._read(name, directory) == data:
                    return True
                if stat.S_ISLNK(found.st_mode):
                    raise self._linked(path)
        except FileNotFoundError:
            return False
        raise Existing(self._path(path))

    def add(self, files: dict[str, bytes]) -> None:
        """Make files that are not there, and the directories above them; all or none."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with contextlib.ExitStack() as written:
            for path, data in files.items():
                directory, name = self._parent(path, make=True)
                with self._naming(path, name, directory):
                    descriptor = os.open(name, flags, 0o666, dir_fd=directory)
                    written.callback(os.unlink, name, dir_fd=directory)
                    with open(descriptor, "wb") as file:
                        file.write(data)
            written.pop_all()

    def _parent(self, path: str, *, make: bool = False) -> tuple[int, str]:
        above, _, name = path.rpartition("/")
        return self._directory(above, make=make), name

    def _directory(self, path: str, *, make: bool) -> int:
        """The descriptor of a directory by its path below the root, which is empty for itself."""
        if path in self._descriptors:
            return self._descriptors[path]
        above, name = (None, self._root) if not path else self._parent(path, make=make)
        if make and above is None:
            os.makedirs(os.path.dirname(self._root) or ".", exist_ok=True)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._naming(path, name, above):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=above)
            descriptor = os.open(name, flags, dir_fd=above)
        self._opened.callback(os.close, descriptor)
        self._descriptors[path] = descriptor
        return descriptor

    @contextlib.contextmanager
    def _naming(self, path: str, name: str, directory: int | None) -> Iterator[None]:
        """Give an error the whole path; where a link caused it, raise Linked."""
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISLNK(found.st_mode):
                    raise self._linked(path) from error
            error.filename = self._path(path)
            raise

    def _linked(self, path: str) -> Linked:
        advice = "remove it, or name another --output" if path else "name the directory itself"
        return Linked(f"{self._path(path)} is a symbolic link: {advice}")

    def _path(self, path: str) -> str:
        return os.path.join(self._root, path) if path else self._root

    @staticmethod
    def _read(name: str, directory: int) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(name, flags, dir_fd=directory), "rb") as file:
            return file.read()


def _ignored(site: Site) -> Iterator[tuple[Any, ...]]:
    """The firewalls' own addresses: node, address and where it is."""
    for side in ("outside", "inside"):
        for node in site.nodes:
            for each in getattr(node, side):
                yield node, each.ip, side
    for node in site.nodes:
        yield node, node.link.ip, "dedicated link"


def _site(text: str, why: str = "", column: int = 40) -> str:
    """A line that another site must change."""
    return f"{text:<{column - 1}} # SITE{': ' if why else ''}{why}"


def _note(text: str, why: str, column: int = 40) -> str:
    return f"{text:<{column - 1}} # {why}"
