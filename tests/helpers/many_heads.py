"""One small bundle of several heads, which differ in what they read and in what they can say."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from export_tiny import (
    CALIBRATION,
    ImageOnly,
    head_manifest,
    locked,
    shared_folder,
    tiny_backbone,
    tiny_committee,
    tiny_head,
    write_pictures,
)

from export.bundle_writer import export_outputs
from export.config import ExportConfig
from export.outputs import NamedHead, Outputs


@cache
def heads() -> tuple[NamedHead, ...]:
    """`aesthetic` reads the picture alone; `relu` is called as nodes of graphs are."""
    backbone = tiny_backbone()
    torch.manual_seed(3)
    plain, calibrated = head_manifest(backbone), head_manifest(backbone, calibration=CALIBRATION)
    other = {"temperature": {"value": 0.5}, "percentiles": {"x": [-2.0, 2.0], "y": [0.0, 1.0]}}
    return (
        NamedHead("aesthetic", ImageOnly().eval(), None, plain),
        NamedHead("liked", tiny_head(), tiny_committee(), calibrated),
        NamedHead("relu", tiny_head(seed=9), tiny_committee(), {**plain, "calibration": other}),
    )


def some_outputs() -> Outputs:
    """Those heads with all that can be had beside them."""
    return Outputs(
        heads(), True, {"blend": {"liked": 0.7, "relu": 0.3}, "odd": {"aesthetic": -2.0, "clip_similarity": 5}}
    )


def make_many(tmp_path_factory: Any) -> Path:
    """The bundle, made once for all worker processes; do not write into it."""
    folder = shared_folder(tmp_path_factory)
    with locked(folder / "many.lock"):
        if not (folder / "many").exists():
            pictures = tuple(write_pictures(folder / "many_pictures", 8))
            config = ExportConfig(("fp32", "fp16"), pictures=pictures, max_flips=0.5)
            export_outputs(folder / "many", tiny_backbone(), some_outputs(), config)
    return folder / "many"
