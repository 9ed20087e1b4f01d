"""Whether keepalived left its state without our notice: a reload sets every state's date."""

import contextlib
import math
from typing import Any

from primary_backup.keepalived.state import VrrpState
from primary_backup.memory import Memory
from primary_backup.plan import State
from primary_backup.rundir.directory import RunDir, Unusable

SURE = math.inf
"""keepalived has certainly left its state, whatever the wall clock shows."""
_AFTER = "transition"


class Continuity:
    """The state in which keepalived was observed, stored in the run directory."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir

    def note(self, reported: VrrpState, memory: Memory) -> None:
        """Note that this state's transition, the last one, has ended."""
        # Where nothing can be written, the dates decide.
        with contextlib.suppress(Unusable, OSError), self._open() as run_dir:
            run_dir.store_continuity({**_noted(reported), _AFTER: memory.transition})

    def is_unbroken(self, reported: VrrpState) -> bool:
        """Whether keepalived has been in this state ever since it was noted."""
        noted, _ = self._stored()
        return bool(noted == _noted(reported))

    def since(self, reported: VrrpState, memory: Memory) -> float:
        """Since when it has been in its state, in seconds of the wall clock; 0: nothing was missed.

        SURE if keepalived certainly left the state. One unnoted promotion is tolerated: ours, if
        its process was killed before it could be noted.
        """
        (noted, after), now = self._stored(), _noted(reported)
        if noted == now:
            return 0.0
        if after == memory.transition and noted.get("starts") == now["starts"]:
            return SURE  # the wall clock may have been set meanwhile
        before = {name: count - 1 for name, count in reported.promotions.items()}
        remembered = memory.last is not None and memory.last.state is State.PRIMARY
        earlier = {**now, "promotions": before}
        known = [
            {**earlier, "state": state.value} for state in State if state is not reported.state
        ]
        ours = reported.state is State.PRIMARY and remembered and noted in known
        return 0.0 if ours else reported.since

    def _stored(self) -> tuple[dict[str, Any], str]:
        """What was noted, and after which transition; both empty if nothing was."""
        noted: Any = None
        with contextlib.suppress(Unusable), self._open() as run_dir:
            noted = run_dir.continuity()
        noted = noted if isinstance(noted, dict) else {}
        return noted, str(noted.pop(_AFTER, ""))

    def _open(self) -> contextlib.closing[RunDir]:
        return contextlib.closing(RunDir(self._run_dir))


def _noted(reported: VrrpState) -> dict[str, Any]:
    return {
        "starts": list(reported.starts),
        "state": reported.state.value,
        "promotions": reported.promotions,
    }
