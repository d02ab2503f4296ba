"""What a stranger's bytes become on a terminal."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.cli.visible import RESET, VisibleStream, visible


def _shown(*pieces: bytes) -> str:
    stream = VisibleStream()
    return "".join([*(stream.feed(piece) for piece in pieces), stream.end()])


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"plain\ttext\n", "plain\ttext\n"),
        ("größer 漢字 \U0001f469\u200d\U0001f52c\n".encode(), "größer 漢字 \U0001f469\u200d\U0001f52c\n"),
        (b"no newline", "no newline"),
        (b"dos\r\n", "dos\n"),
        (b"50%\r100%\n", "50%^M\n100%\n"),
        (b"nul\0bell\adel\x7fbs\bff\f", "nul^@bell^Gdel^?bs^Hff^L"),
        (b"\x1b[2J\x1b[H", "^[[2J^[[H"),  # erase, home
        (b"\x1b]52;c;cm0gLXJm\x07", "^[]52;c;cm0gLXJm^G"),  # the clipboard
        (b"\x1b]0;title\x1b\\", "^[]0;title^[\\"),
        (b"\x1bP$q q\x1b\\", "^[P$q q^[\\"),  # DCS, which is answered
        (b"\x1b[6n\x1b[c\x05", "^[[6n^[[c^E"),  # reports, which come as if typed
        (b"\x1b]8;;http://x\x1b\\y", "^[]8;;http://x^[\\y"),
        (b"\x9b2J\x90", "\\x9b2J\\x90"),  # C1 as single bytes: no UTF-8
        ("\x9b2J\x85".encode(), "\\x9b2J\\x85"),  # C1 in UTF-8
        (b"\xff\xfe\xc0\xaf", "\\xff\\xfe\\xc0\\xaf"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),  # half of a pair
        ("a\u202eb\u2066c\u200e\u2028".encode(), "a\\u202eb\\u2066c\\u200e\\u2028"),
        ("tag\U000e0041".encode(), "tag\\U000e0041"),
        (b"\x1b", "^["),
        (b"\x1b[", "^[["),
        (b"\x1b[1", "^[[1"),
        (b"end\r", "end^M\n"),
    ],
)
def test_what_acts_is_shown(written: bytes, shown: str) -> None:
    assert _shown(written) == shown
    assert _shown(*(bytes([byte]) for byte in written)) == shown


@pytest.mark.parametrize(
    "colour",
    ["0", "1;31", "", "7", "38;5;8", "48;2;1;2;3", "38;5;200;1", "97;107", "4:3", "38:2::1:2:3", "0;38;5;8;48;5;8"],
)
def test_colours_pass(colour: str) -> None:
    written = f"\x1b[{colour}mx\x1b[0m\n"
    assert _shown(written.encode()) == written


@pytest.mark.parametrize("parameters", ["8", "1;8", "5", "11", "38", "38;5", "38;9;1", "48;2;1;2", "1000", "1" * 60])
def test_what_hides_or_garbles_text_is_no_colour(parameters: str) -> None:
    assert _shown(f"\x1b[{parameters}mx".encode()) == f"^[[{parameters}mx"


def test_colours_do_not_stay() -> None:
    assert _shown(b"\x1b[31mred") == f"\x1b[31mred{RESET}"
    assert _shown(b"\x1b[31mred\x1b[m") == "\x1b[31mred\x1b[m"


def test_what_is_complete_is_shown_at_once() -> None:
    stream = VisibleStream()
    assert stream.feed(b"name? ") == "name? "
    assert stream.feed(b"50%\r") == "50%"
    assert stream.feed(b"a" + "ä".encode()[:1]) == "^M\na"
    assert stream.feed("ä".encode()[1:]) == "ä"


@given(st.lists(st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_nothing_that_acts_comes_out_of_any_bytes(pieces: list[bytes]) -> None:
    shown = _shown(*pieces)
    assert shown == _shown(b"".join(pieces))
    left = re.sub(r"\x1b\[[0-9;:]*m", "", shown)
    for char in set(left) - set("\n\t\u200c\u200d"):
        assert unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp"), repr(char)
        # Of the invisible: marks of single scripts that a letter follows (Arabic numbers, Egyptian, music) remain.
        assert unicodedata.bidirectional(char) not in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def test_a_message_of_ours() -> None:
    assert visible("one\ntwo\x1b[31m\r\u202e\n") == "one\ntwo^[[31m^M\n\\u202e\n"
