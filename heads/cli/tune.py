"""`python -m heads tune`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from embed.cli.console import progress, table, warn
from embed.config import DeviceConfig, Overwriting, TableConfig
from embed.files import require_kind, require_out
from embed.spec import InputError
from heads.cli.common import numbers_of
from heads.tracking.tracker import Tracker, require_tracker, tracking
from heads.tuning.config import Method, TuneConfig

if TYPE_CHECKING:
    from embed.records.formats import Records
    from heads.reward.module import Reward
    from heads.reward.several import Rewards
    from heads.tuning.guards import Look

SHOWN_PICTURES = 16  # in TensorBoard


def tune(
    pipeline: str,
    /,
    *,
    method: Method,
    prompts: Path,
    out: Path,
    overwriting: Overwriting,
    reward: tuple[Path, ...] = (),
    weights: str | None = None,
    judge: Path | None = None,
    data: str | None = None,
    pretrain_data: str | None = None,
    reading: TableConfig,
    no_guards: bool = False,
    tensorboard: Path | None = None,
    tracker: str | None = None,
    training: partial[TuneConfig],
    device: DeviceConfig,
) -> dict[str, object]:
    """Tune a text-to-image pipeline so that a head likes its pictures better.

    Guards watch the training: a judge, a head that is not the reward, decides when to stop and which weights to keep.

    Example:
        plaudit heads tune sd --method draft --reward head --prompts p.txt --out lora

    Args:
        pipeline: A diffusers pipeline, as a folder or a name on a hub: Stable Diffusion 1, 2, XL or 3, or one in pixel
            space. It is not changed.
        method: How the pipeline learns: refl and draft use the gradient of --reward, and dpo the pairs of --data.
        prompts: A file with prompts, one on each line. Some are kept aside for the guards.
        out: The folder to write the LoRA, a card and a page with pictures to.
        reward: The head whose scores are to rise, made by `python -m heads train` or `unfreeze`. The option can be
            repeated: the rewards are then brought to one scale on pictures of the untuned generator, and added.
        weights: The weight of each --reward, as numbers with commas between them: W,... By default 1 each.
        judge: A head that was not trained on the data of --reward, preferably with another backbone.
        data: A table of choices between pictures, for dpo.
        pretrain_data: A table of pictures with prompts. Denoising them is trained too, so that the generated pictures
            stay natural.
        no_guards: Do not stop early and do not choose: keep the last weights, even if the pictures became worse.
        tensorboard: The folder to write curves and pictures to.
        tracker: Send options, curves, pictures, figures and the page to a tracker: tensorboard:FOLDER, mlflow[:URI]
            or wandb[:PROJECT].
    """
    require_out(out, "tuned generator", overwriting.overwrite)
    require_tracker(tracker)
    if tensorboard is not None and tensorboard.exists() and not tensorboard.is_dir():
        raise InputError(f"{tensorboard} is a file; wanted a folder for --tensorboard")
    config = training(method, guards=not no_guards)
    if judge is not None and judge.resolve() in [one.resolve() for one in reward]:
        raise InputError(f"--judge and --reward are both {judge}; give a judge that is not the reward")
    for head in (*reward, *([judge] if judge else [])):
        require_kind(head, "head")
    numbers = numbers_of("--weights", weights, len(reward), "heads; give one for each --reward")
    from heads.tuning.loading import load_family, require_generators

    require_generators()
    from embed.devices import resolve_device
    from embed.records.formats import read_records
    from heads.report.figures import ends, number
    from heads.reward.module import Reward
    from heads.tuning.data import (
        Material,
        kept_aside,
        read_examples,
        read_preferences,
        read_prompts,
        require_material,
    )
    from heads.tuning.result import NAMES, measure, page_of, save, verdict
    from heads.tuning.train import Run
    from heads.unfreeze.distributed import find_ranks

    def records(path: str) -> "Records":
        return read_records(path, reading.format, reading.images_root, reading.columns)

    resolved = resolve_device(device.device)
    ranks = find_ranks(resolved)
    learnt, aside = kept_aside(read_prompts(prompts), config.judge_prompts, config.seed)
    material = Material(
        learnt,
        aside,
        _load_rewards(reward, numbers, resolved),
        None if judge is None else Reward.load(judge, resolved),
        None if data is None or method != "dpo" else read_preferences(records(data), config.seed),
        None if pretrain_data is None else read_examples(records(pretrain_data)),
    )
    require_material(material, config)
    _warn_of_judge(material.reward, material.judge, config.guards)
    family = load_family(pipeline, resolved, config.size, config.precision == "bf16", config.whole)
    run = Run(family, material, config, pipeline, Path(f"{out}.checkpoints"), ranks)
    about = {
        "pipeline": pipeline,
        "method": method,
        "reward": ", ".join(map(str, reward)) or None,
        "weights": numbers if len(numbers) > 1 else None,
        "judge": None if judge is None else str(judge),
        "data": data,
        "pretrain_data": pretrain_data,
    }
    with tracking(None if ranks.rank else tracker, out.name) as tracked:
        tracked.parameters({**about, **asdict(config)})
        with _written(None if ranks.rank else tensorboard, tracked) as observe:
            run.train(progress, on_look=observe)
        if ranks.rank:
            return {}
        outcome = measure(run)
        save(out, run, outcome, page_of(run, outcome, about), about, overwriting.overwrite)
        tracked.figures({name: one.to_json() for name, one in outcome.figures.items()})
        tracked.files(out, "report.html", "README.md", "tuning.json")
    said = verdict(run, outcome)
    rows = [
        (
            *(NAMES.get(name, name), number(one.before, ".4g"), number(one.after, ".4g")),
            *(number(one.difference.value, "+.3g"), ends(one.difference, "+.3g")),
        )
        for name, one in outcome.figures.items()
    ]
    print(f"{run.trained.count:,} numbers of the {family.part} tuned in {run.loop.step} steps, by {method}:")
    print(*table(("", "before", "after", "difference", "95 % interval"), rows), *said, sep="\n")
    print(f"written to {out}, with a page of pictures: {out / 'report.html'}")
    return {
        "tuned": str(out),
        "parameters": run.trained.count,
        "steps": run.loop.step,
        "kept_step": run.loop.best_epoch * run.loop.epoch_steps if run.loop.best else run.loop.step,
        "verdict": said,
        "figures": {name: one.to_json() for name, one in outcome.figures.items()},
    }


def _load_rewards(paths: Sequence[Path], weights: Sequence[float], device: str) -> "Reward | Rewards | None":
    """None without paths, the reward of one, or several rewards under the names of their folders."""
    from heads.reward.module import Reward
    from heads.reward.several import Rewards

    if len(paths) < 2:
        return Reward.load(paths[0], device) if paths else None
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = list(map(str, paths))
    if len(set(names)) < len(names):
        raise InputError(f"--reward names a head twice: {', '.join(names)}; weigh it with --weights")
    return Rewards.load(dict(zip(names, zip(paths, weights, strict=True), strict=True)), device)


def _warn_of_judge(reward: "Reward | Rewards | None", judge: "Reward | None", guarded: bool) -> None:
    if judge is None and guarded:
        warn("without --judge nothing decides when to stop, and the last weights are kept")
    from heads.reward.several import Rewards

    members = reward.members if isinstance(reward, Rewards) else [reward] if reward is not None else []
    if judge is not None and judge.encoder.identity in [one.encoder.identity for one in members]:
        warn(
            "--judge has the same backbone as --reward and may make the same errors; another backbone is a better judge"
        )


@contextmanager
def _written(folder: Path | None, tracked: Tracker) -> "Iterator[Callable[[int, Look], None]]":
    """A context that gives a function which sends the guards' figures and a few pictures to a tracker, and writes them
    to a folder for TensorBoard."""

    def track(step: int, look: "Look") -> None:
        tracked.record("guards", step, look.means())
        tracked.pictures("pictures", step, look.pixels[:SHOWN_PICTURES].permute(0, 2, 3, 1).numpy())

    if folder is None:
        yield track
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def write(step: int, look: "Look") -> None:
            track(step, look)
            for name, value in look.means().items():
                writer.add_scalar(f"guards/{name}", value, step)
            writer.add_images("pictures", look.pixels[:SHOWN_PICTURES], step)

        yield write
