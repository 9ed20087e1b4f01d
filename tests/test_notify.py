"""notify.py: keepalived's notifications become states, and the rest is refused or skipped."""

import json
import os
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from primary_backup.keepalived.notify import (
    STATES,
    UNREPORTED_DOWN_SECONDS,
    Followed,
    Instance,
    Notification,
    read_arguments,
    read_dump,
    sender,
)
from primary_backup.plan import State

GROUP = Followed("GROUP", "G1")
INSTANCE = Followed("INSTANCE", "VI_1")

NOTIFICATIONS = st.one_of(
    st.text(),
    st.sampled_from(
        ["GROUP", "INSTANCE", "G1", "0", "150", "-1", *STATES, *map(str.lower, STATES)]
    ),
)


# -- a notify script's arguments ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("MASTER", State.PRIMARY),
        ("BACKUP", State.BACKUP),
        ("FAULT", State.FAULT),
        ("STOP", State.STOP),
        ("DELETED", State.STOP),
    ],
)
def test_keepalived_s_states_are_ours(line: str, state: State) -> None:
    """Each state that keepalived's generic notify names is one of our states."""
    assert read_arguments(("GROUP", "G1", line, "0")) == Notification("G1", state, reassert=False)


def test_a_lower_priority_master_makes_a_primary_assert_itself() -> None:
    """MASTER_RX_LOWER_PRI asks a primary to re-assert, which commits nothing."""
    expected = Notification("VI_1", State.PRIMARY, reassert=True)
    assert read_arguments(("INSTANCE", "VI_1", "MASTER_RX_LOWER_PRI", "150")) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ("GROUP", "G1", "MASTER", "0"),
        ("GROUP", "G1", "MASTER"),
        ("INSTANCE", "G1", "MASTER", "150"),
        ("G1", "MASTER", "150"),
        ("G1", "MASTER"),
    ],
)
def test_type_and_priority_may_be_left_out(arguments: tuple[str, ...]) -> None:
    """The type and the priority are optional: notify [GROUP|INSTANCE] NAME STATE [PRIORITY]."""
    assert read_arguments(arguments) == Notification("G1", State.PRIMARY, reassert=False)


@pytest.mark.parametrize("name", ["GROUP", "INSTANCE", "MASTER", "BACKUP", "", "-h", "G 1", "ü"])
def test_an_instance_may_have_any_name(name: str) -> None:
    """A name is never taken for a type or a state: its place decides."""
    assert read_arguments(("GROUP", name, "BACKUP", "0")).name == name


