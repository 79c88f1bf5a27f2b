"""`python -m heads reward`."""

from pathlib import Path
from typing import Annotated, Literal

from embed.cli.console import progress, table, warn
from embed.config import DeviceConfig
from embed.files import read_lines
from embed.options import Range
from heads.config import PROMPTS


def reward(
    head: Path,
    /,
    *,
    images: Path,
    prompts: Path | None = None,
    samples: Annotated[int, Range(2)] = 200,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    device: DeviceConfig,
) -> dict[str, object]:
    """Measure how close a head's differentiable reward is to the scores that are served.

    The figures are stored with the head.

    Example:
        plaudit heads reward head --images pictures

    Args:
        head: A folder made by `python -m heads train` or `unfreeze`. It is changed.
        images: A folder of pictures to compare on.
        prompts: A file with prompts to compare under, one on each line. By default some that come with plaudit.
        samples: The number of pictures to take from the folder.
        precision: The precision of the picture tower.
    """
    from embed.inputs.fetch import some_pictures

    paths = some_pictures(images, samples)
    texts = list(PROMPTS) if prompts is None else read_lines(prompts, "prompt")
    from embed.backbones.load import load_backbone
    from heads.reward.certificate import certify
    from heads.reward.module import DTYPES, Reward, head_folder, source_of
    from heads.store.disk import save_certificate

    backbone = load_backbone(source_of(head), device.device)
    measured = Reward.on(backbone, head, DTYPES[precision])
    found = certify(measured, Reward.on(backbone, head), paths, texts, progress)
    if found.unreadable:
        warn(f"{found.unreadable} of {len(paths)} pictures cannot be read and are left out")
    save_certificate(head_folder(head), precision, found.to_json())
    deviations = found.max_score_difference / found.score_deviation if found.score_deviation else 0.0
    rows = [
        ("equal pixels", f"{found.equal_pixels:.4%}"),
        ("lowest cosine", f"{found.min_cosine:.7f}"),
        ("score off by", f"{found.max_score_difference:.1e}"),
        ("in standard deviations of scores", f"{deviations:.1e}"),
        ("pairs flipped", f"{found.flips:.4%} of {found.pairs}"),
    ]
    print(f"the reward against the uint8 path, on {found.pictures} pictures under {found.prompts} prompts:")
    print(*table(("", f"{precision} on {found.device}"), rows), f"stored in {head_folder(head)}", sep="\n")
    return {"head": str(head), "precision": precision, **found.to_json()}
