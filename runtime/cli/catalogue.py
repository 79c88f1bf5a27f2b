"""The commands `index`, `refresh` and `similar`: make a catalogue, keep it fresh, find what is similar and popular."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed import console
from embed.spec import InputError

if TYPE_CHECKING:
    import numpy as np

    from runtime.catalogue.reader import Catalogue
    from runtime.catalogue.rows import Pictures, PopularityConfig, PopularRows, Predict
    from runtime.scoring.scorer import Scorer

PREDICTED = "predicted:"
PREDICTED_ROWS = 65_536  # at a time


def add_commands(commands: Any) -> None:
    """Add this module's commands to those of `python -m runtime`."""
    index = console.command(
        commands, "index", make_index, "make a catalogue of a cache's pictures and their popularity"
    )
    index.add_argument("cache", type=Path, metavar="CACHE")
    index.add_argument("--out", type=Path, required=True, metavar="CATALOGUE")
    index.add_argument("--bundle", type=Path, help="what encodes the catalogue's queries")
    _add_popularity(index, required=True)
    index.add_argument("--images-root", help="folder or URL where pictures' names start; the table's own folder else")
    index.add_argument(
        "--index",
        default="auto",
        choices=("auto", "exact", "ivf-pq", "ivf-sq", "hnsw"),
        help="auto: exact up to 200,000 pictures, else the smallest that reaches the recall (%(default)s)",
    )
    index.add_argument("--min-recall", type=float, default=0.99, help="recall at 10 to tune for (%(default)s)")
    index.add_argument("--max-memory-gb", type=float, help="what the index may take beside the vectors")

    refresh = console.command(commands, "refresh", refresh_index, "give a catalogue new counts, pictures or deletions")
    refresh.add_argument("catalogue", type=Path, metavar="CATALOGUE")
    _add_popularity(refresh, required=False)
    refresh.add_argument("--cache", type=Path, help="where new pictures come from")
    refresh.add_argument("--delete", nargs="+", default=[], metavar="PICTURE", help="leave these out")

    similar = console.command(commands, "similar", find_similar, "find pictures that are similar and popular")
    similar.add_argument("catalogue", type=Path, metavar="CATALOGUE")
    similar.add_argument("image", type=Path, nargs="?", metavar="IMAGE")
    similar.add_argument("--text", help="find what shows this; with IMAGE, both")
    similar.add_argument("--id", metavar="PICTURE", help="find what is like a picture of the catalogue, by name or id")
    similar.add_argument("--vector", type=Path, metavar="FILE", help="find what is near a vector (d,) in a .npy file")
    similar.add_argument("--like", nargs="+", default=[], metavar="PICTURE", help="files or pictures of the catalogue")
    similar.add_argument(
        "--dislike", nargs="+", default=[], metavar="PICTURE", help="files or pictures of the catalogue"
    )
    similar.add_argument("-k", type=int, default=10, help="how many hits (%(default)s)")
    similar.add_argument(
        "--popularity-weight", type=float, default=0.0, help="score = cosine + this times the percentile (%(default)s)"
    )
    similar.add_argument("--min-percentile", type=float, default=0.0, help="least percentile of popularity, 0 to 100")
    similar.add_argument("--where", help="a filter such as \"category = 'Objects' and year >= 2024\"")
    similar.add_argument("--dedup", type=float, metavar="COSINE", help="of hits nearer than this keep the best")
    similar.add_argument("--group-by", metavar="COLUMN", help="give no value of this column more than --per-group hits")
    similar.add_argument("--per-group", type=int, default=1, help="(%(default)s)")
    similar.add_argument("--front", action="store_true", help="all that no other beats in similarity and popularity")
    similar.add_argument("--sheet", type=Path, metavar="FILE", help="write a contact sheet, .png or .html")
    similar.add_argument("--open", action="store_true", help="show the contact sheet (similar.html unless --sheet)")
    similar.add_argument("--bundle", type=Path, help="what encodes the query, in place of the catalogue's own")


def _add_popularity(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--popularity",
        required=required,
        metavar="TABLE",
        help=f"columns image, count [, exposures, timestamp, ...]; or {PREDICTED}BUNDLE",
    )
    parser.add_argument("--columns", help="other names of columns, as ours=theirs,...")
    parser.add_argument(
        "--missing", help=f"pictures without a count: drop (unless given), zero, median or {PREDICTED}BUNDLE"
    )
    parser.add_argument("--half-life-days", type=float, help="counts fade with the age of their `timestamp`")


