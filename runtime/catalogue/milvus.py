"""A catalogue in Milvus, for more pictures than fit in one machine's memory. It answers as a local one does.

Each picture is one entity: key (its name), vector [x, popularity], popularity, id, count, and its other columns as
dynamic fields; times and decimals are texts to show and, under another name, numbers to compare. The extra dimension of
the vector gives blended scores as in a local index. The identity and the columns are in a second collection of one
entity, `<name>_manifest`. Needs the extra `milvus`.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embed.arrays import Float32s
from embed.progress import Progress, silent
from embed.spec import Identity, InputError, require_same_identity
from runtime.catalogue.conditions import compared, milvus_expression, resolved
from runtime.catalogue.hits import Hit, Searchable, hit_of, jsonable
from runtime.catalogue.reader import Catalogue
from runtime.catalogue.times import is_time

if TYPE_CHECKING:
    from pymilvus import MilvusClient

UPSERT_ROWS = 1000
KEY_BYTES = 2048
MANIFEST = "_manifest"
FIELDS = {"image": "key", "image_id": "id"}  # columns that have another name as fields
AS_NUMBER = "{}_as_number"  # the field that filters compare, for a time or decimal


class MilvusCatalogue(Searchable):
    """A collection that holds a catalogue."""

    def __init__(self, uri: str, collection: str = "plaudit") -> None:
        """Connect to a cluster, or to the file `uri` by Milvus Lite. Raise InputError if it has no catalogue of this
        name."""
        self.client = _client(uri)
        self.collection = collection
        if not self.client.has_collection(collection):
            raise InputError(f"{uri} has no collection {collection!r}; it has {self.client.list_collections()}")
        found = []
        if self.client.has_collection(collection + MANIFEST):
            found = self.client.get(collection + MANIFEST, ["manifest"], output_fields=["text"])
        if not found:
            raise InputError(f"the collection {collection!r} of {uri} was not made by plaudit")
        manifest = json.loads(found[0]["text"])
        self.identity = Identity.from_json(manifest["identity"])
        self.columns: list[str] = manifest["columns"]
        types = manifest.get("types")  # absent in old collections
        self.schema = None if types is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(types)))
        self.client.load_collection(collection)

    def __len__(self) -> int:
        return int(self.client.get_collection_stats(self.collection)["row_count"])

    def _search(
        self, queries: Float32s, k: int, weights: Float32s, min_percentile: float, where: str | None
    ) -> list[list[Hit]]:
        conditions = [f"popularity >= {np.float32(min_percentile / 100)!s}"] if min_percentile else []
        if where is not None:
            conditions.append(self.expression(where))
        found = self.client.search(
            self.collection,
            data=np.concatenate([queries, weights[:, None]], axis=1).tolist(),
            limit=k,
            filter=" and ".join(conditions),
            output_fields=["*"],
        )
        return [
            sorted(
                (_hit(query, weight, dict(one["entity"]), self.columns) for one in hits),
                key=lambda hit: (-hit.blended_score, hit.key),
            )
            for query, weight, hits in zip(queries, weights, found, strict=True)
        ]

    def expression(self, where: str) -> str:
        """A filter on the columns in Milvus's own language."""
        if self.schema is None:
            raise InputError(
                f"the collection {self.collection!r} does not record its columns' types, which filters need; upload the"
                " catalogue again"
            )
        return milvus_expression(resolved(where, self.schema), FIELDS | _number_fields(self.schema))

    def vectors_of(self, hits: Sequence[Hit]) -> Float32s:
        """(n, d) float32: the vectors of pictures that a search found."""
        keys = [hit.key for hit in hits]
        found = {one["key"]: one["vector"] for one in self.client.get(self.collection, keys, output_fields=["vector"])}
        return np.array([found[key][: self.identity.dim] for key in keys], np.float32)

    def close(self) -> None:
        """Close the connection."""
        self.client.close()


