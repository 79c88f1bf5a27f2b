"""JSON: an array of objects, or objects one after another, as JSON Lines has them."""

import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TextIO

import pyarrow as pa

from embed.records.delimited import encoding_of
from embed.records.samples import SampleTable
from embed.records.tables import Types
from embed.spec import InputError

PIECE_CHARS = 1 << 20
MAX_RECORD_CHARS = 64 << 20  # of one object; text that never closes must not fill the memory


class JsonTable(SampleTable):
    """Objects, decoded one by one as they are read, and whose keys may first appear in any of them.

    That takes a pass to open, whose types are of no use: columns are read with the types that are asked for.
    """

    def _open(self) -> tuple[pa.Schema, bool]:
        names: dict[str, None] = {}
        self.rows = 0
        for sample in self._samples({}):
            self.rows += 1
            if not names.keys() >= sample.keys():
                names.update(dict.fromkeys(sample))
        return pa.schema([(name, pa.null()) for name in names]), self.rows > 0

    def _read(self, types: Types) -> pa.Table:
        """As in CSV, texts that all are times are times."""
        table = super()._read(types)
        for place, field in enumerate(table.schema):
            if field.type == pa.string() and field.name not in types:
                with suppress(pa.ArrowInvalid):
                    table = table.set_column(place, field.name, table[field.name].cast(pa.timestamp("s")))
        return table

    def _samples(self, types: Types) -> Iterator[dict[str, Any]]:
        with pa.input_stream(self.path, compression="detect") as raw:
            encoding = encoding_of(raw.read(4))
        with pa.input_stream(self.path, compression="detect") as raw:
            file = io.TextIOWrapper(raw, encoding="utf-8-sig" if encoding == "utf-8" else encoding)
            for number, record in enumerate(json_records(file)):
                if not isinstance(record, dict):
                    raise InputError(f"{self.path}: record {number} is {str(record)[:40]!r}; wanted a JSON object")
                if number == 0 and _is_by_column(record):
                    raise InputError(
                        f"{self.path} is laid out by column, as DataFrame.to_json() does unless told otherwise; wanted"
                        " a list of records: write it with orient='records'"
                    )
                yield record


def json_records(file: TextIO) -> Iterator[Any]:
    """The elements of the JSON array in `file`, or the values one after another, decoded as they are read."""
    decode = json.JSONDecoder().raw_decode
    between = re.compile(r"[\s,]*").match
    text, position, number = file.read(PIECE_CHARS).lstrip(), 0, 0
    is_array = text.startswith("[")
    text = text.removeprefix("[")
    while True:
        if not is_array and position == 0 and (lines := _whole_lines(text)) is not None:
            yield from lines
            number, text = number + len(lines), text[text.rfind("\n") + 1 :]
        position = between(text, position).end()  # type: ignore[union-attr]
        if is_array and text.startswith("]", position):
            break
        try:
            element, position = decode(text, position)
        except json.JSONDecodeError as error:
            more = file.read(max(PIECE_CHARS, len(text) - position))
            if not (more or is_array or text[position:]):
                return
            if not more or len(text) - position > MAX_RECORD_CHARS:
                what = f"record {number} (counted from 0) is no JSON: {error.msg}"
                raise json.JSONDecodeError(what, text[position:], error.pos - position) from None
            text, position = text[position:] + more, 0
            continue
        except ValueError as error:  # an integer of thousands of digits
            raise json.JSONDecodeError(f"record {number} (counted from 0) cannot be read: {error}", "", 0) from None
        yield element
        number += 1
    while text:
        if text[position + 1 :].strip():
            raise json.JSONDecodeError("More text after the end of the array", text, position + 1)
        text, position = file.read(PIECE_CHARS), -1


def _whole_lines(text: str) -> list[Any] | None:
    """The values of JSON Lines up to the last line, in one go, which is faster; None where it is not JSON Lines."""
    lines = text[: text.rfind("\n") + 1].split("\n")
    try:
        values: list[Any] = json.loads(f"[{','.join(filter(str.strip, lines))}]")
    except (ValueError, RecursionError):
        return None
    return values


def _is_by_column(record: dict[str, Any]) -> bool:
    """Whether it holds a whole table: pandas writes columns of cells by index, or such a frame of columns and data."""
    nested = [value for value in record.values() if isinstance(value, dict)]
    split = {"columns", "data"} <= record.keys() or {"schema", "data"} <= record.keys()
    same_index = len(nested) == len(record) > 0 and all(value.keys() == nested[0].keys() for value in nested)
    is_picture = bool(nested) and nested[0].keys() <= {"bytes", "path"}
    return (same_index and not is_picture) or (split and isinstance(record["data"], list))
