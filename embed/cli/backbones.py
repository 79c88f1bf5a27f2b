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
    rows = [
        [one.model, f"{one.image_size[0]}x{one.image_size[1]}", one.dim, "yes" * one.offline, " ".join(one.pretrained)]
        for one in found
    ]
    print(*table(["model", "size", "dim", "here", "pretrained"], rows), sep="\n")
    return {"backbones": [asdict(one) for one in found]}
