"""`python -m runtime upload`."""

from pathlib import Path

from embed.cli.console import progress


def upload(catalogue: Path, uri: str, /, *, collection: str = "plaudit", index_type: str = "FLAT") -> dict[str, object]:
    """Make a collection of Milvus equal to a catalogue.

    Every picture is added or replaced, and pictures that the catalogue no longer has are deleted.

    Example:
        plaudit runtime upload catalogue http://localhost:19530

    Args:
        catalogue: A folder made by `python -m runtime index`.
        uri: The address of a Milvus cluster, or a file for Milvus Lite.
        collection: The name of the collection.
        index_type: The type of the index in Milvus. FLAT is exact.
    """
    from runtime.catalogue import milvus
    from runtime.catalogue.reader import Catalogue

    opened = Catalogue.open(catalogue)
    milvus.upload(opened, uri, collection, index_type, progress).close()
    print(f"{len(opened)} pictures in the collection {collection} of {uri}")
    return {"uri": uri, "collection": collection, "pictures": len(opened)}