def make_index(args: argparse.Namespace) -> dict[str, Any]:
    import os

    from embed.cache.store import Cache
    from embed.spec import require_same_identity
    from runtime.catalogue.writer import IndexConfig, build

    cache = Cache.open(args.cache)
    if args.bundle:
        from runtime.scoring.bundle import open_bundle

        identity = open_bundle(args.bundle).identity
        require_same_identity(cache.identity, f"the cache {args.cache}", identity, f"the bundle {args.bundle}")
    table, config, predict = _popularity(args, cache.identity)
    memory = None if args.max_memory_gb is None else int(args.max_memory_gb * 1e9)
    index = IndexConfig(args.index, args.min_recall, memory)
    root = args.images_root or (
        "." if args.popularity.startswith(PREDICTED) else os.path.dirname(args.popularity) or "."
    )
    queries = cache.text_embeddings()
    catalogue, rows = build(
        args.out, cache, table, config, index, root, args.bundle, predict, queries, console.progress
    )
    return _report(args, catalogue, rows)


def refresh_index(args: argparse.Namespace) -> dict[str, Any]:
    from embed.cache.store import Cache
    from runtime.catalogue.reader import Catalogue
    from runtime.catalogue.rows import PopularityConfig
    from runtime.catalogue.writer import refresh

    if not (args.popularity or args.delete or args.cache):
        raise InputError("nothing to do: wanted --popularity TABLE, --cache CACHE or --delete PICTURE")
    old = Catalogue.open(args.catalogue)
    table, config, predict = _popularity(args, old.identity, PopularityConfig(**old.manifest["popularity"]))
    cache = args.cache and Cache.open(args.cache)
    catalogue, rows = refresh(args.catalogue, table, cache, config, args.delete, predict, console.progress)
    return _report(args, catalogue, rows)


def _popularity(
    args: argparse.Namespace, identity: Any, before: "PopularityConfig | None" = None
) -> "tuple[Any, PopularityConfig, Predict | None]":
    """The table of popularity (None where a refresh has none), its config, and what predicts where it must."""
    import pyarrow as pa

    from embed.records.formats import open_table, parse_columns
    from embed.spec import require_same_identity
    from runtime.catalogue.rows import PopularityConfig

    missing, source = args.missing or (before.missing if before else "drop"), args.popularity
    bundle = next(
        (text.removeprefix(PREDICTED) for text in (source or "", missing) if text.startswith(PREDICTED)), None
    )
    half_life_s = before.half_life_s if before else None
    if args.half_life_days is not None:
        half_life_s = args.half_life_days * 86_400
    config = PopularityConfig("predicted" if bundle else missing, half_life_s)
    predict = None
    if bundle:
        from runtime.scoring.scorer import Scorer

        scorer = Scorer.load(bundle)
        require_same_identity(identity, "the catalogue's pictures", scorer.identity, f"the bundle {bundle}")
        predict = predictor(scorer)
    if source is None:
        return None, config, predict
    if source.startswith(PREDICTED):
        return pa.table({"image": pa.array([], pa.string())}), config, predict
    table = open_table(source, parse_columns(args.columns))
    wanted = {"image": pa.string(), "count": pa.float64()}
    if lacking := [name for name in wanted if name not in table.types]:
        raise InputError(
            f"{source} has no column {lacking[0]!r}; it has {', '.join(table.types)}."
            f" Where yours has another name, say --columns {lacking[0]}=YOURS"
        )
    optional = {"exposures": pa.float64(), "prompt": pa.string()}
    named, others = table.read(wanted | {name: type for name, type in optional.items() if name in table.types})
    for name in others.column_names:
        named = named.append_column(name, others[name])
    return named, config, predict


def predictor(scorer: "Scorer") -> "Predict":
    """The scorer's head as what predicts popularity from vectors; InputError where it reads what is not there."""
    import numpy as np

    def predict(pictures: "Pictures", rows: "np.ndarray", prompts: Any) -> "np.ndarray":
        stored = {"image_embedding": pictures.image_embeddings()}
        if "image_pooled" in scorer.inputs:
            if (pooled := pictures.pooled_embeddings()) is None:
                raise InputError(
                    f"{scorer.bundle.path} predicts from features before the projection, which are not there; index"
                    " (or refresh with --cache) from a cache made with --features projected,pooled"
                )
            stored["image_pooled"] = pooled
        if scorer.reads_text and prompts.null_count:
            raise InputError(
                f"{scorer.bundle.path} predicts from picture and prompt, and {prompts.null_count} pictures have no"
                " prompt: give a table with the columns image, prompt and count, the last empty where unknown"
            )
        scores = []
        for start in range(0, len(rows), PREDICTED_ROWS):
            some = slice(start, start + PREDICTED_ROWS)
            features = {name: array[rows[some]].astype(np.float32) for name, array in stored.items()}
            if scorer.reads_text:
                features["text_embedding"] = scorer.embed_prompts(prompts[some].to_pylist())
            scores.append(scorer.score_vectors(features)["score"])
        return np.concatenate(scores)

    return predict


