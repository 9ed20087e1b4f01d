"""Whether keepalived left its state while nobody looked: a reload dates every state anew."""

import contextlib
import math
from typing import Any

from primary_backup.keepalived.state import Standing
from primary_backup.plan import State
from primary_backup.rundir.directory import Memory, RunDir, Unusable

_AFTER = "transition"


class Tenure:
    """What keepalived was seen to be in, kept in the run directory."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir

    def keep(self, said: Standing, memory: Memory) -> None:
        """Note that this state's transition, the remembered one, has ended."""
        # Where nothing can be written, the dates decide.
        with contextlib.suppress(Unusable, OSError), self._open() as run_dir:
            run_dir.keep_tenure({**_tenure(said), _AFTER: memory.transition})

    def is_unbroken(self, said: Standing) -> bool:
        """Whether keepalived has been in this state ever since it was noted."""
        noted, _ = self._noted()
        return bool(noted == _tenure(said))

    def since(self, said: Standing, memory: Memory) -> float:
        """Since when it has been in its state, in seconds of the wall clock; 0: nothing was missed.

        Infinite where something was, for certain. A promotion that is remembered, but was killed
        before it was noted, is the only one that came after what was noted before it.
        """
        (noted, after), now = self._noted(), _tenure(said)
        if noted == now:
            return 0.0
        if after == memory.transition and noted.get("starts") == now["starts"]:
            return math.inf  # whatever the wall clock says: it may have been set meanwhile
        before = {name: count - 1 for name, count in said.promotions.items()}
        remembered = said.state is State.PRIMARY and memory.state == State.PRIMARY.value
        earlier = {**now, "promotions": before}
        known = [{**earlier, "state": state.value} for state in State if state is not said.state]
        return 0.0 if remembered and noted in known else said.since

    def _noted(self) -> tuple[dict[str, Any], str]:
        """What was noted, and after which transition; both empty if nothing was."""
        noted: Any = None
        with contextlib.suppress(Unusable), self._open() as run_dir:
            noted = run_dir.tenure()
        noted = noted if isinstance(noted, dict) else {}
        return noted, str(noted.pop(_AFTER, ""))

    def _open(self) -> contextlib.closing[RunDir]:
        return contextlib.closing(RunDir(self._run_dir))


def _tenure(said: Standing) -> dict[str, Any]:
    return {
        "starts": list(said.starts),
        "state": said.state.value,
        "promotions": said.promotions,
    }
