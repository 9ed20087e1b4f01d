"""notify.py: keepalived's words become states, and every other word is refused with advice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primary_backup.notify import STATES, Notification, read_arguments
from primary_backup.plan import State

WORDS = st.one_of(
    st.text(),
    st.sampled_from(
        ["GROUP", "INSTANCE", "G1", "0", "150", "-1", *STATES, *map(str.lower, STATES)]
    ),
)


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("MASTER", State.PRIMARY),
        ("BACKUP", State.BACKUP),
        ("FAULT", State.FAULT),
        ("STOP", State.STOP),
        ("DELETED", State.STOP),
    ],
)
def test_keepalived_s_states_are_ours(word: str, state: State) -> None:
    """Each state that keepalived's generic notify names is one of our states."""
    assert read_arguments(("GROUP", "G1", word, "0")) == Notification("G1", state, reassert=False)


def test_a_lower_priority_master_makes_a_primary_assert_itself() -> None:
    """MASTER_RX_LOWER_PRI asks a primary to re-assert, which commits nothing."""
    expected = Notification("VI_1", State.PRIMARY, reassert=True)
    assert read_arguments(("INSTANCE", "VI_1", "MASTER_RX_LOWER_PRI", "150")) == expected


@pytest.mark.parametrize(
    "words",
    [
        ("GROUP", "G1", "MASTER", "0"),
        ("GROUP", "G1", "MASTER"),
        ("INSTANCE", "G1", "MASTER", "150"),
        ("G1", "MASTER", "150"),
        ("G1", "MASTER"),
    ],
)
def test_type_and_priority_may_be_left_out(words: tuple[str, ...]) -> None:
    """The type and the priority are optional: notify [GROUP|INSTANCE] NAME STATE [PRIORITY]."""
    assert read_arguments(words) == Notification("G1", State.PRIMARY, reassert=False)


@pytest.mark.parametrize("name", ["GROUP", "INSTANCE", "MASTER", "BACKUP", "", "-h", "G 1", "ü"])
def test_an_instance_may_have_any_name(name: str) -> None:
    """A name is never taken for a type or a state: its place decides."""
    assert read_arguments(("GROUP", name, "BACKUP", "0")).name == name


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("MASTER",),
        ("GROUP", "G1"),
        ("G1", "master"),
        ("G1", "MASTER_PRIORITY", "100"),
        ("GROUP", "G1", "PRIMARY", "0"),
        ("GROUP", "G1", "MASTER", "0", "more"),
        ("G1", ""),
    ],
)
def test_any_other_word_is_refused(words: tuple[str, ...]) -> None:
    """A word that keepalived does not say is never guessed at."""
    with pytest.raises(ValueError, match=r"\S"):
        read_arguments(words)


@given(st.lists(WORDS, max_size=6).map(tuple))
def test_any_words_are_a_notification_or_one_line_of_advice(words: tuple[str, ...]) -> None:
    """Whatever the words are, the answer is a notification or advice in one line."""
    notification, advice = None, ""
    try:
        notification = read_arguments(words)
    except ValueError as error:
        advice = str(error)
    if notification is None:
        assert len(advice.splitlines()) == 1
    else:
        assert notification.name in words
        assert any(STATES.get(word) is notification.state for word in words)
