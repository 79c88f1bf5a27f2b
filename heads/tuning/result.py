"""The result of tuning: figures before and after, and a folder that any user of diffusers can load.

OUT/pytorch_lora_weights.safetensors    the LoRA, or OUT/unet or OUT/transformer with all weights
OUT/tuning.json                         the options of the tuning, and its history
OUT/README.md, OUT/report.html          a card, and a page with pictures; written before tuning.json
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from embed.arrays import Floats, Ints
from embed.files import atomic_write, replacing, write_json
from heads.evaluation.intervals import Bootstrap, Interval, mean_interval
from heads.report.figures import number, told
from heads.report.page import Picture
from heads.report.tiles import tile
from heads.report.tuned import BeforeAfter, tuned_page
from heads.tuning.guards import Guards, Look, why_refused
from heads.tuning.train import Run
from heads.tuning.weights import Trained

FORMAT = 1
LORA = "pytorch_lora_weights.safetensors"  # the file name in diffusers
SHOWN = 24  # pairs of pictures on the page
NAMES = {
    "reward": "reward",
    "judge": "judge",
    "diversity": "diversity within a prompt",
    "variety": "diversity between prompts",
    "sharpness": "energy in high frequencies",
}


@dataclass(frozen=True)
class Figure:
    """The means of a measure before and after, and the mean difference with its interval over prompts."""

    before: float
    after: float
    deviation: float  # of single pictures before tuning; for diversity of prompts
    difference: Interval

    def to_json(self) -> dict[str, object]:
        """As JSON. Numbers that are not finite become null."""
        return asdict(self) | {"difference": self.difference.to_json()}


@dataclass(frozen=True)
class Outcome:
    """The comparison before and after, for the prompts kept aside, on new pictures that no guard has used."""

    prompts: list[str]  # the prompt of each picture
    before: Look
    after: Look
    figures: dict[str, Figure]


def measure(run: Run) -> Outcome:
    """Make pictures before and after from noise that no guard has used, and compare them."""
    material, config = run.material, run.config
    seer = material.judge or material.reward
    encoder = seer.encoder if seer else None
    guards = Guards(run.family, material.aside, config, material.reward, material.judge, encoder, stream=1)
    with run.trained.untuned():
        before = guards.look(run.at_once)
    after = guards.look(run.at_once)
    figures = dict[str, Figure]()
    for name, first in before.measures.items():
        second = after.measures[name]
        if first is None or second is None or not len(first):
            continue
        per = len(first) // len(material.aside)
        figures[name] = compare(first, second, np.arange(len(first)) // per, config.seed)
    return Outcome(guards.prompts, before, after, figures)


def compare(before: Floats, after: Floats, prompt: Ints, seed: int) -> Figure:
    """Compare values (n,) of the same prompts and noise before and after. The interval resamples prompts."""
    bootstrap = Bootstrap(prompt, prompt, np.random.default_rng(seed), name="prompts")
    return Figure(
        float(before.mean()), float(after.mean()), float(before.std()), mean_interval(after - before, bootstrap)
    )


def verdict(run: Run, outcome: Outcome) -> list[str]:
    """Sentences that say how the tuning ended. The first is the most important."""
    loop, config = run.loop, run.config
    every, found = loop.epoch_steps, []
    judge = outcome.figures.get("judge")
    if config.guards and loop.best and loop.best_epoch == 0:
        found.append(
            "No look of the guards was better than the first, at the untuned generator, so its weights are kept and"
            " nothing has changed; try a lower --learning-rate, a higher --kl-weight, or another reward."
        )
    elif judge is not None:
        low, high = judge.difference.low, judge.difference.high
        said = "likes them better" if low > 0 else "likes them less" if high < 0 else "cannot tell them apart"
        found.append(f"The judge compared pictures before and after, and {said}: {told(judge.difference, '+.3g')}.")
    if not config.guards:
        found.append("The guards were off: the last weights are kept, even if the pictures became worse.")
    elif run.material.judge is None:
        found.append(
            "There was no judge: the last weights that the other guards allowed are kept, and nothing independent"
            " shows that they are better."
        )
    elif 0 < loop.best_epoch < len(loop.history) - 1:
        found.append(
            f"The weights of step {loop.best_epoch * every} are kept: of all looks that the guards allowed, the"
            f" judge liked this one best; none after it, up to step {loop.step}, was better."
        )
    refused = [
        f"{i * every} ({'; '.join(why_refused(record, config))})"
        for i, record in enumerate(loop.history)
        if config.guards and why_refused(record, config)
    ]
    if refused:
        found.append(f"Guards refused the weights of step {', '.join(refused)}.")
    return found


def page_of(run: Run, outcome: Outcome, about: Mapping[str, object]) -> bytes:
    """The HTML of the page."""
    each, loop = run.config.judge_pictures, run.loop
    shown = np.random.default_rng(run.config.seed).permutation(len(outcome.prompts))[:SHOWN]
    pairs = [
        BeforeAfter(*(_picture(look, int(i), outcome.prompts[i]) for look in (outcome.before, outcome.after)))
        for i in sorted(shown)
    ]
    rows = [
        [
            *(NAMES.get(name, name), number(one.before, ".4g"), number(one.after, ".4g"), told(one.difference, "+.3g")),
            number(one.difference.value / one.deviation if one.deviation else math.nan, "+.3f"),
        ]
        for name, one in outcome.figures.items()
    ]
    names = [
        *outcome.before.measures,
        "distance",
        "trained_reward",
        "kl",
        "pretrain_loss",
        "ordered",
        "train_loss",
    ]
    curves = {
        NAMES.get(name, name.replace("_", " ")): [
            (i * loop.epoch_steps, record[name]) for i, record in enumerate(loop.history) if name in record
        ]
        for name in names
        if any(name in record for record in loop.history)
    }
    drawn = (
        f"{len(pairs)} of {len(outcome.prompts)} pictures, drawn at random: {len(outcome.prompts) // each} prompts"
        f" that were kept aside, {each} pictures of each, from noise that no guard has used."
    )
    header = ["", "before", "after", "difference, 95 % interval", "in standard deviations"]
    kept = loop.best_epoch * loop.epoch_steps if loop.best else None
    title = f"{about['pipeline']} tuned by {about['method']}"
    return tuned_page(title, verdict(run, outcome), header, rows, curves, kept, pairs, drawn)


def _picture(look: Look, i: int, prompt: str) -> Picture:
    scores = {"reward": look.reward, "judge": look.judge}
    said = ", ".join(f"{name} {number(float(of[i]), '.3g')}" for name, of in scores.items() if of is not None)
    image = Image.fromarray(look.pixels[i].permute(1, 2, 0).numpy())
    shown = tile(image)
    return Picture(shown.small, prompt, said, shown.full)


def save(path: Path, run: Run, outcome: Outcome, page: bytes, about: Mapping[str, object], overwrite: bool) -> None:
    """Write the folder, and remove the checkpoints. `about` holds facts for tuning.json and the card, such as
    `pipeline` and the data."""
    history = [{k: v if math.isfinite(v) else None for k, v in record.items()} for record in run.loop.history]
    manifest = {
        "format": FORMAT,
        **about,
        "training": asdict(run.config),
        "parameters": run.trained.count,
        "history": history,
        "kept_look": run.loop.best_epoch if run.loop.best else None,
        "figures": {name: figure.to_json() for name, figure in outcome.figures.items()},
        "distance": outcome.after.distance,
    }
    with replacing(path, "tuned generator", overwrite) as folder:
        save_weights(folder, run.trained)
        for name, data in (("report.html", page), ("README.md", card(run, outcome, about).encode())):
            with atomic_write(folder / name) as file:
                file.write(data)
        write_json(folder / "tuning.json", manifest)
    if run.loop.checkpoints:
        run.loop.checkpoints.clear()


def save_weights(folder: Path, trained: Trained) -> None:
    """Write the LoRA or the whole module in the form of diffusers."""
    family = trained.family
    if trained.rank is None:
        family.module.save_pretrained(folder / family.part)
        return
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save as to_safetensors

    layers = get_peft_model_state_dict(family.module)
    saver = type(family.pipeline) if hasattr(family.pipeline, "save_lora_weights") else StableDiffusionLoraLoaderMixin

    def write(tensors: Mapping[str, Tensor], filename: str) -> None:
        with atomic_write(Path(filename)) as file:
            file.write(
                to_safetensors({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
            )

    saver.save_lora_weights(folder, **{f"{family.part}_lora_layers": layers}, save_function=write)


def card(run: Run, outcome: Outcome, about: Mapping[str, object]) -> str:
    """The README of the folder, which hubs show."""
    config, family = run.config, run.family
    kind = type(family.pipeline).__name__
    if config.whole:
        use = (
            f"from diffusers import {type(family.module).__name__}\n\n"
            f'pipeline.{family.part} = {type(family.module).__name__}.from_pretrained("OUT", subfolder="{family.part}")'
        )
    elif hasattr(family.pipeline, "load_lora_weights"):
        use = 'pipeline.load_lora_weights("OUT")'
    else:
        use = f'pipeline.{family.part}.load_lora_adapter("OUT", prefix="{family.part}", weight_name="{LORA}")'
    rows = "\n".join(
        f"| {NAMES.get(name, name)} | {number(one.before, '.4g')} | {number(one.after, '.4g')} |"
        f" {told(one.difference, '+.3g')} |"
        for name, one in outcome.figures.items()
    )
    tags = "\n".join(f"- {tag}" for tag in ("text-to-image", "diffusers", *([] if config.whole else ["lora"])))
    said = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in about.items() if value is not None)
    where = "of its own" if config.whole else f"in a LoRA of rank {config.rank}"
    each, steps = config.judge_pictures, run.loop.step
    return f"""---
base_model: {about["pipeline"]}
library_name: diffusers
tags:
{tags}
---

# {about["pipeline"]}, tuned by {config.method}

{said}
- {run.trained.count:,} numbers of the {family.part} {where}
- {steps} steps of {config.batch_size}, learning rate {config.rate:g}

```python
# with `pipeline` a {kind} of the base model
{use}
```

{" ".join(verdict(run, outcome))}

Pictures of {len(outcome.prompts) // each} prompts that were kept aside, {each} of each, from the same noise before and
after ({config.sampling_steps} steps, guidance {config.strength:g}); 95 % intervals over prompts:

| | before | after | difference |
|---|---|---|---|
{rows}
"""
