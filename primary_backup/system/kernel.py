"""The kernel's connection tracking counters of this network namespace."""

from primary_backup.proof import Kernel

STATISTICS = "/proc/net/stat/nf_conntrack"
COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"
LIMIT = "/proc/sys/net/netfilter/nf_conntrack_max"
INTERFACES = "/proc/net/dev"


def observe(statistics: str = STATISTICS, count: str = COUNT) -> Kernel:
    """Read both counters; a kernel without them has none, which is no error."""
    return Kernel(parse_inserted(_read(statistics)), int(_read(count) or 0))


def limit(path: str = LIMIT) -> int | None:
    """How many entries the kernel table may hold; None where there is none."""
    return int(_read(path) or 0) or None


def received_packets(interface: str, path: str = INTERFACES) -> int | None:
    """Packets that an interface has received (netdevice(7)); None where it is not there."""
    for line in _read(path).splitlines():
        name, colon, fields = line.partition(":")
        if colon and name.strip() == interface:
            return int(fields.split()[1])
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (FileNotFoundError, PermissionError):
        return ""


def parse_inserted(text: str) -> int | None:
    """Sum the ``insert`` column, one hexadecimal row a CPU, modulo 2^32.

    Kernels add columns in the middle, so that the header decides where it stands.
    """
    header, *rows = text.splitlines() or [""]
    names = header.split()
    if "insert" not in names:
        return None
    column = names.index("insert")
    return sum(int(row.split()[column], 16) for row in rows) % 2**32
