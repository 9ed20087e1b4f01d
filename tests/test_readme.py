"""What the README says of the steps is what the code does."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from primary_backup.commands.console import EXIT_STATUS
from primary_backup.plan import Mode, Replication, State, Step, When, plan, refresh

README = (Path(__file__).parents[1] / "README.md").read_text()
COLUMNS = (
    (Replication(Mode.FTFW), Replication(Mode.NOTRACK)),
    (Replication(Mode.FTFW, external_cache=False), Replication(Mode.NOTRACK, external_cache=False)),
    (Replication(Mode.NOTRACK, internal_cache=False),),
    (Replication(Mode.NOTRACK, internal_cache=False, external_cache=False),),
    (Replication(Mode.ALARM),),
)
WORDS = {
    When.COMMIT_PROVEN: " if proven",
    When.COMMIT_UNPROVEN: " if not",
    When.UNCOMMITTED: " if copies are left",
    When.UNCOMMITTED_COVERED: " if copies are left",
    When.PEER_COVERS: " if safe",
    When.PURGE_PENDING: " to cancel",
    When.PURGE_PENDING_EMPTY: " to cancel",
}


def _cell(steps: tuple[Step, ...]) -> str:
    told = (f"`{' '.join(step.options)}`{WORDS.get(step.when, '')}" for step in steps)
    return " · ".join(told) or "nothing"


def _row(name: str, steps: Callable[[Replication], tuple[Step, ...]]) -> str:
    cells = []
    for column in COLUMNS:
        (cell,) = {_cell(steps(replication)) for replication in column}
        cells.append(cell)
    return f"| {name} | {' | '.join(cells)} |"


def test_the_table_of_the_readme_is_what_the_plans_say() -> None:
    """Every row of the table stands in the README as the code has it."""
    rows = [
        *(_row(f"**{state.value}**", partial(plan, state)) for state in State),
        _row("primary again", partial(plan, State.PRIMARY, again=True)),
        _row("primary, back in sync", partial(refresh, State.PRIMARY)),
    ]

    assert [row for row in rows if row not in README] == []


def test_the_exit_statuses_of_the_readme_are_those_of_the_command() -> None:
    """An operator's script may rely on them."""
    told = [f"| `{outcome.value}` | {status} |" for outcome, status in EXIT_STATUS.items()]

    assert [row for row in told if row not in README] == []
