"""render.py: what is shipped is the rendering of the example, and both nodes are mirror images."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from primary_backup.commands.main import main
from primary_backup.conntrackd.conf import Conntrackd, Link, read_conntrackd
from primary_backup.plan import Mode
from primary_backup.site.model import MODES, WIRINGS
from primary_backup.site.read import read_site
from primary_backup.site.render import EXAMPLE, Existing, Linked, render, write
from tests.fake.node import Node

PACKAGING = Path(__file__).parents[1] / "packaging"
SITE = read_site(Path(EXAMPLE).read_text())
OF_ONE_NODE = ("conntrackd/", "keepalived/", "nftables/")


def shipped(name: str) -> dict[str, str]:
    """All files of a node, as packaging/ has to hold them: every wiring and every mode."""
    files = render(SITE, name)
    hooks = render(SITE._replace(wiring="hooks"), name)
    files["keepalived/keepalived-hooks.conf"] = hooks["keepalived/keepalived.conf"]
    for mode in MODES[1:]:
        other = render(SITE._replace(mode=mode), name)
        files[f"conntrackd/conntrackd-{mode}.conf"] = other["conntrackd/conntrackd.conf"]
    return files


def held(directory: Path) -> dict[str, str]:
    """What a directory holds, as far as it is made by render."""
    names = {path.split("/")[0] for path in render(SITE, "fw-1")}
    return {
        str(path.relative_to(directory)): path.read_text()
        for name in names
        for path in (directory / name).rglob("*")
        if path.is_file()
    }


def test_what_is_shipped_for_the_first_node_is_the_rendering_of_the_example() -> None:
    """Nobody fixes a shipped file without the template, or the other way round."""
    assert held(PACKAGING) == shipped("fw-1")


def test_what_is_shipped_for_the_second_node_is_the_rendering_of_the_example() -> None:
    """Its own files; what is the same on both stands once."""
    own = {path: text for path, text in shipped("fw-2").items() if path.startswith(OF_ONE_NODE)}
    both = {path: text for path, text in shipped("fw-2").items() if path not in own}

    assert held(PACKAGING / "fw-2") == own
    assert both.items() <= held(PACKAGING).items()


def differing(path: str) -> list[tuple[str, str]]:
    """The lines in which the two nodes' files differ, without their comments."""
    one, other = (render(SITE, name)[path].splitlines() for name in ("fw-1", "fw-2"))
    code = [
        (line.split("#")[0].strip(), theirs.split("#")[0].strip())
        for line, theirs in zip(one, other, strict=True)
    ]
    return [(line, theirs) for line, theirs in code if line != theirs]


def test_the_two_nodes_are_mirror_images() -> None:
    """Nothing differs but what has to: names, priorities, and the two ends of the link."""
    assert differing("keepalived/keepalived.conf") == [
        ("router_id fw-1", "router_id fw-2"),
        ("priority 100", "priority 90"),
        ("priority 100", "priority 90"),
    ]
    assert differing("conntrackd/conntrackd.conf") == [
        ("IPv4_address 10.99.99.1", "IPv4_address 10.99.99.2"),
        ("IPv4_Destination_Address 10.99.99.2", "IPv4_Destination_Address 10.99.99.1"),
    ]
    assert all(
        not differing(path) for path in render(SITE, "fw-1") if not path.startswith(OF_ONE_NODE[:2])
    )


