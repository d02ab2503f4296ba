"""Text of strangers on a terminal: nothing of it acts, all of it is seen.

A terminal takes orders from what it is told to show: it can be made to answer on the keyboard's line (status reports),
to set the clipboard (OSC 52) or the title, to erase or overwrite what stands there, to swap its letters. What a task
wrote may hold anything, so on a terminal control characters are shown instead of sent, as cat -v shows them: ^[ for
escape, ^@ for NUL, \\x9b for a byte that is no UTF-8, \\u202e for a character that turns the line around. What passes:
printable characters, tab, newline, and colours (SGR, `ESC [ ... m`, of which only what leaves the text readable).
A carriage return alone would let a line hide the one before it; it is shown as ^M and a new line begins, so that each
state of a progress bar stands by itself.

Pure: bytes or text in, text out. Where the output is a file or a pipe nothing of this is used: there the bytes are the
task's.
"""

from __future__ import annotations

import codecs
import re

#: Longer parameters than any colour has are no colour.
_PARAMETERS_MAX = 48
#: Controls other than tab and newline; marks that change the direction or the joining of what follows, or are not seen
#: at all (zero width joiner and non-joiner stay: scripts and emoji need them); halves of pairs, which no terminal can
#: be sent (the bytes that were no UTF-8 are among them, see codecs.surrogateescape).
_HARMFUL = (
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
_SINGLE = re.compile(_HARMFUL)
_TOKEN = re.compile(rf"\x1b\[([0-9;:]{{0,{_PARAMETERS_MAX}}})m|\r\n|{_HARMFUL}")
#: What may be the beginning of a token that the next bytes complete.
_BEGUN = re.compile(rf"(?:\r|\x1b(?:\[[0-9;:]{{0,{_PARAMETERS_MAX}}})?)\Z")
#: Longer than anything that _BEGUN finds.
_BEGUN_MAX = _PARAMETERS_MAX + 2

#: Parameters of SGR that leave text readable (ECMA-48, 8.3.117): no blinking (5, 6), no hiding (8), no other fonts
#: (10 to 20; on Linux's console 11 and 12 make control characters visible glyphs until they are taken back).
_READABLE = frozenset({0, 1, 2, 3, 4, 7, 9, *range(21, 26), *range(27, 50), 53, 55, 58, 59, *range(90, 108)})
#: Parameters that take others after them: 5 and an index, or 2 and three parts of a colour.
_EXTENDED = (38, 48, 58)
_FOLLOWING = {"5": 1, "2": 3}

RESET = "\x1b[0m"


def visible(text: str) -> str:
    """One message of ours with a stranger's words in it: lines stay lines, all else that acts is shown."""
    return _SINGLE.sub(_shown, text)


class VisibleStream:
    """One stream of bytes, as it comes in pieces, for a terminal."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        #: The beginning of what the next piece may complete.
        self._begun = ""
        self._is_coloured = False

    def feed(self, data: bytes) -> str:
        """What can be shown of it by now."""
        return self._show(self._decoder.decode(data), is_last=False)

    def end(self) -> str:
        """What was still open, and the way back to the terminal's own colours."""
        shown = self._show(self._decoder.decode(b"", final=True), is_last=True)
        if self._is_coloured:
            self._is_coloured = False
            shown += RESET
        return shown

    def _show(self, new: str, *, is_last: bool) -> str:
        text = self._begun + new
        self._begun = ""
        begun = None if is_last else _BEGUN.search(text, max(0, len(text) - _BEGUN_MAX))
        if begun is not None:
            self._begun = begun[0]
            text = text[: begun.start()]
        return _TOKEN.sub(self._token, text)

    def _token(self, match: re.Match[str]) -> str:
        parameters = match[1]
        if parameters is None:
            return _shown(match)
        if not _is_readable(parameters):
            return f"^[[{parameters}m"
        self._is_coloured = parameters.strip("0;") != ""
        return match[0]


def _shown(match: re.Match[str]) -> str:
    found = match[0]
    if found == "\r\n":
        return "\n"
    if found == "\r":
        return "^M\n"
    code = ord(found)
    if code < 0x20 or code == 0x7F:
        return f"^{chr(code ^ 0x40)}"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return found.encode("unicode_escape", "surrogatepass").decode()


def _is_readable(parameters: str) -> bool:
    """Whether all of an SGR sequence may pass."""
    wanted = parameters.split(";")
    while wanted:
        # `38:5:1` is one parameter with its own parts.
        head, _, parts = wanted.pop(0).partition(":")
        if int(head or 0) not in _READABLE:
            return False
        if int(head or 0) in _EXTENDED and not parts:
            following = _FOLLOWING.get(wanted.pop(0) if wanted else "", 0)
            if not following or len(wanted) < following:
                return False
            del wanted[:following]
    return True
