"""Text from elsewhere, fit for one line of a log or a terminal."""


def printable(text: str) -> str:
    r"""The text in one line, with everything in it spelled out that a terminal may act upon.

    Control characters (C0, C1), line separators, bidirectional marks and bytes that are no UTF-8
    (lone surrogates) become escapes, as in Python's string literals: ``\x9b``, ``\u2028``,
    ``\udcff``. Letters of any language, dashes and arrows stay. What comes out can be encoded.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