def test_the_shipped_configuration_has_the_values_of_the_article() -> None:
    """Read back as conntrackd reads them; what our reader passes over stands in the text."""
    text = (PACKAGING / "conntrackd/conntrackd.conf").read_text()

    assert read_conntrackd(text.encode()) == Conntrackd(
        mode=Mode.FTFW,
        stats=False,
        socket="/var/run/conntrackd.ctl",
        lock_file="/run/conntrackd/conntrack.lock",
        log_file="/var/log/conntrackd.log",
        hash_size=131072,
        hash_limit=524288,
        purge_timeout=60,
        ports=(3780,),
        links=(Link("10.99.99.1", "10.99.99.2", 3780, "eth2"),),
        internal_cache=True,
        external_cache=True,
        expectation_sync=False,
    )
    typed = [line.partition("#")[0].split() for line in code(text)]
    for setting in (
        *("ResendQueueSize 524288", "PurgeTimeout 60", "ACKWindowSize 300"),
        *("DisableExternalCache Off", "Port 3780", "Interface eth2", "Checksum on"),
        *("SndSocketBuffer 1249280", "RcvSocketBuffer 1249280", "TCPWindowTracking Off"),
        *("Systemd on", "HashSize 131072", "HashLimit 524288", "LogFile on"),
        *("LockFile /run/conntrackd/conntrack.lock", "Path /var/run/conntrackd.ctl"),
        *("NetlinkBufferSize 2097152", "NetlinkBufferSizeMaxGrowth 8388608"),
        *("NetlinkOverrunResync On", "NetlinkEventsReliable Off", "EventIterationLimit 100"),
        "Filter From Kernelspace {",
    ):
        assert typed.count(setting.split()) == 1, setting
    accepted = typed[typed.index(["Protocol", "Accept", "{"]) + 1 :]
    assert accepted[: accepted.index(["}"])] == [["TCP"], ["SCTP"], ["DCCP"]]


def test_what_is_invalid_is_dropped_to_the_firewall_and_through_it() -> None:
    """The line that keeps translated connections alive is the first of both chains."""
    lines = [line.strip() for line in code((PACKAGING / "nftables/ftfw.nft").read_text())]

    for chain in ("input", "forward"):
        begins = lines.index(f"chain {chain} {{")
        assert lines[begins + 1].startswith(
            f"type filter hook {chain} priority filter; policy drop;"
        )
        assert lines[begins + 2] == "ct state invalid drop"


@pytest.mark.parametrize("mode", MODES)
def test_what_is_rendered_is_read_as_the_mode_that_was_meant(mode: str) -> None:
    """The steps follow from the file that the site file led to."""
    text = render(SITE._replace(mode=mode), "fw-1")["conntrackd/conntrackd.conf"]

    conf = read_conntrackd(text.encode())

    assert conf.mode is not None
    assert conf.mode.value == ("FTFW" if mode == "direct" else mode.upper())
    assert conf.external_cache is (mode != "direct")


def test_a_site_without_ipv6_and_without_ports_has_nothing_of_them() -> None:
    """No empty set, no chain without a rule."""
    four = SITE._replace(
        forwards=(),
        **{side: getattr(SITE, side)._replace(vips=getattr(SITE, side).vips4)
           for side in ("outside", "inside")},
        nodes=tuple(node._replace(outside=node.outside[:1], inside=node.inside[:1])
                    for node in SITE.nodes),
    )  # fmt: skip

    files = render(four, "fw-1")

    assert "virtual_ipaddress_excluded" not in files["keepalived/keepalived.conf"]
    assert "IPv6_address ::1\n            IPv4" in files["conntrackd/conntrackd.conf"]
    assert "dnat" not in files["nftables/ftfw.nft"]
    assert not re.search("ip6 saddr (?!fe80)|net6|own6", files["nftables/ftfw.nft"])


@pytest.mark.parametrize("port", [22, 1022, 1023, 32766])
def test_the_port_of_the_replication_is_the_same_in_every_file(port: int) -> None:
    """conntrackd, ruleset and sysctl agree; below 1024 both ports are root's without a sysctl."""
    files = render(SITE._replace(port=port), "fw-1")

    assert f"Port {port} " in files["conntrackd/conntrackd.conf"]
    assert f"define replication_port = {port} " in files["nftables/ftfw.nft"]
    assert f"define report_port = {port + 1} " in files["nftables/ftfw.nft"]
    sysctl = code(files["sysctl.d/ftfw.conf"])
    kept = [line for line in sysctl if "ip_unprivileged_port_start" in line]
    assert kept == ([f"net.ipv4.ip_unprivileged_port_start = {port + 2}"] if port >= 1023 else [])
    assert "3780" not in "".join(files.values())


