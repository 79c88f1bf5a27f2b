"""`python -m runtime similar`."""

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from embed.cli.console import table, warn
from embed.files import content_id, require_out_file
from embed.options import Option
from embed.spec import InputError, require_same_identity
from runtime.config import Wish

if TYPE_CHECKING:
    from embed.arrays import Float32s
    from runtime.catalogue.reader import Catalogue
    from runtime.catalogue.sheet import Tile
    from runtime.scoring.scorer import Scorer


@dataclass(frozen=True)
class Likes:
    """What the hits should be like, and what they should be unlike."""

    text: str | None = None
    """What the hits should show. It can be combined with IMAGE."""
    id: str | None = None
    """A picture of the catalogue, by its name or id."""
    vector: Path | None = None
    """A .npy file with a vector (d,)."""
    like: Annotated[tuple[str, ...], Option(many=True)] = ()
    """Files of pictures, or pictures of the catalogue, that the hits should be like."""
    dislike: Annotated[tuple[str, ...], Option(many=True)] = ()
    """Files of pictures, or pictures of the catalogue, that the hits should be unlike."""


def similar(
    catalogue: Path,
    image: Path | None = None,
    /,
    *,
    likes: Likes,
    wish: partial[Wish],
    front: bool = False,
    sheet: Path | None = None,
    open: bool = False,
    images_root: str | None = None,
    bundle: Path | None = None,
) -> dict[str, object]:
    """Find pictures that are similar and popular.

    Example:
        plaudit runtime similar catalogue cat.jpg --popularity-weight 0.3

    Args:
        catalogue: A folder made by `python -m runtime index`.
        image: The picture that the hits should be like: a file, or a picture of the catalogue by its name or id.
        front: Instead of the best -k, give all pictures to which no other is superior in both similarity and
            popularity.
        sheet: Write a contact sheet to this file, .png or .html.
        open: Show the contact sheet in a browser. It is similar.html unless --sheet names another file.
        images_root: The folder or URL to which the names of pictures are relative, for the contact sheet. By default
            the places where they were embedded, or the catalogue's own folder or URL.
        bundle: The bundle that encodes the query. By default the catalogue's own.
    """
    if sheet:
        require_out_file(sheet, "--sheet")
        from runtime.catalogue.sheet import require_sheet

        require_sheet(sheet)
    from runtime.catalogue.queries import find, mixed_query
    from runtime.catalogue.reader import Catalogue, hit_json

    if front and "k" in wish.keywords:
        raise InputError("--front gives the whole front, and -k limits the best hits; leave one of them out")
    opened = Catalogue.open(catalogue)
    if image and not image.exists():
        image, likes = None, replace(likes, like=(_known(opened, str(image)), *likes.like))
    wanted = wish(exclude=_own_pictures(opened, image, likes))
    query = mixed_query(*_vectors(opened, image, likes, bundle))
    hits = opened.front(query, wanted) if front else find(opened, query, wanted)
    documents = [hit_json(hit) for hit in hits]
    found = [document["rate"] for document in documents]
    rates = found if any(rate is not None for rate in found) else None  # pictures are ranked by rates, if there are any
    figures = [
        {
            "blended score": f"{hit.blended_score:.4f}",
            "similarity": f"{hit.similarity:.4f}",
            "percentile": f"{100 * hit.popularity:.1f}",
            "count": "" if hit.count is None else f"{hit.count:,.0f}",
        }
        | ({} if rates is None else {"rate": "" if rate is None else f"{rate:.4g}"})
        for hit, rate in zip(hits, rates or [None] * len(hits), strict=True)
    ]
    titles = ["picture", *(figures[0] if figures else ["blended score", "similarity", "percentile", "count"])]
    rows = [[hit.key, *of_hit.values()] for hit, of_hit in zip(hits, figures, strict=True)]
    print(*table(titles, rows), sep="\n")
    if sheet or open:
        from runtime.catalogue.sheet import Tile

        addresses = opened.addresses([hit.key for hit in hits], images_root)
        tiles = [Tile(hit.key, where, of_hit) for hit, where, of_hit in zip(hits, addresses, figures, strict=True)]
        asked = [Tile(Path(name).name, [name], note="asked with") for name in _files(image, likes)]
        asked_with = likes.text or (image and image.name) or likes.id or next(iter(likes.like), "the query")
        title = f"Similar to {asked_with}"
        show_sheet(sheet or Path("similar.html"), [*asked, *tiles], title, open)
    return {"hits": documents}


