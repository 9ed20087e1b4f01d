"""printable.py: any text becomes one line that a terminal only shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primary_backup.system.printable import printable

# Zero to 31, DEL and C1; the line separators; each bidirectional mark of Unicode; a byte that is no
# UTF-8, as Python reads it from a command line; a byte-order mark, a soft hyphen, a wide space.
ACTS = [
    *map(chr, (*range(32), *range(0x7F, 0xA0))),
    *"\u2028\u2029",
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    *"\udc80\udcff",
    *"\ufeff\xad\u3000",
]
ANY = st.text(st.characters() | st.sampled_from(ACTS))
"""Any text, with more of what terminals act upon than chance would give."""


@given(ANY)
def test_any_text_becomes_printable(text: str) -> None:
    """It can be encoded, and a second time changes nothing."""
    line = printable(text)
    assert line.isprintable()
    assert line.encode().decode() == line
    assert printable(line) == line


@given(st.text(st.characters(blacklist_categories=("C", "Z"))))
def test_a_text_of_letters_and_signs_stays_as_it_is(text: str) -> None:
    """Nothing is spelled out that can be shown."""
    assert printable(text) == text


@pytest.mark.parametrize("text", ['GROUP "G1" – Zürich → ß', "группа 一", r"a\x9b", ""])
def test_what_people_write_stays_as_it_is(text: str) -> None:
    """Dashes, arrows, quotes, letters of any language."""
    assert printable(text) == text


@pytest.mark.parametrize("character", ACTS, ids=ascii)
def test_what_a_terminal_acts_upon_is_spelled_out(character: str) -> None:
    """As an escape that Python would read back."""
    line = printable(f"a{character}b")
    assert line == f"a{ascii(character)[1:-1]}b"
