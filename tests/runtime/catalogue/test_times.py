import datetime
import io
import json
import logging
import random
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pytest

from embed.spec import InputError
from runtime.catalogue.times import nanoseconds, seconds

UTC = datetime.UTC
RNG = random.Random(0)
TIMES = [
    datetime.datetime(1990, 1, 1, tzinfo=UTC),
    datetime.datetime(2024, 2, 29, 23, 59, 59, 999_999, UTC),
    datetime.datetime(2100, 12, 31, 23, 59, 59, tzinfo=UTC),
    *(datetime.datetime.fromtimestamp(RNG.uniform(631_152_000, 4_133_980_799), UTC) for _ in range(200)),
]
EXPECTED = np.array([time.timestamp() for time in TIMES])
WHOLE = np.floor(EXPECTED)


def read(values, type=None):
    """The seconds of a column, with a null at its end."""
    column = pa.chunked_array([pa.array([*values, None], type)])
    found = seconds(column, pa.chunked_array([[f"p{i}.png" for i in range(len(column))]]))
    assert found.dtype == np.float64 and np.isnan(found[-1])
    return found[:-1]


@pytest.mark.parametrize(("unit", "factor"), [("", 1), ("milli", 10**3), ("micro", 10**6), ("nano", 10**9)])
@pytest.mark.parametrize("type", [pa.int64(), pa.uint64(), pa.float64(), pa.decimal128(20, 0)])
def test_numbers_are_read_in_the_unit_that_fits(unit, factor, type, caplog):
    values = [int(second) * factor for second in WHOLE]
    if pa.types.is_floating(type):
        values = list(map(float, values))
    if pa.types.is_decimal(type):
        values = list(map(Decimal, values))
    with caplog.at_level(logging.INFO, "runtime.catalogue.times"):
        np.testing.assert_allclose(read(values, type), WHOLE, rtol=0, atol=1e-6)
    assert caplog.messages == [
        f"timestamps are numbers, read as {unit}seconds since 1970: from 1990-01-01 to 2100-12-31"
    ]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York", "+05:30"])
def test_arrows_timestamps_are_read_in_every_unit_and_zone(unit, zone):
    fine = unit in ("us", "ns")
    times = TIMES if fine else [time.replace(microsecond=0) for time in TIMES]
    if zone is None:
        times = [time.replace(tzinfo=None) for time in times]
    found = read(times, pa.timestamp(unit, zone))
    np.testing.assert_allclose(found, EXPECTED if fine else WHOLE, rtol=0, atol=1e-6)


@pytest.mark.parametrize("type", [pa.date32(), pa.date64()])
def test_dates_are_their_midnight(type):
    expected = [datetime.datetime(*time.timetuple()[:3], tzinfo=UTC).timestamp() for time in TIMES]
    assert read([time.date() for time in TIMES], type).tolist() == expected