def _report(args: argparse.Namespace, catalogue: "Catalogue", rows: "PopularRows") -> dict[str, Any]:
    if rows.not_embedded:
        console.warn(f"{rows.not_embedded} pictures of the table have no vector and are left out")
    missing = catalogue.manifest["popularity"]["missing"]
    if rows.without_count:
        fate = "are left out" if missing == "drop" else f"get the {missing} popularity"
        console.warn(f"{rows.without_count} pictures have no count and {fate}")
    index = catalogue.manifest["index"]
    console.say(args, f"{len(catalogue)} pictures in {catalogue.path} ({index['kind']} index)")
    efforts = [
        [one["weight"], one["probes"], one["candidates"], f"{one['recall_at_10']:.4f}"]
        for one in index.get("efforts", [])
    ]
    if efforts:
        console.say(args, *console.table(["popularity weight", "probes", "candidates", "recall at 10"], efforts))
    return {
        "catalogue": str(catalogue.path),
        "version": catalogue.manifest["version"],
        "pictures": len(catalogue),
        "not_embedded": rows.not_embedded,
        "without_count": rows.without_count,
        "missing": missing,
        "index": index,
    }


def find_similar(args: argparse.Namespace) -> dict[str, Any]:
    from runtime.catalogue.queries import Wish, find, mixed_query
    from runtime.catalogue.reader import Catalogue, hit_json

    catalogue = Catalogue.open(args.catalogue)
    wish = Wish(
        args.k,
        args.popularity_weight,
        args.min_percentile,
        args.where,
        args.dedup,
        args.group_by,
        args.per_group,
        exclude=[catalogue.rows["image_id"][catalogue.row_of(args.id)].as_py()] if args.id else [],
    )
    query = mixed_query(*_liked_and_disliked(args, catalogue))
    if args.front:
        hits = catalogue.front(query, args.min_percentile, args.where, wish.exclude)
    else:
        hits = find(catalogue, query, wish)
    rows = [
        [hit.key, f"{hit.score:.4f}", f"{hit.similarity:.4f}", f"{100 * hit.popularity:.1f}", _count(hit.count)]
        for hit in hits
    ]
    console.say(args, *console.table(["picture", "score", "similarity", "percentile", "count"], rows))
    if args.sheet or args.open:
        from runtime.catalogue.sheet import write_sheet

        sheet = args.sheet or Path("similar.html")
        write_sheet(sheet, hits, catalogue.images_root, f"{args.text or args.image or args.id or 'similar'}")
        console.say(args, f"contact sheet: {sheet}")
        if args.open:
            import webbrowser

            webbrowser.open(sheet.resolve().as_uri())
    return {"hits": [hit_json(hit) for hit in hits]}


def _count(count: float | None) -> str:
    return "" if count is None else f"{count:,.0f}"


def _liked_and_disliked(args: argparse.Namespace, catalogue: "Catalogue") -> "tuple[np.ndarray, np.ndarray]":
    """(a, d) and (b, d): the vectors of all that the query names; a bundle is loaded only where one must encode."""
    import numpy as np

    scorer: list[Scorer] = []

    def encoder() -> "Scorer":
        scorer[:] = scorer or [load_encoder(catalogue, args.bundle)]
        return scorer[0]

    def picture(name: str) -> "np.ndarray":
        if Path(name).is_file():
            return encoder().embed_images([Path(name)])[0]
        return catalogue.vectors[catalogue.row_of(name)].astype(np.float32)

    likes = [picture(name) for name in args.like]
    if args.image:
        likes.append(encoder().embed_images([args.image])[0])
    if args.text:
        likes.append(encoder().embed_prompts([args.text])[0])
    if args.id:
        likes.append(catalogue.vectors[catalogue.row_of(args.id)].astype(np.float32))
    if args.vector:
        likes.append(_unit_vector(args.vector, catalogue.vectors.shape[1]))
    dim = catalogue.vectors.shape[1]
    dislikes = [picture(name) for name in args.dislike]
    return np.array(likes, np.float32).reshape(-1, dim), np.array(dislikes, np.float32).reshape(-1, dim)


def _unit_vector(path: Path, dim: int) -> "np.ndarray":
    import numpy as np

    try:
        vector = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path} is no .npy file of numbers: {error}") from None
    if vector.shape not in ((dim,), (1, dim)) or not np.issubdtype(vector.dtype, np.floating):
        raise InputError(f"{path} holds {vector.dtype}{vector.shape}; the catalogue's vectors are float ({dim},)")
    length = np.linalg.norm(vector.astype(np.float64))
    if not np.isfinite(length) or length == 0:
        raise InputError(f"{path} holds a vector without a direction")
    return (vector.reshape(dim) / length).astype(np.float32)


def load_encoder(catalogue: "Catalogue", bundle: Path | None) -> "Scorer":
    """The scorer that encodes the catalogue's queries; IdentityMismatch where its vectors are others."""
    from embed.spec import require_same_identity
    from runtime.scoring.scorer import Scorer

    path = bundle or catalogue.bundle
    if path is None:
        raise InputError(f"{catalogue.path} names no bundle to encode queries with; say --bundle BUNDLE")
    scorer = Scorer.load(path)
    require_same_identity(catalogue.identity, f"the catalogue {catalogue.path}", scorer.identity, f"the bundle {path}")
    return scorer
