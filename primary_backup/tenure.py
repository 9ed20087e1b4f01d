"""Whether keepalived left its state while nobody looked: a reload dates every state anew."""

import contextlib
from typing import Any

from primary_backup.keepalived import Standing
from primary_backup.plan import State
from primary_backup.rundir import Memory, RunDir, Unusable


class Tenure:
    """What keepalived was seen to be in, kept in the run directory."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir

    def keep(self, said: Standing) -> None:
        """Note that this state's transition has ended."""
        # Where nothing can be written, the dates decide.
        with contextlib.suppress(Unusable, OSError), self._open() as run_dir:
            run_dir.keep_tenure(_tenure(said))

    def is_unbroken(self, said: Standing) -> bool:
        """Whether keepalived has been in this state ever since it was noted."""
        return bool(self._noted() == _tenure(said))

    def since(self, said: Standing, memory: Memory) -> float:
        """Since when it has been in its state, in seconds of the wall clock; 0: nothing was missed.

        A promotion that is remembered, but was killed before it was noted, is the only one that
        came after what was noted before it.
        """
        noted, now = self._noted(), _tenure(said)
        if noted == now:
            return 0.0
        before = {name: count - 1 for name, count in said.promotions.items()}
        remembered = said.state is State.PRIMARY and memory.state == State.PRIMARY.value
        earlier = {**now, "promotions": before}
        known = [{**earlier, "state": state.value} for state in State if state is not said.state]
        return 0.0 if remembered and noted in known else said.since

    def _noted(self) -> Any:
        with contextlib.suppress(Unusable), self._open() as run_dir:
            return run_dir.tenure()
        return None

    def _open(self) -> contextlib.closing[RunDir]:
        return contextlib.closing(RunDir(self._run_dir))


def _tenure(said: Standing) -> dict[str, Any]:
    return {
        "births": list(said.births),
        "state": said.state.value,
        "promotions": said.promotions,
    }
