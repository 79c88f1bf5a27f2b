"""Draw the figures as bars, one panel for each section."""

from pathlib import Path
from typing import Any


def plot(sections: dict[str, dict[str, Any]], path: Path) -> bool:
    """Draw the `bars` of the sections that have some ({"unit": ..., "values": {name: value}}).

    Return whether that was possible: it needs matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("agg")
    from matplotlib import pyplot

    bars = {name: found["bars"] for name, found in sections.items() if found.get("bars")}
    if not bars:
        return False
    figure, panels = pyplot.subplots(len(bars), squeeze=False, figsize=(8, 2.5 * len(bars)), layout="constrained")
    for (name, one), panel in zip(bars.items(), panels[:, 0], strict=True):
        panel.barh(list(one["values"]), list(one["values"].values()))
        panel.invert_yaxis()
        panel.set_title(f"{name}: {one['unit']}", loc="left")
    figure.savefig(path)
    return True
