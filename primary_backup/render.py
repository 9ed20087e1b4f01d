"""A pair's configuration files for one of its nodes, from the templates of this package."""

import os
from collections.abc import Iterator
from typing import Any

import jinja2

from primary_backup.site import Site

ADVERT_SECONDS = 0.2
_PRIORITIES = ((100, "above {}'s 90"), (90, "below {}'s 100"))
_TITLES = {
    "ftfw": "FTFW, committed in a failover",
    "direct": "FTFW straight into the peer's kernel table",
    "notrack": "NOTRACK",
    "alarm": "ALARM",
}
FOLLOWER = "systemd/ftfw-transition.service"
TEMPLATES = os.path.join(os.path.dirname(__file__), "templates")
EXAMPLE = os.path.join(os.path.dirname(__file__), "site.toml")
"""The site file of which the files in packaging/ are the rendering."""


class Existing(Exception):
    """A file is there already and differs: its path."""


def render(site: Site, name: str) -> dict[str, str]:
    """All files of the node of that name, by their path below the output directory.

    Raises ValueError where the site has no such node.
    """
    names = [node.name for node in site.nodes]
    if name not in names:
        raise ValueError(f"the site has no node {name}: say {' or '.join(names)}")
    number = names.index(name)
    own, peer = site.nodes[number], site.nodes[1 - number]
    priority, reason = _PRIORITIES[number]
    values = {
        "site": site,
        "own": own,
        "peer": peer,
        "title": _TITLES[site.mode],
        "priority": priority,
        "priority_reason": reason.format(peer.name),
        "advert_seconds": ADVERT_SECONDS,
        "detection_seconds": round((3 + (256 - priority) / 256) * ADVERT_SECONDS, 2),
        "ignored": list(_ignored(site)),
        "adverts": [
            each.ip
            for side in ("outside", "inside")
            for node in site.nodes
            for each in getattr(node, side)
            if each.version == 4
        ],
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
        if site.wiring == "fifo" or path != FOLLOWER
    }


def write(files: dict[str, str], directory: str) -> list[str]:
    """Write them below a directory, all or none; raises Existing, or OSError with its path.

    The paths of those that were not there yet; what is there and differs is never touched. After
    an error all that was written is removed again, but for new directories; a kill leaves a part.
    """
    missing = []
    for path, text in files.items():
        target = os.path.join(directory, path)
        if not os.path.lexists(target):
            missing.append(path)
        elif not os.path.isfile(target) or _bytes(target) != text.encode():
            raise Existing(target)  # a link that leads nowhere is somebody's, too
    written: list[str] = []
    for path in missing:
        target = os.path.join(directory, path)
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "xb") as file:
                written.append(target)
                file.write(files[path].encode())
        except OSError as error:
            for each in written:
                os.unlink(each)
            error.filename = error.filename or target  # a full disk names none
            raise
    return missing


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
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