def code(text: str) -> list[str]:
    """The lines of a file that are no comments."""
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


def test_with_hooks_no_file_knows_a_follower() -> None:
    """No service is made, named or waited for that the site does without."""
    fifo, hooks = (render(SITE._replace(wiring=wiring), "fw-1") for wiring in WIRINGS)

    assert fifo.keys() - hooks.keys() == {
        "systemd/ftfw-transition.service",
        "default/ftfw-transition",
    }
    for path, text in hooks.items():
        of_it = re.compile(r"follow|fifo|ftfw-transition\.service", re.IGNORECASE)
        assert list(filter(of_it.search, code(text))) == [], path


def test_every_value_of_the_site_is_marked() -> None:
    """Who adapts a shipped file by hand finds what to touch by one notification."""
    own, peer = SITE.nodes
    assert own.inside6 is not None
    values = {own.name, SITE.link, str(SITE.port)}
    values |= {str(own.inside4.network), str(own.inside6.network)}
    for node in (own, peer):
        values |= {str(each.ip) for each in (*node.outside, *node.inside, node.link)}
    for side in (SITE.outside, SITE.inside):
        values |= {side.interface, str(side.vrid), *map(str, side.vips)}
    for forward in SITE.forwards:
        values |= {str(forward.port), f"{forward.to}:{forward.to_port}"}
    found = set()

    for path, text in render(SITE, own.name).items():
        for line in code(text):
            reported, _, comment = line.partition("#")
            typed = r"(?<![\w.:]){}(?![\w.])"
            here = {each for each in values if re.search(typed.format(re.escape(each)), reported)}
            assert not here or comment.startswith(" SITE"), f"{path}: {line}"
            found |= here

    assert found == values


# -- the command ----------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Run `ftfw-transition render`; its exit status."""
    monkeypatch.setattr("sys.argv", ["ftfw-transition", "render", *arguments])
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0


def test_the_example_of_the_command_is_one_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An operator starts from it, without a checkout."""
    assert command(monkeypatch, "--example") == 0
    site = tmp_path / "site.toml"
    site.write_text(capsys.readouterr().out)

    assert command(monkeypatch, "--site", str(site), "--node", "fw-2", "--output", str(tmp_path / "out")) == 0  # noqa: E501  # fmt: skip

    assert held(tmp_path / "out") == render(SITE, "fw-2")


@pytest.mark.parametrize(
    ("node", "text", "line"),
    [
        ("fw-3", "", "the site has no node fw-3: it has fw-1 and fw-2"),
        ("fw-1", "unknown = 1", "unknown: unknown key: remove it, or correct its spelling"),
    ],
)
def test_what_is_wrong_is_reported_and_nothing_is_written(
    *,
    node: str,
    text: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line on stderr, exit status 1, no half of a configuration."""
    site = tmp_path / "site.toml"
    site.write_text(f"{text}\n{Path(EXAMPLE).read_text()}")

    assert command(monkeypatch, "--site", str(site), "--node", node, "--output", str(tmp_path / "out")) == 1  # noqa: E501  # fmt: skip

    assert capsys.readouterr().err == f"ftfw-transition: {site}: {line}\n"
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_there_and_differs_is_never_touched(tmp_path: Path) -> None:
    """Another program's configuration is not ours to overwrite; the same one twice is no harm."""
    files = render(SITE, "fw-1")
    assert sorted(write(files, str(tmp_path))) == sorted(files)
    assert write(files, str(tmp_path)) == []
    mine = tmp_path / "keepalived/keepalived.conf"
    mine.write_text("mine")
    (tmp_path / "nftables/ftfw.nft").unlink()

    with pytest.raises(Existing, match=r"keepalived/keepalived\.conf$"):
        write(files, str(tmp_path))

    assert mine.read_text() == "mine"
    assert not (tmp_path / "nftables/ftfw.nft").exists()


