"""`python -m embed backbones`."""

from dataclasses import asdict

from embed.cli.console import table


def backbones() -> dict[str, object]:
    """List the backbones that can be used.

    Example:
        plaudit embed backbones
    """
    from embed.backbones.load import available_backbones

    found = available_backbones()
    rows = [[one.model, f"{one.image_size[0]}x{one.image_size[1]}", one.dim, "yes" * one.offline] for one in found]
    lines = table(["model", "size", "dim", "here"], rows)
    tags = ["pretrained", *(" ".join(one.pretrained) for one in found)]
    width = len(lines[0])  # the first line is the longest, because "here" is the widest entry of its column
    print(*(f"{line:{width}}  {some}".rstrip() for line, some in zip(lines, tags, strict=True)), sep="\n")
    return {"backbones": [asdict(one) for one in found]}
