"""`python -m runtime score`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from embed.cli.console import table, warn
from embed.files import require_out_file, write_with
from embed.options import Option, Range, comma_separated
from embed.spec import InputError
from runtime.cli.similar import show_sheet
from runtime.config import SessionConfig


def score(
    bundle: Path,
    images: tuple[str, ...],
    /,
    *,
    session: SessionConfig,
    prompt: str | None = None,
    source: str | None = None,
    outputs: Annotated[tuple[str, ...] | None, Option(parse=comma_separated)] = None,
    top: Annotated[int | None, Range(1)] = None,
    out: Path | None = None,
    sheet: Path | None = None,
    open: bool = False,
) -> dict[str, object]:
    """Score pictures under a prompt, and print the preferred ones first.

    Example:
        plaudit runtime score bundle --prompt "a cat" pictures --top 20

    Args:
        bundle: A folder made by `python -m export onnx`.
        images: Files of pictures, and folders whose pictures are all scored.
        prompt: What the pictures should show. It is needed if an output depends on it.
        source: The picture that all of them were made from, such as the one that was edited.
        outputs: The outputs to give, with commas between them, or all. Pictures are sorted by the first. By default the
            first head's.
        top: Show only this many of the preferred pictures. By default all.
        out: Also write the scores to this file: .csv, .parquet, or .html for a sheet of pictures.
        sheet: Write a contact sheet of the pictures to this file, .png or .html.
        open: Show the contact sheet in a browser. It is scores.html unless --sheet names another file.
    """
    _require_files(out, sheet)
    from runtime.scoring.scorer import Scorer

    scorer = Scorer.load(bundle, session)
    columns, sorted_by = scorer.named.columns(outputs), scorer.named.chosen(outputs)[0].values["score"]
    if prompt is None and scorer.named.needs_prompt(outputs):
        raise InputError(f"the head of {bundle} scores pictures under a prompt; add --prompt TEXT")
    images = tuple(name for image in images for name in ([image] if not Path(image).is_dir() else _below(image)))
    scored = scorer.score_items(prompt or "", images, () if source is None else (source,))
    for number, error in scored.errors.items():
        warn(f"{images[number]}: {error}")
    if len(scored.errors) == len(images):
        raise InputError(f"none of {len(images)} pictures can be scored; see the warnings above")
    good = [i for i in scored.outputs[sorted_by].argsort()[::-1].tolist() if i not in scored.errors][:top]
    found = {column: scored.outputs[name] for column, name in columns.items()}
    rows = [[images[i], *(f"{values[i]:.4f}" for values in found.values())] for i in good]
    print(*table(["image", *found], rows), sep="\n")
    items = [
        {"image": image, "error": str(scored.errors[i])}
        if i in scored.errors
        else {"image": image, **{name: float(values[i]) for name, values in found.items()}}
        for i, image in enumerate(images)
        if top is None or i in good
    ]
    if out and out.suffix != ".html":
        _write_table(out, items)
        print(f"scores: {out}")
    pages = [page for page in (sheet, out if out and out.suffix == ".html" else None) if page]
    for page in pages or ([Path("scores.html")] if open else []):
        from runtime.catalogue.sheet import Tile

        tiles = [Tile(row[0], [row[0]], dict(zip(found, row[1:], strict=True))) for row in rows]
        show_sheet(page, tiles, f"Scores for {prompt}" if prompt else "Scores", open)
    return {"bundle": str(bundle), "precision": scorer.precision, "prompt": prompt, "scores": items}


def _require_files(out: Path | None, sheet: Path | None) -> None:
    """Raise InputError unless both files, if given, have a known ending and are in a folder that can be written to."""
    from runtime.catalogue.sheet import require_sheet

    if out:
        require_out_file(out, "--out")
        if out.suffix not in (".csv", ".parquet", ".html"):
            raise InputError(f"{out} is not a .csv, .parquet or .html file; wanted one of these")
    if sheet:
        require_out_file(sheet, "--sheet")
        require_sheet(sheet)


def _write_table(out: Path, items: Sequence[Mapping[str, object]]) -> None:
    """Write the items as a table, CSV or Parquet by the file's ending."""
    import pyarrow as pa
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    columns = dict.fromkeys(name for item in items for name in item)
    rows = pa.table({name: [item.get(name) for item in items] for name in columns})
    write_with(out, partial(csv.write_csv if out.suffix == ".csv" else pq.write_table, rows))


def _below(folder: str) -> list[str]:
    """All files in a folder and its subfolders. Raise InputError if there are none."""
    from embed.records.formats import read_records

    return [uri for batch in read_records(folder, "folder").images() for uri in batch["uri"].to_pylist()]
