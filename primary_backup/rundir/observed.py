"""What the follower knows of the peer, for transitions of whichever process."""

from primary_backup.memory import SocketIdentity
from primary_backup.pair.observed import Observed, from_json, to_json
from primary_backup.past import Replica
from primary_backup.rundir.directory import RunDir
from primary_backup.system.proc import boot_id, boot_seconds, wall_time

_FILE = "peer.json"


def store(run_dir: RunDir, observed: Observed) -> None:
    """Store it; raises OSError."""
    run_dir.write(_FILE, to_json(observed, boot_id()).encode())


def recall(run_dir: RunDir | None) -> Observed | None:
    """What was stored last in this boot; None where nothing was, or it cannot be read."""
    if run_dir is None:
        return None
    try:
        return from_json(run_dir.read(_FILE).decode(), boot_id())
    except (OSError, ValueError):
        return None


def known_replica(run_dir: RunDir | None, issued: float, daemon: SocketIdentity | None) -> Replica:
    """What that shows of the replica for a promotion that was ``issued`` then (boot seconds)."""
    observed = recall(run_dir)
    return observed.replica(issued, daemon, wall_time) if observed is not None else Replica()


def other_primary(run_dir: RunDir | None, since: float, ours: int) -> str | None:
    """Whether the peer is shown to be primary and to hold ``ours`` connections (Observed's)."""
    observed = recall(run_dir)
    return observed.other_primary(since, boot_seconds(), ours) if observed is not None else None
