"""The kernel's connection tracking counters of this network namespace."""

from primary_backup.proof import Kernel

STATISTICS = "/proc/net/stat/nf_conntrack"
COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"


def observe(statistics: str = STATISTICS, count: str = COUNT) -> Kernel:
    """Read both counters; a kernel without them has none, which is no error."""
    return Kernel(parse_inserted(_read(statistics)), int(_read(count) or 0))


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
