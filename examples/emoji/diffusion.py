"""A small text-conditional diffusion model, trained from scratch on emoji and their names.

    python examples/emoji/diffusion.py --out demo/generator

Some five million parameters, 32 pixels, v-prediction; the prompt is one vector of the starter's text tower. What is
written is a `PixelPipeline` of plaudit. One name in twenty is held out, so that it can be seen what the model makes of
words that it was never shown. A run that was killed goes on where it was saved last.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional as F

from embed.backbones.load import load_backbone
from embed.cli.console import progress
from embed.files import atomic_write, replacing, write_json
from embed.inputs.images import load_pixels
from embed.spec import Preprocess, Source
from heads.tuning.pixel import PixelPipeline

FOLDER = Path(os.path.relpath(Path(__file__).parent))
SIZE = 32
HELD_OUT = 0.05  # of the names
BATCH = 16
LEARNING_RATE = 8e-4
WARMUP = 100  # steps
WITHOUT_PROMPT = 0.1  # of the pictures of a step, so that prompts can be guided by
SAVED_EVERY = 100  # steps
PREPARED = Preprocess((SIZE, SIZE), "squash", "bicubic", (0.5,) * 3, (0.5,) * 3)


@dataclass(frozen=True)
class Emoji:
    """Pictures (n, 3, h, w) uint8, and what is known of them."""

    pixels: Tensor
    names: list[str]
    rows: list[dict[str, object]]
    held_out: np.ndarray  # (n,) bool


def use_count(row: Mapping[str, Any]) -> int | None:
    """How often an emoji was used, or None if that is not known."""
    return row.get("count", row.get("occurrences"))


def read_emoji(folder: Path, limit: int | None = None) -> Emoji:
    """The emoji of a folder with emoji.parquet and images/; `limit` takes that many from all over the table, of those
    with a count, which heads need."""
    rows = pq.read_table(folder / "emoji.parquet").to_pylist()
    if limit is not None:
        rows = [row for row in rows if use_count(row) is not None]
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, limit).astype(int)]
    pixels = [load_pixels((folder / row["image"]).read_bytes(), PREPARED)[0] for row in rows]
    names = [row["name"] for row in rows]
    held_out = np.zeros(len(rows), bool)
    held_out[np.random.default_rng(0).permutation(len(rows))[: round(len(rows) * HELD_OUT)]] = True
    return Emoji(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), names, rows, held_out)


def new_pipeline(channels: Sequence[int] = (32, 64, 128)) -> PixelPipeline:
    """An untrained one. Text reaches every block through the embedding of the time step, and attention at 8 pixels."""
    torch.manual_seed(0)
    depth = len(channels)
    unet = UNet2DConditionModel(
        sample_size=SIZE,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D",) * (depth - 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (depth - 1),
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        cross_attention_dim=384,
        attention_head_dim=2,  # which is how many there are; few large ones are faster
        norm_num_groups=16,
        addition_embed_type="text",
    )
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    return PixelPipeline.on(load_backbone(Source("starter")), unet, scheduler)


def loss_of(pipeline: PixelPipeline, images: Tensor, condition: Tensor, generator: torch.Generator) -> Tensor:
    """The mean squared error of the predicted velocity, at time steps drawn evenly."""
    steps = torch.randint(pipeline.scheduler.config.num_train_timesteps, (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    noisy = pipeline.scheduler.add_noise(images, noise, steps)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = pipeline.unet(noisy, steps, condition).sample
    return F.mse_loss(predicted.float(), pipeline.scheduler.get_velocity(images, noise, steps))


def train(pipeline: PixelPipeline, emoji: Emoji, steps: int, out: Path, batch: int = BATCH) -> list[float]:
    """Train to the given step and save the average of the weights; give the losses of this run."""
    unet, saved = pipeline.unet.train(), out.with_name(f"{out.name}.checkpoint.pt")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    average = EMAModel(unet.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    start = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        unet.load_state_dict(state["unet"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        start = state["step"]
    rows = torch.from_numpy(np.flatnonzero(~emoji.held_out))
    images = emoji.pixels[rows].float() / 127.5 - 1
    condition = pipeline.encode_prompts([emoji.names[i] for i in rows])
    nothing = pipeline.encode_prompts([""])
    losses = []
    with progress(steps, "steps", "training") as step:
        step(start)
        for i in range(start, steps):
            generator = torch.Generator().manual_seed(i)  # of the step alone: a run that goes on draws the same
            chosen = torch.randint(len(rows), (batch,), generator=generator)
            without = torch.rand(batch, 1, 1, generator=generator) < WITHOUT_PROMPT
            loss = loss_of(pipeline, images[chosen], torch.where(without, nothing, condition[chosen]), generator)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (i + 1) / WARMUP)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            average.step(unet.parameters())
            losses.append(loss.item())
            step(1, f"loss {np.mean(losses[-100:]):.4f}")
            if (i + 1) % SAVED_EVERY == 0 or i + 1 == steps:
                state = {"unet": unet.state_dict(), "optimizer": optimizer.state_dict(), "step": i + 1}
                with atomic_write(saved) as file:
                    torch.save({**state, "average": average.state_dict()}, file)
    average.copy_to(unet.parameters())
    unet.eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    if not (out / "model_index.json").exists() or losses:
        with replacing(out, "pipeline", overwrite=True) as folder:
            pipeline.save_pretrained(folder)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo/generator"))
    parser.add_argument("--emoji", type=Path, default=FOLDER, help="folder with emoji.parquet and images/")
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    emoji, start = read_emoji(args.emoji), time.monotonic()
    losses = train(new_pipeline(), emoji, args.steps, args.out)
    elapsed = time.monotonic() - start
    print(f"{len(losses)} steps in {elapsed:.0f} s; loss of the last 100: {np.mean(losses[-100:]):.4f}")
    write_json(args.out.with_name(f"{args.out.name}.json"), {"losses": losses, "elapsed_s": elapsed})


if __name__ == "__main__":
    main()
