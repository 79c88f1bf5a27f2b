"""`python -m embed refresh`."""

from pathlib import Path

from embed.cli.console import progress
from embed.config import DeviceConfig


def refresh(cache: Path, /, *, tuned: Path, out: Path, device: DeviceConfig) -> dict[str, object]:
    """Write a cache's vectors under a tuned backbone, without reading a picture.

    Args:
        cache: A folder made by `python -m embed cache --boundary`.
        tuned: A folder made by `python -m heads unfreeze`.
        out: The folder to write the new cache to.
    """
    from embed.devices import resolve_device
    from embed.unfreeze.refresh import refresh_cache

    result = refresh_cache(cache, tuned, out, resolve_device(device.device), progress)
    print(f"{out}: {result['images']:,} pictures, {result['prompts']:,} prompts")
    return result
