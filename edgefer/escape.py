"""Text from outside, made safe to show: file names, people's names, what another program says."""

from __future__ import annotations

import logging
import re
from typing import Any

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, which move a terminal's cursor or forge a line of the log; marks that turn the direction of
writing; halves of characters, which can't be written at all."""


def escape(text: str) -> str:
    """The text on one line, with every character that would do more than be seen written as Python writes it."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape_lines(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(map(escape, text.split("\n")))


class SafeFormatter(logging.Formatter):
    """Formats log records on one line each, escaped; only a traceback has more."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name is logging's
        """The line."""
        return escape(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The traceback."""
        return escape_lines(super().formatException(ei))
