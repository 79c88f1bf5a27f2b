"""Write TensorBoard files, one run for each stage, to be shown by `tensorboard --logdir FOLDER`."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from embed.arrays import UInt8s


class TensorBoard:
    """The files of a run, in a folder. Files of results are only named, since TensorBoard cannot store them."""

    def __init__(self, folder: str) -> None:
        self._folder, self._writers = folder, dict[str, SummaryWriter]()
        self._run = SummaryWriter(folder)

    def parameters(self, values: Mapping[str, str]) -> None:
        rows = "\n".join(f"    {name}: {value}" for name, value in values.items())  # indented lines are shown verbatim
        self._run.add_text("parameters", rows)

    def record(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._writers:
            self._writers[stage] = SummaryWriter(f"{self._folder}/{stage}")
        for name, value in values.items():
            self._writers[stage].add_scalar(name, value, step)

    def pictures(self, name: str, step: int, pixels: UInt8s) -> None:
        self._run.add_images(name, pixels, step, dataformats="NHWC")

    def figures(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._run.add_scalar(f"result/{name}", value)

    def file(self, path: Path) -> None:
        self._run.add_text("files", f"    {path}")

    def close(self, failed: bool) -> None:
        for writer in (self._run, *self._writers.values()):
            writer.close()
