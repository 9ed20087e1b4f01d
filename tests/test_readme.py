"""The README agrees with the command, and stays short."""

from pathlib import Path

from primary_backup.commands.console import EXIT_STATUS

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_exit_statuses_of_the_readme_are_those_of_the_command() -> None:
    """An operator's script may rely on them."""
    rows = [f"| `{outcome.value}` | {status} |" for outcome, status in EXIT_STATUS.items()]

    assert [row for row in rows if row not in README] == []


def test_the_readme_is_read_in_ten_minutes() -> None:
    """At most 150 lines of at most 120 columns, but for tables: reference is in the man page."""
    lines = README.splitlines()

    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []
