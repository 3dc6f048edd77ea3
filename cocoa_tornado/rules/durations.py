"""Durations as people write them: ``250ms``, ``2s``, ``1h30m``, ``7d``."""

from __future__ import annotations

import math
import re
from typing import Final

from ..plain_text import quoted, strip_blanks

# Divide milliseconds instead of multiplying by 0.001, which is not exact: 9ms is 0.009, not 0.009000000000000001.
_UNIT_S: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PER_S: Final = {"ms": 1000.0}
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?"
_PLAIN: Final = re.compile(_NUMBER)
# Largest unit first, each at most once; "m" must not match the beginning of "ms".
_UNITS: Final = re.compile("".join(rf"(?:({_NUMBER}){unit}(?![a-z]))?" for unit in (*_UNIT_S, *_PER_S)))


def parse_duration_s(text: str, *, negative: bool = False) -> float:
    """Return the seconds that ``text`` stands for.

    The units are ``d``, ``h``, ``m``, ``s`` and ``ms``, largest first, each at most once, without blanks between them.
    A number without a unit is in seconds.

    :param negative: allow a leading ``-`` (``-0s`` is plain zero)
    :raises ValueError: for anything else; the message is one line with the allowed forms
    """
    stripped = strip_blanks(text)
    minus = negative and stripped.startswith("-")
    amount_s = _unsigned_s(stripped[1:] if minus else stripped)
    if amount_s is None or not math.isfinite(amount_s):
        raise ValueError(f"{quoted(text)} is not a duration; write it like 250ms, 2s, 1h30m, 24h, 7d or plain seconds")
    return -amount_s if minus and amount_s else amount_s


def _unsigned_s(text: str) -> float | None:
    if _PLAIN.fullmatch(text):
        return float(text)
    match = _UNITS.fullmatch(text)
    if not text or match is None:
        return None
    *amounts, milliseconds = (float(number) for number in match.groups("0"))
    whole_s = sum(amount * unit_s for amount, unit_s in zip(amounts, _UNIT_S.values(), strict=True))
    return whole_s + milliseconds / _PER_S["ms"]
