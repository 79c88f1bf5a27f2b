"""`python -m export onnx`."""

from functools import partial
from pathlib import Path
from typing import Annotated

from embed.cli.console import progress, suggest
from embed.config import Overwriting
from embed.files import require_kind, require_out
from embed.options import Option, comma_separated
from embed.spec import InputError
from export.cli.samples import Samples
from export.config import ExportConfig


def onnx(
    head: tuple[Path, ...],
    /,
    *,
    out: Path,
    overwriting: Overwriting,
    config: partial[ExportConfig],
    names: Annotated[tuple[str, ...] | None, Option(parse=comma_separated)] = None,
    clip_similarity: bool = False,
    blends: Annotated[tuple[str, ...], Option("--blend")] = (),
    space: bool = False,
    head_only: bool = False,
    into: Path | None = None,
    samples: Samples,
) -> dict[str, object]:
    """Write a bundle: ONNX graphs, tokenizer, reference and model card.

    The bundle is compared with torch, and nothing is written if it is too far off.

    Several heads of one backbone share its weights and one pass over each picture. A request that names no output gets
    the score of the first head.

    Example:
        plaudit export onnx head --images pictures --precision fp32,int8 --out bundle

    Args:
        head: A folder made by `python -m heads train`, or several.
        out: The folder to write the bundle to.
        names: Names for the heads' outputs, with commas between them. By default the names of their folders.
        clip_similarity: Add the output clip_similarity: the cosine of picture and prompt, which is the score of
            zero-shot CLIP.
        blends: Another output that is a weighted sum of outputs, such as "0.7*liked + 0.3*aesthetic". Scores are summed
            as they are; the column `spread` shows how far those of each head spread. Its name is blend, or another as
            in "mix = liked - 0.5*aesthetic".
        head_only: Leave the backbone's towers out, for vectors that are made elsewhere. A head on adopted vectors is
            always exported so.
        into: A bundle with several outputs. The given heads replace its heads of the same names. All other outputs stay
            as they are, except blends of the replaced heads. It may be the same folder as --out, with --overwrite.
        space: Put the matrices of a cosine head into the embeddings, so that the bundle's vectors lie in its space.
    """
    require_out(out, "bundle", overwriting.overwrite)
    for folder in head:
        require_kind(folder, "head")
    from export.exported import export_named, named_heads, outputs_with
    from export.outputs import Outputs, parse_blends
    from runtime.scoring.bundle import open_bundle

    blended = parse_blends(blends)
    heads = named_heads(head, names, bool(clip_similarity or blended or into))
    if into is None:
        outputs = Outputs(heads, clip_similarity, blended)
    else:
        if clip_similarity or blended or space:
            raise InputError("--into keeps the bundle's outputs; leave out --clip-similarity, --blend and --space")
        outputs = outputs_with(open_bundle(into), heads)
    found = export_named(out, outputs, samples.fill(config), space, head_only, overwriting.overwrite, progress)
    print(found)
    if found.scores_pictures:
        suggest(["runtime", "score", out, "--prompt", "a prompt", "PICTURE"], ["runtime", "serve", out])
    return found.document
