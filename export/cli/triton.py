"""`python -m export triton`."""

from pathlib import Path

from embed.config import Overwriting
from embed.files import require_out


def triton(
    bundle: Path,
    /,
    *,
    out: Path,
    overwriting: Overwriting,
    precision: str | None = None,
    name: str = "plaudit",
) -> dict[str, object]:
    """Write a bundle as a model repository for NVIDIA Triton.

    Example:
        plaudit export triton bundle --out repository

    Args:
        bundle: A folder made by `python -m export onnx`.
        out: The folder to write the repository to.
        precision: One of the bundle's precisions. By default its first one.
        name: The name of the model. Its parts are NAME_image, NAME_text and NAME_head.
    """
    require_out(out, "Triton repository", overwriting.overwrite)
    from export.triton import export_repository
    from runtime.scoring.bundle import open_bundle

    models = export_repository(open_bundle(bundle), out, precision, name, overwriting.overwrite)
    print(f"models {', '.join(models)} written to {out}")
    return {"out": str(out), "models": models}