def test_what_is_there_is_compared_byte_by_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is no text is somebody's file too, and the site file is not to blame for it."""
    mine = tmp_path / "keepalived/keepalived.conf"
    mine.parent.mkdir()
    mine.write_bytes(b"\xff")

    assert command(monkeypatch, "--site", EXAMPLE, "--node", "fw-1", "--output", str(tmp_path)) == 1

    there = "is there and differs: move it away, or name another --output"
    assert capsys.readouterr().err == f"ftfw-transition: {mine} {there}\n"


REMOVE = "remove it, or name another --output"
ITSELF = "name the directory itself"


@pytest.mark.parametrize("made_by", ["link", "link/", "link/.", ".//link"])
def test_a_directory_that_is_a_link_is_not_written_to(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    made_by: str,
) -> None:
    """Who has made the link decides where root's files go, and may change it at any time."""
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to("elsewhere")

    assert command(monkeypatch, "--site", EXAMPLE, "--node", "fw-1", "--output", made_by) == 1

    line = f"ftfw-transition: link is a symbolic link: {ITSELF}\n"
    assert capsys.readouterr().err == line
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "path",
    [
        "keepalived",
        "systemd",
        "systemd/keepalived.service.d",
        "conntrackd/conntrackd.conf",
        "tmpfiles.d/ftfw-transition.conf",
    ],
)
@pytest.mark.parametrize("target", ["a directory", "the same file", "nowhere"])
def test_a_link_below_the_directory_is_not_written_to(
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    path: str,
    target: str,
) -> None:
    """Neither for a directory nor for a file: one line names it, and nothing at all is written."""
    elsewhere, output = tmp_path / "elsewhere", tmp_path / "output"
    (output / path).parent.mkdir(parents=True)
    (output / path).symlink_to(elsewhere)
    if target == "a directory":
        elsewhere.mkdir()
    elif target == "the same file":
        elsewhere.write_text(render(SITE, "fw-1").get(path, ""))

    assert command(monkeypatch, "--site", EXAMPLE, "--node", "fw-1", "--output", str(output)) == 1

    line = f"ftfw-transition: {output / path} is a symbolic link: {REMOVE}\n"
    assert capsys.readouterr().err == line
    assert [each for each in output.rglob("*") if each.is_file() and not each.is_symlink()] == []
    assert target != "a directory" or list(elsewhere.iterdir()) == []


def test_a_link_above_the_directory_is_followed(tmp_path: Path) -> None:
    """As /var/run is one: what was named is below it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    write(render(SITE, "fw-1"), str(tmp_path / "link/new/output"))

    assert held(tmp_path / "real/new/output") == render(SITE, "fw-1")


class Overtaken(dict[str, str]):
    """Files to write, and what another user does once all of them have been looked for."""

    def __init__(self, files: dict[str, str], then: Callable[[], object]) -> None:
        super().__init__(files)
        self._then = then

    def items(self) -> Iterator[tuple[str, str]]:  # type: ignore[override]
        yield from super().items()
        self._then()


def test_a_link_that_is_made_after_the_check_is_not_followed(tmp_path: Path) -> None:
    """A directory was missing, or was there and empty: in its place is a link by now."""
    for was_there in (False, True):
        output, elsewhere = tmp_path / f"output-{was_there}", tmp_path / f"elsewhere-{was_there}"
        output.mkdir()
        elsewhere.mkdir()
        if was_there:
            (output / "keepalived").mkdir()

        def swap(output: Path = output, elsewhere: Path = elsewhere) -> None:
            if (output / "keepalived").exists():
                (output / "keepalived").rename(output / "moved")
            (output / "keepalived").symlink_to(elsewhere)

        files = Overtaken(render(SITE, "fw-1"), swap)
        with contextlib.nullcontext() if was_there else pytest.raises(Linked):
            write(files, str(output))

        assert list(elsewhere.iterdir()) == []
        left = [each for each in output.rglob("*") if each.is_file()]
        # Into the one that was checked, wherever it is now; or not at all.
        assert bool(left) == (output / "moved/keepalived.conf").exists() == was_there


def test_a_file_that_is_made_after_the_check_is_not_touched(tmp_path: Path) -> None:
    """Nor is what a link leads to that was made there; what was written before it is removed."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    output = tmp_path / "output"
    (output / "sysctl.d").mkdir(parents=True)

    files = Overtaken(
        render(SITE, "fw-1"), lambda: (output / "sysctl.d/ftfw.conf").symlink_to(mine)
    )
    with pytest.raises(Linked, match=r"sysctl\.d/ftfw\.conf"):
        write(files, str(output))

    assert mine.read_text() == "mine"
    assert [each for each in output.rglob("*") if not each.is_dir()] == [
        output / "sysctl.d/ftfw.conf"
    ]