def show_sheet(path: Path, tiles: "list[Tile]", title: str, open: bool) -> None:
    """Write a contact sheet, print where it is and which pictures it lacks, and with `open` show it in a browser."""
    from runtime.catalogue.sheet import write_sheet

    if unread := write_sheet(path, tiles, title):
        warn(f"{unread} of {len(tiles)} pictures could not be read; give their folder or URL by --images-root")
    print(f"contact sheet: {path}")
    if open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


def _known(catalogue: "Catalogue", name: str) -> str:
    """Return the name. Raise InputError if the catalogue has no picture of that name or id."""
    try:
        catalogue.row_of(name)
    except InputError:
        raise InputError(
            f"{name} is not a file, and {catalogue.path} has no picture of that name or id; give the path of a picture,"
            " or its name as `similar` prints it"
        ) from None
    return name


def _files(image: Path | None, likes: Likes) -> list[str]:
    """The files of pictures in a query that the hits should be like."""
    return [name for name in ([str(image)] if image else []) + [*likes.like] if Path(name).is_file()]


def _own_pictures(catalogue: "Catalogue", image: Path | None, likes: Likes) -> list[str]:
    """The ids of all pictures in a query. For a file it is the id of its content, even if that is not in the
    catalogue."""
    names = [*likes.like, *likes.dislike, *([likes.id] if likes.id else [])]
    names += [str(image)] if image and image.is_file() else []  # otherwise reading it later raises the error
    return [content_id(Path(name).read_bytes()) if Path(name).is_file() else catalogue.id_of(name) for name in names]


def _vectors(
    catalogue: "Catalogue", image: Path | None, likes: Likes, bundle: Path | None
) -> "tuple[Float32s, Float32s]":
    """(a, d) and (b, d): the liked and the disliked vectors. A bundle is loaded only if something must be encoded."""
    import numpy as np

    encoder = cache(lambda: load_encoder(catalogue, bundle))

    def picture(name: str) -> "Float32s":
        return encoder().embed_images([Path(name)])[0] if Path(name).is_file() else catalogue.vector_of(name)

    dim = catalogue.vectors.shape[1]
    liked = [picture(name) for name in likes.like]
    if image:
        liked.append(encoder().embed_images([image])[0])
    if likes.text:
        liked.append(encoder().embed_prompts([likes.text])[0])
    if likes.id:
        liked.append(catalogue.vector_of(likes.id))
    if likes.vector:
        liked.append(_read_vector(likes.vector, dim))
    disliked = [picture(name) for name in likes.dislike]
    return np.array(liked, np.float32).reshape(-1, dim), np.array(disliked, np.float32).reshape(-1, dim)


def _read_vector(path: Path, dim: int) -> "Float32s":
    import numpy as np

    from runtime.catalogue.queries import unit_vector

    try:
        vector = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path} is not a .npy file of numbers: {error}") from None
    if vector.shape not in ((dim,), (1, dim)) or not np.issubdtype(vector.dtype, np.floating):
        raise InputError(
            f"{path} holds {vector.dtype}{vector.shape}; wanted floats ({dim},), as the catalogue's vectors"
        )
    return unit_vector(vector.reshape(dim), f"{path} holds")


def load_encoder(catalogue: "Catalogue", bundle: Path | None) -> "Scorer":
    """The scorer that encodes the catalogue's queries. Raise IdentityMismatch if its backbone is not the
    catalogue's."""
    from runtime.scoring.scorer import Scorer

    path = bundle or catalogue.bundle
    if path is None:
        raise InputError(
            f"{catalogue.path} names no bundle to encode queries with; give --bundle BUNDLE, or ask without one: by"
            " --id, --vector, or --like with pictures of the catalogue"
        )
    scorer = Scorer.load(path)
    scorer.bundle.require_towers()
    require_same_identity(catalogue.identity, f"the catalogue {catalogue.path}", scorer.identity, f"the bundle {path}")
    return scorer