WRITTEN = {
    "python, with an offset": (lambda time: time.astimezone(ZoneInfo("Asia/Kolkata")).isoformat(), EXPECTED),
    "a space": (lambda time: str(time.astimezone(ZoneInfo("America/New_York"))), EXPECTED),
    "Z": (lambda time: time.isoformat(timespec="microseconds").replace("+00:00", "Z"), EXPECTED),
    "small letters": (lambda time: time.isoformat(timespec="microseconds").replace("+00:00", "z").lower(), EXPECTED),
    "no zone": (lambda time: time.replace(tzinfo=None).isoformat(), EXPECTED),
    "nanoseconds": (lambda time: time.strftime("%Y-%m-%dT%H:%M:%S.%f") + "123Z", EXPECTED),
    "nanoseconds, no zone": (lambda time: time.strftime("%Y-%m-%d %H:%M:%S.%f") + "999", EXPECTED),
    "whole seconds": (lambda time: time.strftime("%Y-%m-%dT%H:%M:%S+0000"), WHOLE),
    "a space before the offset": (lambda time: time.strftime(" %Y-%m-%d %H:%M:%S +0000 "), WHOLE),
    "minutes": (lambda time: time.strftime("%Y-%m-%dT%H:%M+00"), WHOLE // 60 * 60),
    "a date": (lambda time: time.strftime("%Y-%m-%d"), WHOLE // 86_400 * 86_400),
}


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("type", [pa.string(), pa.large_string(), pa.string_view()])
def test_iso_texts_are_read_in_every_form(form, type):
    write, expected = WRITTEN[form]
    np.testing.assert_allclose(read(map(write, TIMES), type), expected, rtol=0, atol=1e-6)


def test_texts_of_several_forms_and_repeated_ones_make_one_column():
    forms = [write for name, (write, expected) in WRITTEN.items() if expected is EXPECTED]
    texts = [RNG.choice(forms)(time) for time in TIMES]
    np.testing.assert_allclose(read(texts), EXPECTED, rtol=0, atol=1e-6)
    encoded = pa.chunked_array([pa.array(texts).dictionary_encode()])
    np.testing.assert_allclose(seconds(encoded, encoded), EXPECTED, rtol=0, atol=1e-6)


@pytest.mark.parametrize("forms", [[form] for form in WRITTEN] + [list(WRITTEN)])
def test_whatever_arrow_makes_of_texts_in_files_is_the_same_time(forms):
    written = [(WRITTEN[form], i) for i in range(20) for form in forms]
    texts = [write(TIMES[i]) for (write, _), i in written]
    csv = pacsv.read_csv(io.BytesIO("\n".join(["timestamp", *texts]).encode()))["timestamp"]
    lines = pajson.read_json(io.BytesIO("\n".join(json.dumps({"timestamp": text}) for text in texts).encode()))
    for column in csv, lines["timestamp"]:
        names = pa.chunked_array([pa.array(map(str, range(len(column))))])
        expected = [values[i] for (_, values), i in written]
        np.testing.assert_allclose(seconds(column, names), expected, rtol=0, atol=2e-6)


def test_columns_without_a_time():
    assert len(read([])) == len(read([], pa.int64())) == len(read([], pa.string())) == 0
    assert np.isnan(read([float("nan"), None])).all()


def test_one_time_is_exact_to_the_nanosecond():
    assert nanoseconds("1969-12-31T23:59:59.999999999Z") == -1
    assert nanoseconds("9999-12-31 23:59:59.5") == 253_402_300_799_500_000_000
    assert nanoseconds("0001-01-01") == -62_135_596_800 * 10**9
    assert nanoseconds("2024-05-01T02:00:00.123456789+02:00") == 1_714_521_600_123_456_789


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            [1.7e9, 0],
            "1 timestamps are not .* in seconds since 1970; first that of 'p1.png', 0; that of 'p0.png', 1700000000",
        ),
        ([0, 1.7e9], "1 timestamps are not between .* first that of 'p0.png', 0$"),
        ([1.7e9, 1.7e9, 1.7e12], "in seconds since 1970; first that of 'p2.png', 1700000000000; that of 'p0.png', 17"),
        ([1.7e18, 1.7e12, 1.7e12], "2 timestamps .* in nanoseconds since 1970; first that of 'p1.png', 1700000000000;"),
        ([1.7e12, float("inf")], "first that of 'p1.png', inf"),
        ([20240501], "first that of 'p0.png', 20240501"),
        (["2024-05-01", "2024-02-30"], "'p1.png', '2024-02-30', is not a time in ISO's form"),
        (["2024-05-01", "", "x"], "'p1.png', '', is not a time"),
        (["1714521600"], "'p0.png', '1714521600', is not a time"),
        (["2024-05-01", "9999-12-31"], "1 timestamps .* 1990 and 2100; the first is that of 'p1.png', 9999-12-31"),
        ([datetime.date(1970, 1, 1)], "1990 and 2100; the first is that of 'p0.png', 1970-01-01"),
        ([True], "timestamps are bool; wanted numbers"),
        ([datetime.timedelta(1)], r"timestamps are duration.*; wanted numbers"),
    ],
)
def test_what_is_no_time_of_ours_is_said_with_its_row(times, message):
    with pytest.raises(InputError, match=message):
        read(times)