@pytest.mark.parametrize("kind", ["directory", "file", "fifo"])
def test_what_is_neither_file_nor_directory_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """A FIFO is not waited for, and the line names what is in the way."""
    path = tmp_path / ("keepalived" if kind == "file" else "keepalived/keepalived.conf")
    path.parent.mkdir(exist_ok=True)
    if kind == "directory":
        path.mkdir()
    elif kind == "file":
        path.touch()
    else:
        os.mkfifo(path)

    assert command(monkeypatch, "--site", EXAMPLE, "--node", "fw-1", "--output", str(tmp_path)) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ftfw-transition: {path}")
    assert [each for each in tmp_path.rglob("*") if each.is_file() and each != path] == []


def test_a_full_disk_leaves_no_part(node: Node, tmp_path: Path) -> None:
    """The error names the file, and what was written before it is gone again."""
    small = tmp_path / "small"
    small.mkdir()
    node.spawn(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(small)]).wait()

    ended = node.start("render", "--site", EXAMPLE, "--node", "fw-1", "--output", str(small)).wait()

    assert ended.code == 1
    assert re.fullmatch(
        rf"ftfw-transition: {small}/\S+: No space left on device", ended.err.strip()
    )
    assert node.spawn(["find", str(small), "-type", "f"]).wait().out == ""


def test_a_directory_that_is_not_named_is_asked_for(node: Node, tmp_path: Path) -> None:
    """An empty shell variable spreads no configuration over the current directory."""
    there = tmp_path / "there"
    there.mkdir()
    asked = node.arguments("render", "--site", EXAMPLE, "--node", "fw-1", "--output", "")

    ended = node.spawn(["env", "-C", str(there), *asked]).wait()

    assert ended.code == 2
    assert "--output" in ended.lines[0]
    assert list(there.iterdir()) == []


@pytest.mark.parametrize("typed", ["--example", f"--site {EXAMPLE} --node fw-1 --output {{}}"])
def test_an_output_that_nobody_takes_is_one_line(node: Node, tmp_path: Path, typed: str) -> None:
    """A disk that is full is no bug of ours."""
    with open("/dev/full", "wb") as full:
        ended = node.start("render", *typed.format(tmp_path).split(), stdout=full).wait()

    assert (ended.code, ended.err) == (
        1,
        "ftfw-transition: standard output: No space left on device\n",
    )


def test_a_name_that_is_no_text_is_reported_in_one_line(node: Node, tmp_path: Path) -> None:
    """Nothing that was given reaches a terminal as more than text."""
    typed = ("render", "--site", EXAMPLE, "--node", "fw\n\x1b[31m", "--output", str(tmp_path))

    ended = node.start(*typed).wait()

    assert ended.err.endswith(r": the site has no node fw\n\x1b[31m: it has fw-1 and fw-2" + "\n")
    assert len(ended.lines) == 1