def upload(
    catalogue: Catalogue, uri: str, collection: str = "plaudit", index_type: str = "FLAT", progress: Progress = silent
) -> MilvusCatalogue:
    """Make the collection equal to the catalogue, in bounded memory: upsert all its pictures and delete all others.

    `index_type` is one of Milvus's index types; FLAT is exact.
    Raise IdentityMismatch if the collection holds other vectors.
    """
    schema = catalogue.rows.schema.remove_metadata()
    numbers = _number_fields(schema)
    if clash := set(schema.names) & {"key", "id", "vector", *numbers.values()}:
        raise InputError(
            f"a column is named {clash.pop()!r}, a name that is needed for another field in Milvus; rename it"
        )
    client = _client(uri)
    if not client.has_collection(collection):
        _create(client, collection, catalogue.vectors.shape[1] + 1, index_type)
        _create(client, collection + MANIFEST, 2, "FLAT")
    else:
        there = MilvusCatalogue(uri, collection).identity
        require_same_identity(catalogue.identity, f"{catalogue.path}", there, f"the collection {collection!r}")
    types = base64.b64encode(schema.serialize()).decode()
    manifest = {"identity": catalogue.identity.to_json(), "columns": schema.names, "types": types}
    client.upsert(collection + MANIFEST, [{"key": "manifest", "vector": [0.0, 0.0], "text": json.dumps(manifest)}])
    milvus = MilvusCatalogue(uri, collection)
    with progress(len(catalogue), "pictures", "uploading") as step:
        for start in range(0, len(catalogue), UPSERT_ROWS):
            rows = catalogue.rows.slice(start, UPSERT_ROWS)
            vectors = catalogue.vectors[start : start + UPSERT_ROWS].astype(np.float32)
            for name, field in numbers.items():
                rows = rows.append_column(field, compared(rows[name]))
            entities = [_entity(row, vector) for row, vector in zip(rows.to_pylist(), vectors, strict=True)]
            milvus.client.upsert(collection, entities)
            step(len(rows))
    _delete_others(milvus, set(catalogue.rows["image"].to_pylist()))
    return milvus


def _client(uri: str) -> "MilvusClient":
    try:
        from pymilvus import MilvusClient
    except ImportError:
        raise InputError("Milvus needs its client; run: pip install 'plaudit[milvus]'") from None
    return MilvusClient(uri)


def _create(client: "MilvusClient", name: str, dim: int, index_type: str) -> None:
    from pymilvus import DataType

    schema = client.create_schema(enable_dynamic_field=True)
    schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=KEY_BYTES)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    index = client.prepare_index_params()
    index.add_index("vector", index_type=index_type, metric_type="IP")
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")


def _number_fields(schema: pa.Schema) -> dict[str, str]:
    """The numeric field of each column that is stored as text but compared as numbers."""
    numbers = [field.name for field in schema if is_time(field.type) or pa.types.is_decimal(field.type)]
    return {name: AS_NUMBER.format(name) for name in numbers}


def _entity(row: Mapping[str, Any], vector: Float32s) -> dict[str, object]:
    others = {name: value for name, value in row.items() if name not in ("image", "image_id", "popularity")}
    return jsonable(others) | {
        "key": row["image"],
        "id": row["image_id"],
        "vector": [*vector.tolist(), row["popularity"]],
        "popularity": row["popularity"],
    }


def _delete_others(milvus: MilvusCatalogue, keep: set[str]) -> None:
    gone, iterator = [], milvus.client.query_iterator(milvus.collection, batch_size=UPSERT_ROWS, output_fields=["key"])
    while batch := iterator.next():
        gone += [one["key"] for one in batch if one["key"] not in keep]
    iterator.close()
    for start in range(0, len(gone), UPSERT_ROWS):
        milvus.client.delete(milvus.collection, ids=gone[start : start + UPSERT_ROWS])


def _hit(query: Float32s, weight: float, entity: Mapping[str, Any], columns: list[str]) -> Hit:
    named = {**entity, "image": entity["key"], "image_id": entity["id"]}
    similarity = float(np.asarray(entity["vector"][:-1], np.float64) @ query)
    score = similarity + float(weight) * entity["popularity"]
    return hit_of({name: named.get(name) for name in columns}, similarity, score)
