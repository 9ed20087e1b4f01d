"""What must be true of a site as a whole: a line for each contradiction."""

from collections.abc import Iterator
from itertools import combinations

from primary_backup.site.model import Interface, Node, Segment, Site, no_host


def contradictions(site: Site) -> Iterator[str]:
    """Yield one line for a person for everything that cannot be as the site has it."""
    if len(site.nodes) != 2:
        yield f"node: a pair has two, here are {len(site.nodes)}"
        return
    first, second = site.nodes
    if first.name == second.name:
        yield f"node: both are named {first.name}"
    elif first.name.lower() == second.name.lower():
        yield f"node: {first.name} and {second.name} differ in nothing but case"
    interfaces = (site.outside.interface, site.inside.interface, site.link)
    if len(set(interfaces)) < len(interfaces):
        yield f"outside, inside and link share an interface: {', '.join(interfaces)}"
    yield from _of_segment("outside", site.outside, first.outside, second.outside)
    yield from _of_segment("inside", site.inside, first.inside, second.inside)
    if first.link.network != second.link.network:
        yield f"link: {first.link} and {second.link} are not in one network"
    yield from _overlaps(first)
    yield from _twice(site)
    yield from _of_forwards(site)


def _of_forwards(site: Site) -> Iterator[str]:
    for forward in site.forwards:
        inside = [each.network for each in site.nodes[0].inside if forward.to in each.network]
        if not inside:
            yield f"forward: {forward.to} lies outside of the inside network"
        elif wrong := no_host(forward.to, inside[0]):
            yield f"forward: {wrong}"
        elif str(forward.to) in _given(site):
            yield f"forward: {forward.to} is an address of the firewalls themselves"


def _overlaps(node: Node) -> Iterator[str]:
    networks = [("outside", each.network) for each in node.outside]
    networks += [("inside", each.network) for each in node.inside]
    networks += [("link", node.link.network)]
    for (one, network), (other, second) in combinations(networks, 2):
        # Of two families, neither is within the other.
        if one != other and (network.network_address in second or second[0] in network):
            yield f"{one} and {other} overlap: {network} and {second}"


def _of_segment(
    name: str, segment: Segment, ours: tuple[Interface, ...], theirs: tuple[Interface, ...]
) -> Iterator[str]:
    for number, each in ((1, ours), (2, theirs)):
        versions = sorted(address.version for address in each)
        if versions not in ([4], [4, 6]):
            yield f"node.{number}.{name}: one IPv4 address is needed, and at most one of IPv6"
    networks = {each.network for each in ours}
    if networks != {each.network for each in theirs}:
        yield f"{name}: the two nodes' addresses are not in the same networks"
    if not segment.vips4:
        yield f"{name}.vips: VRRP needs one of IPv4 at least"
    for vip in segment.vips:
        if not any(vip in network for network in networks):
            yield f"{name}.vips: {vip} lies outside of the nodes' network"
        reasons = filter(None, (no_host(vip, network) for network in networks))
        yield from (f"{name}.vips: {wrong}" for wrong in reasons)


def _given(site: Site) -> list[str]:
    given = [str(vip) for vip in (*site.outside.vips, *site.inside.vips)]
    for node in site.nodes:
        given += [str(each.ip) for each in (*node.outside, *node.inside, node.link)]
    return given


def _twice(site: Site) -> Iterator[str]:
    given = _given(site) + [f"port {forward.port}" for forward in site.forwards]
    yield from (f"{each} is given twice" for each in sorted(set(given)) if given.count(each) > 1)
