"""Convert times of every form to seconds since 1970: numbers of any unit, dates, Arrow's timestamps, ISO texts.

Times without a zone are in UTC. Functions on arrays; they know no table.
"""

import logging
import re
from bisect import bisect_left
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.arrays import Bools, Floats, floats
from embed.spec import InputError
from runtime.config import DAY_S

logger = logging.getLogger(__name__)

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
FIRST_S, END_S = 631_152_000, 4_133_980_800  # the years 1990 to 2100: no number lies in them in two different units

# A time of day with the offset of its zone. Arrow accepts no space before the offset, and no digits after microseconds.
ZONED = r"^(.{10}[T ][0-9:]+(?:\.\d{1,6})?)\d*\s*(Z|[+-]\d\d:?\d\d|[+-]\d\d)$"
FINE = r"(\.\d{6})\d+$"


def seconds(times: pa.ChunkedArray, names: pa.ChunkedArray) -> Floats:
    """(n,) float64 seconds since 1970; NaN if `times` has null or NaN.

    The unit of numbers is the one in which they are between the years 1990 and 2100; it is logged. Raise InputError,
    which gives the row's name from `names` (n,), for a value that is not a time, is in another unit or in other years.
    """
    if pa.types.is_dictionary(times.type):
        times = times.cast(times.type.value_type)
    if pa.types.is_integer(times.type) or pa.types.is_floating(times.type) or pa.types.is_decimal(times.type):
        return _of_numbers(floats(times), names)
    if is_text(times.type):
        found = floats(_of_texts(times, names)) / 1e6
    elif pa.types.is_null(times.type):
        return np.full(len(times), np.nan)
    elif is_time(times.type):
        per = per_second(times.type)
        found = floats(units(times)) * per.denominator / per.numerator
    else:
        raise InputError(f"timestamps are {times.type}; wanted numbers, dates, timestamps or texts in ISO's form")
    if (bad := ~np.isnan(found) & ~_plausible(found)).any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{int(bad.sum())} timestamps are not between the years 1990 and 2100; the first is that of"
            f" {names[row].as_py()!r}, {_day(found[row])}"
        )
    return found


def is_time(type: pa.DataType) -> bool:
    """Whether a column of this type holds dates or timestamps."""
    return bool(pa.types.is_date(type) or pa.types.is_timestamp(type))


def is_text(type: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))


def units(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """(n,) int64: dates or timestamps since 1970, in units of which a second has `per_second`."""
    return (times.cast(pa.int32()) if pa.types.is_date32(times.type) else times).cast(pa.int64())


def per_second(type: pa.DataType) -> Fraction:
    """The number of units of this type of dates or timestamps in a second."""
    if pa.types.is_date32(type):
        return Fraction(1, DAY_S)
    return Fraction(PER_SECOND["ms" if pa.types.is_date64(type) else type.unit])


def nanoseconds(text: str) -> int:
    """The exact nanoseconds since 1970 of a date or time in ISO's form. Raise ArrowInvalid for other texts."""
    micros: int = _micros(pa.array([text], pa.large_string()))[0].as_py()
    beyond = re.search(r"\.\d{6}(\d{1,3})", text)
    return 1000 * micros + (int(beyond[1].ljust(3, "0")) if beyond else 0)


def _of_numbers(values: Floats, names: pa.ChunkedArray) -> Floats:
    known = ~np.isnan(values)
    if not known.any():
        return values
    first = int(np.argmax(known))
    unit = next((unit for unit, factor in PER_SECOND.items() if _plausible(values[first] / factor)), "s")
    found = values / PER_SECOND[unit]
    if (bad := known & ~_plausible(found)).any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{int(bad.sum())} timestamps are not between the years 1990 and 2100 in {WORDS[unit]} since 1970; first"
            f" that of {names[row].as_py()!r}, {values[row]:.16g}"
            + (f"; that of {names[first].as_py()!r}, {values[first]:.16g}, is" if row != first else "")
        )
    span = _day(np.nanmin(found)), _day(np.nanmax(found))
    logger.info("timestamps are numbers, read as %s since 1970: from %s to %s", WORDS[unit], *span)
    return found


def _of_texts(texts: pa.ChunkedArray, names: pa.ChunkedArray) -> pa.Array:
    """(n,) int64 microseconds since 1970. Raise InputError for texts that are not times."""
    whole = texts.cast(pa.large_string()).combine_chunks()
    try:
        return _micros(whole)
    except pa.ArrowInvalid:
        row = bisect_left(range(len(whole)), True, key=lambda row: not _readable(whole[: row + 1]))
        raise InputError(
            f"the timestamp of {names[row].as_py()!r}, {whole[row].as_py()!r}, is not a time in ISO's form, such as"
            " 2024-05-01 or 2024-05-01T12:30:00+02:00"
        ) from None


def _readable(texts: pa.Array) -> bool:
    try:
        _micros(texts)
    except pa.ArrowInvalid:
        return False
    return True


def _micros(texts: pa.Array) -> pa.Array:
    """(n,) int64 microseconds since 1970, null for null. Raise ArrowInvalid for texts that cannot be read."""
    texts = pc.utf8_upper(pc.utf8_trim_whitespace(texts))
    zoned = pc.match_substring_regex(texts, ZONED)
    null = pa.scalar(None, texts.type)
    there = pc.replace_substring_regex(pc.if_else(zoned, texts, null), ZONED, r"\1\2")
    here = pc.replace_substring_regex(pc.if_else(zoned, null, texts), FINE, r"\1")
    found = there.cast(pa.timestamp("us", "UTC")).cast(pa.int64()), here.cast(pa.timestamp("us")).cast(pa.int64())
    return pc.coalesce(*found)


def _plausible(seconds: Floats) -> Bools:
    within: Bools = (seconds >= FIRST_S) & (seconds < END_S)
    return within


def _day(seconds: float) -> str:
    return str(np.datetime64(int(seconds), "s").astype("datetime64[D]"))