@pytest.mark.parametrize(
    "arguments",
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
def test_any_other_notification_is_refused(arguments: tuple[str, ...]) -> None:
    """A notification that keepalived does not say is never guessed at."""
    with pytest.raises(ValueError, match=r"\S"):
        read_arguments(arguments)


@given(st.lists(NOTIFICATIONS, max_size=6).map(tuple))
def test_any_notifications_are_a_notification_or_one_line_of_advice(
    arguments: tuple[str, ...],
) -> None:
    """Whatever the notifications are, the answer is a notification or advice in one line."""
    notification, advice = None, ""
    try:
        notification = read_arguments(arguments)
    except ValueError as error:
        advice = str(error)
    if notification is None:
        assert len(advice.splitlines()) == 1
    else:
        assert notification.name in arguments
        assert any(STATES.get(line) is notification.state for line in arguments)


# -- the FIFO's lines -----------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["MASTER", "BACKUP", "FAULT", "STOP", "DELETED"])
@pytest.mark.parametrize("followed", [GROUP, INSTANCE])
def test_the_notifications_of_whom_we_follow_are_received(followed: Followed, state: str) -> None:
    """A sync group's or an instance's, whatever its priority."""
    line = f'{followed.kind} "{followed.name}" {state} 150'.encode()
    assert followed.read_line(line) == Notification(followed.name, STATES[state], reassert=False)


@pytest.mark.parametrize(
    "line",
    [
        'GROUP "G2" MASTER 0',
        'GROUP "VI_1" MASTER 0',
        'INSTANCE "G1" MASTER 150',
        'INSTANCE "VI_2" BACKUP 150',
        'GROUP "g1" MASTER 0',
        'GROUP "G1 " MASTER 0',
    ],
)
@pytest.mark.parametrize("followed", [GROUP, INSTANCE])
def test_everybody_else_s_notifications_are_passed_over(followed: Followed, line: str) -> None:
    """Also those of a namesake of the other kind."""
    assert followed.read_line(line.encode()) is None


@pytest.mark.parametrize(
    "reported",
    [
        "MASTER_PRIORITY 150",
        "BACKUP_PRIORITY 150",
        "PROMOTED 150",
        "master 150",
        "MASTER",
        "MASTER -1",
        "MASTER 150 more",
        "MASTER 150\r",
        "MASTER 150\n",
        "MASTER  150",
        "MASTER \u0663",
        "",
    ],
)
def test_notifications_that_nobody_knows_are_passed_over(reported: str) -> None:
    """Priorities, notifications of a later keepalived's, and what is not a whole line."""
    assert GROUP.read_line(f'GROUP "G1" {reported}'.encode()) is None


def test_a_group_hears_of_a_lower_priority_from_its_instances() -> None:
    """keepalived never reports MASTER_RX_LOWER_PRI of a group."""
    line = b'INSTANCE "VI_1" MASTER_RX_LOWER_PRI 150'
    received = Notification("VI_1", State.PRIMARY, reassert=True)
    assert GROUP.read_line(line) == INSTANCE.read_line(line) == received
    assert Followed("INSTANCE", "VI_2").read_line(line) is None


def test_a_name_need_not_be_text() -> None:
    """The command line and the FIFO give the same name, whatever its bytes are."""
    name = b"VI \xff \xc3\xbc"
    followed = Followed("INSTANCE", os.fsdecode(name))
    assert followed.read_line(b'INSTANCE "%b" STOP 1' % name) is not None


PIECES = st.sampled_from(
    [b"GROUP", b"INSTANCE", b' "', b'" ', b"G1", b"VI_1", b" ", b"0", b"_PRIORITY", b"\n", b"\0"]
    + [line.encode() for line in STATES]
)


@given(st.lists(PIECES | st.binary(max_size=3), max_size=9).map(b"".join), st.data())
def test_any_bytes_are_what_was_reported_to_us_or_nothing(line: bytes, data: st.DataObject) -> None:
    """Garbage is never fatal, and never a notification that was not reported."""
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, 24))
        whole = b'INSTANCE "VI_1" MASTER_RX_LOWER_PRI 7'
        line = whole[:place] + line + whole[data.draw(st.integers(place, len(whole))) :]
    kind, _, rest = line.partition(b' "')
    name, _, rest = rest.partition(b'" ')
    state, _, priority = rest.partition(b" ")
    for followed in (GROUP, INSTANCE):
        received = followed.read_line(line)
        ours = (kind, name) == (followed.kind.encode(), followed.name.encode())
        lower = state == b"MASTER_RX_LOWER_PRI"
        if followed is GROUP and lower:
            ours = ours or (kind == b"INSTANCE" and name != b"" and b'"' not in name)
        if ours and state.decode("latin-1") in STATES and priority.isdigit():
            assert received == (os.fsdecode(name), STATES[state.decode()], lower)
        else:
            assert received is None


# -- the dump -------------------------------------------------------------------------------------


def entry(**data: Any) -> dict[str, Any]:
    """One instance, as keepalived dumps it."""
    data = {"iname": "VI_1", "state": 2, "last_transition": 1700000000.5, "vrid": 1, **data}
    return {"data": data, "stats": {"advert_rcvd": 9, "become_master": 3}}


