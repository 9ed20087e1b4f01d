"""render.py: what is shipped is the rendering of the example, and both nodes are mirror images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from primary_backup.cli import main
from primary_backup.conf import Conntrackd, read_conntrackd
from primary_backup.plan import Mode
from primary_backup.render import EXAMPLE, Existing, render, write
from primary_backup.site import MODES, WIRINGS, read_site
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
    """Nobody mends a shipped file without the template, or the other way round."""
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
        lock_file="/var/lock/conntrack.lock",
        log_file="/var/log/conntrackd.log",
        hash_size=32768,
        hash_limit=131072,
        purge_timeout=60,
        ports=(3780,),
        internal_cache=True,
        external_cache=True,
        expectation_sync=False,
    )
    words = [line.partition("#")[0].split() for line in code(text)]
    for setting in (
        *("ResendQueueSize 131072", "PurgeTimeout 60", "ACKWindowSize 300"),
        *("DisableExternalCache Off", "Port 3780", "Interface eth2", "Checksum on"),
        *("SndSocketBuffer 1249280", "RcvSocketBuffer 1249280", "TCPWindowTracking Off"),
        *("Systemd on", "HashSize 32768", "HashLimit 131072", "LogFile on"),
        *("LockFile /var/lock/conntrack.lock", "Path /var/run/conntrackd.ctl"),
        *("NetlinkBufferSize 2097152", "NetlinkBufferSizeMaxGrowth 8388608"),
        *("NetlinkOverrunResync On", "NetlinkEventsReliable Off", "EventIterationLimit 100"),
        "Filter From Kernelspace {",
    ):
        assert words.count(setting.split()) == 1, setting
    accepted = words[words.index(["Protocol", "Accept", "{"]) + 1 :]
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


def code(text: str) -> list[str]:
    """The lines of a file that are no comments."""
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


def test_with_hooks_no_file_knows_a_follower() -> None:
    """No service is made, named or waited for that the site does without."""
    fifo, hooks = (render(SITE._replace(wiring=wiring), "fw-1") for wiring in WIRINGS)

    assert fifo.keys() - hooks.keys() == {"systemd/ftfw-transition.service"}
    for path, text in hooks.items():
        of_it = re.compile(r"follow|fifo|ftfw-transition\.service", re.IGNORECASE)
        assert list(filter(of_it.search, code(text))) == [], path


def test_every_value_of_the_site_is_marked() -> None:
    """Who adapts a shipped file by hand finds what to touch by one word."""
    own, peer = SITE.nodes
    values = {own.name, str(own.inside4.network), SITE.link}
    for node in (own, peer):
        values |= {str(each.ip) for each in (*node.outside, *node.inside, node.link)}
    for side in (SITE.outside, SITE.inside):
        values |= {side.interface, str(side.vrid), *map(str, side.vips)}
    for forward in SITE.forwards:
        values |= {str(forward.port), f"{forward.to}:{forward.to_port}"}
    found = set()

    for path, text in render(SITE, own.name).items():
        for line in code(text):
            said, _, comment = line.partition("#")
            words = r"(?<![\w.:]){}(?![\w.])"
            here = {each for each in values if re.search(words.format(re.escape(each)), said)}
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
        ("fw-3", "", "the site has no node fw-3: say fw-1 or fw-2"),
        ("fw-1", "unknown = 1", "unknown: unknown key: remove it, or mend its spelling"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(
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
    """Somebody's configuration is not ours to overwrite; the same one twice is no harm."""
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


def test_a_link_that_leads_nowhere_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    """What it is meant to lead to is not ours to make."""
    link = tmp_path / "tmpfiles.d/ftfw-transition.conf"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(Existing, match=re.escape(str(link))):
        write(render(SITE, "fw-1"), str(tmp_path))

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert link.is_symlink()


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


@pytest.mark.parametrize("words", ["--example", f"--site {EXAMPLE} --node fw-1 --output {{}}"])
def test_an_output_that_nobody_takes_is_one_line(node: Node, tmp_path: Path, words: str) -> None:
    """A disk that is full is no bug of ours."""
    with open("/dev/full", "wb") as full:
        ended = node.start("render", *words.format(tmp_path).split(), stdout=full).wait()

    assert (ended.code, ended.err) == (
        1,
        "ftfw-transition: standard output: No space left on device\n",
    )


def test_a_name_that_is_no_text_is_told_in_one_line(node: Node, tmp_path: Path) -> None:
    """Nothing that was given reaches a terminal as more than text."""
    words = ("render", "--site", EXAMPLE, "--node", "fw\n\x1b[31m", "--output", str(tmp_path))

    ended = node.start(*words).wait()

    assert ended.err.endswith(r": the site has no node fw\n\x1b[31m: say fw-1 or fw-2" + "\n")
    assert len(ended.lines) == 1
