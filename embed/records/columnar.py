"""Tables that are stored by column: Parquet, Arrow files, tables in memory. Only columns that are needed are read."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from embed.records.plain import is_light, is_scalar
from embed.records.tables import Rows, Table, Types
from embed.spec import InputError
from embed.wording import one_line


@runtime_checkable
class ArrowStream(Protocol):
    """An object that gives its rows as Arrow: a pandas or polars DataFrame, a pyarrow table, a duckdb relation."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


class HasArrowTable(Protocol):
    """A dataset of the `datasets` library. Its table holds the rows, but not the order in which they were selected."""

    @property
    def data(self) -> Any: ...
    def flatten_indices(self) -> "HasArrowTable": ...


class ParquetTable(Table):
    def _open(self) -> tuple[pa.Schema, bool]:
        import pyarrow.parquet as pq

        metadata = pq.read_metadata(self.path)
        self.rows = metadata.num_rows
        return metadata.schema.to_arrow_schema(), metadata.num_rows > 0

    def _stream(self, types: Types, rows: int) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

        # With a buffer a column is read page by page; without one a whole row group, with all its pictures, at once.
        with pq.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
            yield from file.iter_batches(rows, columns=list(types))

    def _read(self, types: Types) -> pa.Table:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            return file.read(columns=self._with(types, is_scalar))

    def _whole_rows(self, types: Types, rows: int, start: int) -> Iterator[Rows]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
            groups = list(range(file.num_row_groups))
            while groups and (skipped := file.metadata.row_group(groups[0]).num_rows) <= start:
                start -= skipped
                del groups[0]
            yield from _from_row(start, file.iter_batches(rows, groups, self._with(types, is_light)))


class ArrowTable(Table):
    """Arrow batches that can be opened again at no cost: a memory-mapped file, or a table in memory."""

    def _batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield batches of these columns."""
        raise NotImplementedError

    def _stream(self, types: Types, rows: int) -> Iterator[pa.RecordBatch]:
        return self._batches(list(types))

    def _read(self, types: Types) -> pa.Table:
        return pa.Table.from_batches(self._batches(self._with(types, is_scalar)))

    def _whole_rows(self, types: Types, rows: int, start: int) -> Iterator[Rows]:
        return _from_row(start, self._batches(self._with(types, is_light)))


class ArrowFileTable(ArrowTable):
    """An Arrow file: Feather, or a shard that the `datasets` library saved."""

    def _open(self) -> tuple[pa.Schema, bool]:
        with pa.memory_map(self.path) as file:
            reader = _arrow_reader(file)
            self.rows = sum(map(len, _batches_of(reader)))
            return reader.schema, self.rows > 0

    def _batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with pa.memory_map(self.path) as file:
            fields = list(map(_arrow_reader(file).schema.get_field_index, names))
            file.seek(0)
            yield from _batches_of(_arrow_reader(file, included_fields=fields))


class MemoryTable(ArrowTable):
    """A table of pandas, polars or pyarrow, another object with an Arrow stream, or a dataset of `datasets`."""

    def __init__(self, source: ArrowStream | HasArrowTable, aliases: Mapping[str, str]) -> None:
        self._source: Any = source
        kind = type(source)
        super().__init__(f"the {kind.__module__.partition('.')[0]}.{kind.__name__}", os.getcwd(), aliases)

    @property
    def files(self) -> list[str]:
        return []

    def _open(self) -> tuple[pa.Schema, bool]:
        source = self._source
        if isinstance(source, ArrowStream):
            try:
                self._table = pa.table(source)
            except (TypeError, ValueError) as error:
                raise InputError(f"{self.path} cannot be read: {one_line(error)}") from None
        elif hasattr(getattr(source, "data", None), "table"):
            # Selected or shuffled rows are kept as indices beside the table, until they are flattened.
            chosen = getattr(source, "_indices", None) is not None
            self._table = (source.flatten_indices() if chosen else source).data.table
        else:
            raise InputError(
                f"{self.path} is not a table; wanted a path, a DataFrame or table with __arrow_c_stream__, or one split"
                " of a dataset"
            )
        self.rows = len(self._table)
        return self._table.schema, self.rows > 0

    def _batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield from self._table.select(names).to_batches()


def _arrow_reader(file: pa.NativeFile, **options: object) -> Any:
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(file, options=pa.ipc.IpcReadOptions(**options))


def _batches_of(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return map(reader.get_batch, range(reader.num_record_batches))
    return iter(reader)


def _from_row(start: int, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield what remains of the batches after `start` rows."""
    for batch in batches:
        if start < len(batch):
            yield batch.slice(start)
        start = max(0, start - len(batch))