@pytest.mark.parametrize("wrap", [list, lambda reported: {"vrrp": reported, "track_process": []}])
def test_either_version_of_the_dump_is_read(wrap: Any) -> None:
    """json_version 1 is a list, json_version 2 an object."""
    dump = wrap([entry(), entry(iname="VI_2", state=1)])
    assert read_dump(json.loads(json.dumps(dump))) == (
        Instance("VI_1", State.PRIMARY, 1700000000.5, 3),
        Instance("VI_2", State.BACKUP, 1700000000.5, 3),
    )


@pytest.mark.parametrize(
    ("number", "state"),
    [(0, None), (1, State.BACKUP), (2, State.PRIMARY), (3, State.FAULT), (4, None), (-1, None)],
)
def test_a_number_is_a_state_or_none_yet(number: int, state: State | None) -> None:
    """0 is INIT; a number that nobody knows yet is no state of ours."""
    (instance,) = read_dump([entry(state=number)])
    assert instance.state is state


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        ({"version": 3, "master_adver_int": 0.2, "effective_priority": 100}, 0.721875),
        ({"version": 2, "master_adver_int": 1.0, "effective_priority": 254}, 3.0078125),
        ({"version": 2, "master_adver_int": 1.0}, UNREPORTED_DOWN_SECONDS),
        ({"version": 3, "master_adver_int": -1, "effective_priority": 0}, UNREPORTED_DOWN_SECONDS),
        (
            {"version": 3, "master_adver_int": float("nan"), "effective_priority": 0},
            UNREPORTED_DOWN_SECONDS,
        ),
    ],
)
def test_the_master_down_interval_is_that_of_the_protocol(
    data: dict[str, Any], seconds: float
) -> None:
    """3 adverts of the master's and the skew of this node's priority: RFC 5798, and RFC 3768."""
    (instance,) = read_dump([entry(**data)])
    assert instance.down_seconds == pytest.approx(seconds)


def test_the_addresses_of_a_master_are_read() -> None:
    """With a prefix length or without, those in the adverts and those beside them."""
    vips, evips = ["10.0.0.1 dev eth1 scope global", "10.0.0.2/24 dev eth1"], ["fd00::1 dev eth1"]
    (instance,) = read_dump([entry(vips=[*vips, ""], evips=evips)])
    assert instance.addresses == ("10.0.0.1", "10.0.0.2", "fd00::1")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b'GROUP "firewall" MASTER 0', 'GROUP "firewall"'),
        (b'INSTANCE "VI_1" MASTER_PRIORITY 150', 'INSTANCE "VI_1"'),
        (b'GROUP "G1" BACKGROUP "G1" MASTER 0', None),
        (b'GROUP "G1" MASTER', None),
    ],
)
def test_the_sender_of_a_line_is_known(line: bytes, named: str | None) -> None:
    """Whether it is followed or not; half a line in front of another has none."""
    assert sender(line) == named


NUMBERS = st.integers() | st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
OPTIONAL = ("vips", "evips", "version", "master_adver_int", "effective_priority")
ENTRIES = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries(
            {"iname": JSON, "state": JSON, "last_transition": NUMBERS},
            optional=dict.fromkeys(
                ("vips", "evips", "version", "master_adver_int", "effective_priority"), JSON
            ),
        )
        | JSON,
        "stats": st.fixed_dictionaries({"become_master": JSON}) | JSON,
    }
)


@given(JSON | st.lists(ENTRIES) | st.fixed_dictionaries({"vrrp": st.lists(ENTRIES) | JSON}))
@example([entry(last_transition=10**400)])
@example([{**entry(), "stats": {"become_master": float("inf")}}])
def test_any_json_is_a_dump_or_refused(dump: Any) -> None:
    """Nothing in keepalived's file breaks whoever asks before a purge."""
    instances: tuple[Instance, ...] = ()
    try:
        instances = read_dump(dump)
    except ValueError:
        return
    reported = dump["vrrp"] if isinstance(dump, dict) else dump
    assert [each.name for each in instances] == [str(each["data"]["iname"]) for each in reported]
