"""The towers of a source as functions of arrays, run by the wanted engine, and what this machine remembers of them.

Graphs are exported once in fp32, rewritten and converted (see embed.graphs.precision). They are kept, with the results
of trials and the tokenizer, in the machine's cache (see embed.engines.machine).
"""

import contextlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embed.arrays import Int32s, UInt8s
from embed.config import Wanted
from embed.engines.choice import REFERENCE, Engine, Trial, admits, candidates, choose, run_reference, try_engine
from embed.engines.machine import engine_folder, remember_identity, remembered_identity
from embed.engines.runners import Run, multiplies_bf16, onnx_runner, torch_runner
from embed.files import write_json
from embed.inputs.tokenizer import Tokenizer, kept_tokenizer
from embed.process.allocator import release_freed_memory
from embed.progress import stage
from embed.spec import Feature, Identity, InputError, Precision, Side, Source, known_fields
from embed.wording import NOUN

if TYPE_CHECKING:
    from torch import nn

    from embed.backbones.backbone import Backbone

INPUT: dict[Side, str] = {"images": "pixels", "prompts": "tokens"}
SAMPLE = 256  # how many inputs candidates are compared on


class NoSuchEngine(InputError):
    """Raised when a runner cannot run a tower at a precision."""


class Towers:
    """The two towers of a source, each run by the engine asked for, with all that this machine remembers of them."""

    def __init__(self, source: Source, root: Path, features: Sequence[Feature], ignore_exif: bool = False) -> None:
        self.source = source
        self.features = tuple(features)
        self._root = root
        self._ignore_exif = ignore_exif
        self._backbone_s = 0.0  # how long loading the backbone took, including the import of torch

    def __reduce__(self) -> tuple[type["Towers"], tuple[Source, Path, tuple[Feature, ...], bool]]:
        """Another process receives the towers with nothing loaded."""
        return Towers, (self.source, self._root, self.features, self._ignore_exif)

    @property
    def needs_backbone(self) -> bool:
        """Whether the backbone must be loaded to know the identity."""
        return remembered_identity(self.source, self._root) is None

    @property
    def has_backbone(self) -> bool:
        """Whether the backbone is loaded, and torch with it."""
        return "_backbone" in self.__dict__

    @cached_property
    def identity(self) -> Identity:
        """The identity. The weights are not loaded if this machine has seen them before."""
        identity = remembered_identity(self.source, self._root)
        if identity is None:
            identity = self._backbone.identity
            remember_identity(self.source, identity, self._root)
        return replace(identity, preparation=replace(identity.preprocess, ignore_exif=self._ignore_exif))

    @cached_property
    def _backbone(self) -> "Backbone":
        start = time.monotonic()
        from embed.backbones.load import load_backbone

        backbone = load_backbone(self.source)
        self._backbone_s = time.monotonic() - start
        release_freed_memory()
        return backbone

    def tokenize(self, prompts: Sequence[str]) -> tuple[Int32s, int]:
        """Return tokens, int32 (n, c), and how many prompts were cut to the context length."""
        if (kept := self._kept_tokenizer) is not None:
            return kept(prompts), kept.count_truncated(prompts)
        return self._backbone.tokenize(prompts), self._backbone.count_truncated(prompts)

    @cached_property
    def _kept_tokenizer(self) -> Tokenizer | None:
        return kept_tokenizer(engine_folder(self.identity, self._root))

    def find(self, side: Side, wanted: Wanted, device: str, count: int | None = None) -> Engine | None:
        """Return the engine to use for `count` inputs, or None if a trial is needed to know it.

        No trial is needed if only the reference is asked for, or if all candidates were measured before. One that was
        not worth trying counts as measured, unless it is asked for by name.
        """
        if candidates(wanted, device) == [REFERENCE]:
            return Engine(*REFERENCE, device)
        trials = self._trials(side, device)
        measured = {
            (t.engine.runner, t.engine.precision) for t in trials if t.engine.rows or wanted.precision == "auto"
        }
        return choose(trials, wanted, count).engine if measured >= set(candidates(wanted, device)) else None

    def measure(
        self,
        side: Side,
        inputs: UInt8s | Sequence[str],
        wanted: Wanted,
        device: str,
        batch_size: int,
        count: int | None = None,
    ) -> Trial:
        """Try the candidates on pixels or prompts, save the results, and return the one to use for `count` inputs."""
        arrays = inputs if isinstance(inputs, np.ndarray) else self.tokenize(inputs)[0]
        with stage(f"trying {Engine(*REFERENCE, device)} on {len(arrays)} {NOUN[side]}"):
            reference, rate = run_reference(self.runner(side, Engine(*REFERENCE, device)), arrays, batch_size)
        arrays = arrays[: len(reference)]
        release_freed_memory()
        trials = {(t.engine.runner, t.engine.precision): t for t in self._trials(side, device)}
        trials[REFERENCE] = Trial(Engine(*REFERENCE, device, len(arrays)), rate, self._backbone_s)
        best = rate
        for runner, precision in candidates(wanted, device):
            if (runner, precision) == REFERENCE:
                continue
            engine = Engine(runner, precision, device)
            try:
                if runner == "onnx":
                    self._graph(side, precision)
                elif precision == "bf16" and wanted.precision == "auto" and not multiplies_bf16(device):
                    raise NoSuchEngine("this CPU has no instructions for bfloat16")
            except NoSuchEngine:
                if wanted.precision == precision:
                    raise
                untried = Trial(replace(engine, cosine_mean=0.0, cosine_min=0.0), 0.0)
                trials.setdefault((runner, precision), untried)
                continue
            start = time.monotonic()
            with stage(f"trying {engine} on {len(arrays)} {NOUN[side]}"):
                run = self.runner(side, engine, wanted.threads)
                start_s = time.monotonic() - start + (self._backbone_s if runner == "torch" else 0.0)
                trial = try_engine(run, engine, arrays, reference, batch_size, best)
            if admits(wanted, trial.engine):
                best = max(best, trial.per_s)
            trials[runner, precision] = replace(trial, start_s=start_s)
            del run  # so that its memory is free before the next one starts
            release_freed_memory()
        write_json(self._trials_file(side, device), {"trials": [asdict(trial) for trial in trials.values()]})
        return choose(list(trials.values()), wanted, count)

    def runner(self, side: Side, engine: Engine, threads: int | None = None) -> Run:
        """Return a function from uint8 pixels (n, h, w, 3) or int32 tokens (n, c) to float32 (n, d) unit vectors.

        The function returns a list with one array for each feature.
        """
        if engine.runner == "onnx":
            return onnx_runner(
                self._graph(side, engine.precision), INPUT[side], engine.precision, engine.device, threads
            )
        return torch_runner(self._tower(side), engine.precision, engine.device)

    def _tower(self, side: Side) -> "nn.Module":
        return self._backbone.image_tower(self.features) if side == "images" else self._backbone.text_tower()

    def _name(self, side: Side) -> str:
        return "-".join([side, *(self.features if side == "images" else ())])

    def _trials_file(self, side: Side, device: str) -> Path:
        return engine_folder(self.identity, self._root) / f"{self._name(side)}.{device.replace(':', '')}.json"

    def _trials(self, side: Side, device: str) -> list[Trial]:
        try:
            entries = json.loads(self._trials_file(side, device).read_text())["trials"]
            return [Trial(**entry | {"engine": Engine(**known_fields(Engine, entry["engine"]))}) for entry in entries]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _graph(self, side: Side, precision: Precision) -> Path:
        """Return the exported tower, which is made now if this machine does not have it."""
        folder = engine_folder(self.identity, self._root) / f"{self._name(side)}.{precision}"
        if not folder.exists():
            fp32 = self._graph(side, "fp32") if precision not in ("fp32", "fp16-cuda") else None
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as making:
                done = Path(making) / "done"
                done.mkdir()
                with stage(f"exporting the tower of {NOUN[side]} at {precision}"):
                    if fp32 is None:
                        self._export(side, done / "model.onnx", precision == "fp16-cuda")
                    else:
                        _convert(fp32, precision, done / "model.onnx")
                release_freed_memory()
                with contextlib.suppress(OSError):  # another process has made the same graph in the meantime
                    done.rename(folder)
        return folder / "model.onnx"

    def _export(self, side: Side, path: Path, fused: bool) -> None:
        import onnx
        import torch

        from embed.graphs.fusing import export_fused, for_cuda
        from embed.graphs.precision import fold_patches
        from embed.graphs.rewrite import serving_form
        from embed.graphs.trace import export_tower
        from embed.inputs.vocabulary import keep_tokenizer

        example = (
            torch.zeros((2, *self.identity.preprocess.size, 3), dtype=torch.uint8)
            if side == "images"
            else torch.from_numpy(self._backbone.tokenize(["a photo of a cat", "a dog"]))
        )
        if side == "prompts":
            keep_tokenizer(engine_folder(self.identity, self._root), self._backbone.tokenizer)
        outputs = self.features if side == "images" else ("projected",)
        # On the CPU, like the example, because a trial of torch in fp32 has moved the tower to its device.
        tower, inputs, free = self._tower(side).to("cpu"), {INPUT[side]: example}, {INPUT[side]: {0: "n"}}
        if fused:
            graph = for_cuda(export_fused(tower, inputs, outputs, free))
        else:
            with serving_form(tower):
                graph = fold_patches(export_tower(tower, inputs, outputs, free))
        onnx.save_model(graph, path, save_as_external_data=True, location="model.data")


def _convert(fp32: Path, precision: Precision, path: Path) -> None:
    """Write the graph at another precision. Raise NoSuchEngine if it cannot have that precision."""
    import onnx

    from embed.graphs.precision import is_convolutional, quantize_dynamic, to_fp16

    if precision == "fp16":
        onnx.save_model(to_fp16(onnx.load(fp32)), path, save_as_external_data=True, location="model.data")
    elif is_convolutional(onnx.load(fp32, load_external_data=False)):
        raise NoSuchEngine(
            "int8 of a convolution trunk needs calibration pictures, and a cache's vectors must not depend on which;"
            " ask for another precision"
        )
    else:
        quantize_dynamic(fp32, path)
