"""Read JSON: an array of objects, or objects one after another, as in JSON Lines."""

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
MAX_RECORD_CHARS = 64 << 20  # the longest object, because text that never closes must not fill the memory


class JsonTable(SampleTable):
    """Objects that are decoded one by one while they are read. A key may first appear in any of them.

    So opening needs a pass over the file. It finds no types: columns are read with the types that are asked for.
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
        """Read a table. As in CSV, a column of texts that all are times becomes one of times."""
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
                        f"{self.path} is written by column, which is the default of DataFrame.to_json(); wanted a list"
                        " of records: write it with orient='records'"
                    )
                yield record


def json_records(file: TextIO) -> Iterator[Any]:
    """Yield the elements of the JSON array in `file`, or its values one after another, decoded while it is read."""
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
                what = f"record {number} (counted from 0) is not JSON: {error.msg}"
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
    """Decode JSON Lines up to the last line at once, which is faster. Return None if the text is not JSON Lines."""
    lines = text[: text.rfind("\n") + 1].split("\n")
    try:
        values: list[Any] = json.loads(f"[{','.join(filter(str.strip, lines))}]")
    except (ValueError, RecursionError):
        return None
    return values


def _is_by_column(record: dict[str, Any]) -> bool:
    """Whether a record holds a whole table, as pandas writes one by column, by index or as columns and data."""
    nested = [value for value in record.values() if isinstance(value, dict)]
    split = {"columns", "data"} <= record.keys() or {"schema", "data"} <= record.keys()
    same_index = len(nested) == len(record) > 0 and all(value.keys() == nested[0].keys() for value in nested)
    is_picture = bool(nested) and nested[0].keys() <= {"bytes", "path"}
    return (same_index and not is_picture) or (split and isinstance(record["data"], list))
