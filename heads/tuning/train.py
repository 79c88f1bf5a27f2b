"""Tune a generator, and find the weights that the judge likes best.

All noise, times and prompts depend only on the seed and the step. So a killed run continues as if it had never stopped,
and a batch that is computed in more parts stays the same batch.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from embed.arrays import Ints
from embed.backbones.backbone import weights_hash
from embed.progress import Progress, silent
from embed.spec import InputError
from heads.reward.module import Reward
from heads.reward.several import Rewards
from heads.training.checkpoint import Checkpoints
from heads.training.loop import Batch, Loop, rates
from heads.tuning.config import LATE, REWARD_WEIGHT, TuneConfig
from heads.tuning.data import Material, require_material
from heads.tuning.families import Family
from heads.tuning.guards import Guards, Look, generator_of, why_refused
from heads.tuning.memory import STATE_BYTES, Memory, Peak, bytes_of, is_memory, memory_of
from heads.tuning.methods import denoising, dpo, draft, refl
from heads.tuning.weights import Trained
from heads.unfreeze.distributed import Ranks

logger = logging.getLogger(__name__)

# Options that change the memory of a step but not its results.
MEMORY_ALONE = ("accumulate", "keep_activations", "max_vram_bytes")


class Run:
    """A tuning at its first step, or at the step that was saved in `folder`. `first` is the look at the untuned
    generator."""

    def __init__(
        self,
        family: Family,
        material: Material,
        config: TuneConfig,
        name: str,
        folder: Path | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """`name` is that of the pipeline. With several processes each computes its share of every batch. Raise
        InputError if the method's data is missing."""
        require_material(material, config)
        self.ranks = ranks or Ranks()
        if config.batch_size % self.ranks.count:
            raise InputError(f"--batch-size {config.batch_size} cannot be divided among {self.ranks.count} processes")
        config = replace(config, guidance=config.guidance or family.guidance)
        self.family, self.material, self.config = family, material, config
        self.middle, self.spread = 0.0, 1.0
        self.kl = config.kl(material.pretrain is not None)
        own = weights_hash(family.module.state_dict())
        self.trained = Trained(
            family, None if config.whole else config.rank, config.seed, config.method == "dpo" or self.kl > 0
        )
        if not config.keep_activations:
            family.checkpoint()
        family.remember(material.texts)
        limit = config.max_vram_bytes or memory_of(family.device)
        self.parts = config.batch_size
        rewards = material.reward if isinstance(material.reward, Rewards) else None
        if rewards:  # to measure memory any scale is good enough
            rewards.rescale(dict.fromkeys(rewards.names, torch.tensor([-1.0, 1.0])))
        self._training: Loop | None = None
        with self._advice():
            self.memory = None if limit is None else self._measured()
        self.parts = config.accumulate or self._parts_for(limit)
        seer = material.judge or material.reward
        self.guards = Guards(
            family, material.aside, config, material.reward, material.judge, seer.encoder if seer else None
        )
        with self._advice():
            self.first = self.guards.look(self.at_once)
        if rewards:
            scores = {name: torch.from_numpy(s).to(rewards.device).float() for name, s in self.first.parts.items()}
            self.first = replace(self.first, reward=rewards.rescale(scores).total(scores).double().cpu().numpy())
        self.middle, self.spread = _scale(self.first)
        self.last = self.first
        self.loop = self._training = self._loop(self._checkpoints(own, name, folder))

    @property
    def at_once(self) -> int:
        """The number of pictures that are computed together."""
        return -(-self.config.batch_size // self.ranks.count // self.parts)

    def train(
        self,
        progress: Progress = silent,
        on_step: Callable[[Loop], None] = lambda loop: None,
        on_look: Callable[[int, Look], None] = lambda step, look: None,
    ) -> None:
        """Tune the generator, which then has the weights that are kept. `on_look` is called after every look of the
        guards.

        Raise InputError if memory runs out; the state so far is then saved.
        """
        loop, epochs = self.loop, -(-self.config.steps // self.loop.epoch_steps)
        with progress(loop.epoch_steps * epochs, "step", "tuning") as step:
            step(loop.step)

            def after(loop: Loop) -> None:
                on_step(loop)
                if self.config.guards and loop.between_epochs:
                    on_look(loop.step, self.last)
                step()

            with self._advice():
                if not loop.history:
                    if self.config.guards:
                        on_look(0, self.first)
                    loop.record_epoch()
                loop.run(epochs, after)

    def losses(self, step: int, batch: Batch) -> Iterator[Tensor]:
        """Yield the losses of the parts of this process's share of a batch."""
        (numbers,) = batch
        mine = self.ranks.share(np.arange(len(numbers)))
        draws, told = _Draws(self, self.config, step, numbers), dict[str, float]()
        for part in np.array_split(mine, min(self.parts, len(mine))):
            loss, notes = draws.loss(part)
            share = len(part) / len(mine)
            for name, value in notes.items():
                told[name] = told.get(name, 0.0) + value * share / self.loop.epoch_steps
            yield loss * share
        self.ranks.average_gradients(self.trained.parameters.values())
        for name, value in told.items():
            self.loop.notes[name] = self.loop.notes.get(name, 0.0) + value

    def score(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(n,) rewards, standardised by the mean and standard deviation of the untuned pictures."""
        reward = self.material.reward
        assert reward is not None
        found = reward(pixels.to(reward.device, torch.float32), list(prompts))
        standardised: Tensor = (found - self.middle) / self.spread
        return standardised

    def _loop(self, checkpoints: Checkpoints | None) -> Loop:
        config, count = self.config, self.count
        every = min(config.judge_every, config.steps)

        def batches(epoch: int) -> Sequence[Batch]:
            rng, wanted = np.random.default_rng([config.seed, 0, epoch]), every * config.batch_size
            order = np.concatenate([rng.permutation(count) for _ in range(-(-wanted // count))])[:wanted]
            return [(part,) for part in order.reshape(every, config.batch_size)]

        weights = self.trained.parameters
        return Loop(
            weights=weights,
            optimizer=torch.optim.AdamW(weights.values(), config.rate, weight_decay=config.weight_decay),
            rate=rates(config.steps, 0, "constant"),
            epoch_steps=every,
            batches=batches,
            units=["pair" if config.method == "dpo" else "prompt"],
            losses=self.losses,
            validate=self._validate if config.guards else None,
            patience=config.patience,
            max_grad_norm=config.max_grad_norm,
            ema=config.ema,
            seed=config.seed,
            checkpoints=checkpoints,
        )

    @property
    def count(self) -> int:
        """The number of examples: prompts, or pairs."""
        if self.config.method == "dpo":
            assert self.material.preferences is not None
            return len(self.material.preferences)
        return len(self.material.prompts)

    def _validate(self) -> float:
        """The judge's mean, in standard deviations from that of the untuned generator. Without a judge it is the step,
        so that the last look is the best. It is minus infinity if the guards refuse the look."""
        look = self.last = self.first if self.loop.step == 0 else self.guards.look(self.at_once)
        shares = self.guards.shares(look, self.first)
        self.loop.notes |= look.means() | shares
        if why_refused(shares, self.config):
            return self.ranks.mean(-np.inf)
        if look.judge is None or self.first.judge is None:
            return self.ranks.mean(float(self.loop.step))
        return self.ranks.mean(float((look.judge.mean() - self.first.judge.mean()) / (self.first.judge.std() or 1.0)))

    def _checkpoints(self, weights: str, name: str, folder: Path | None) -> Checkpoints | None:
        if folder is None:
            return None
        material = self.material
        told = {key: value for key, value in asdict(self.config).items() if key not in MEMORY_ALONE}
        heads = [_told(one) for one in (material.reward, material.judge)]
        learnt = [(one and [one.prompt, len(one)]) for one in (material.preferences, material.pretrain)]
        facts = [told, name, weights, heads, list(material.prompts), list(material.aside), learnt]
        return Checkpoints(folder, json.dumps(facts), math.inf if self.ranks.rank else None)

    def _measured(self) -> Memory:
        """The memory of steps with one and with two pictures, made in only as many denoising steps as have a
        gradient."""
        config = replace(self.config, sampling_steps=self.config.draft_steps)
        most = []
        for pictures in (1, 1, 2):  # the first time encodes prompts, which are then remembered
            draws = _Draws(self, config, 0, np.zeros(pictures, np.int64))
            with Peak() as peak:
                draws.loss(np.arange(pictures))[0].backward()  # type: ignore[no-untyped-call]
            for parameter in self.trained.parameters.values():
                parameter.grad = None
            most.append(peak.most)
        material, trained = self.material, self.trained
        parts = [*self.family.pipeline.components.values(), trained.reference, material.reward, material.judge]
        kept = bytes_of([part for part in parts if isinstance(part, nn.Module)], self.family.device)
        state = STATE_BYTES + 4 * (self.config.ema is not None)
        return Memory(kept + state * trained.count, most[1], max(0, most[2] - most[1]))

    def _parts_for(self, limit: int | None) -> int:
        """The number of parts into which a batch is divided, so that each fits into memory."""
        if limit is None or self.memory is None:
            return 1
        size = self.config.batch_size // self.ranks.count
        at_once = min(size, self.memory.at_once(limit))
        parts = -(-size // at_once)
        logger.info(
            f"a step takes {self.memory.of(size) / 1e9:.3g} GB with {size} pictures at once, of which"
            f" {self.memory.resident / 1e9:.3g} GB are weights and the optimizer's, and"
            f" {self.memory.of(at_once) / 1e9:.3g} GB with {at_once} in {parts} part{'s' * (parts > 1)}, as chosen now"
        )
        return parts

    @contextmanager
    def _advice(self) -> Iterator[None]:
        """If memory runs out inside the block, save the state so far and raise InputError with advice."""
        try:
            yield
        except RuntimeError as error:
            if not is_memory(error):
                raise
            raise self._out_of_memory() from None

    def _out_of_memory(self) -> InputError:
        loop = self._training
        advice = f"give --accumulate {2 * self.parts}" if self.at_once > 1 else "make smaller pictures with --size"
        also = ", or leave --keep-activations out" if self.config.keep_activations else ""
        saved = ""
        if loop and loop.checkpoints and loop.step:
            loop.save()
            saved = f"; the {loop.step} steps so far are in {loop.checkpoints.folder}, and the same command continues"
        torch.cuda.empty_cache()
        return InputError(f"memory ran out with {self.at_once} pictures at once: {advice}{also}{saved}")


class _Draws:
    """The random numbers of a step, for its whole batch, and the loss of any part of the batch."""

    def __init__(self, run: Run, config: TuneConfig, step: int, numbers: Ints) -> None:
        self.run, self.config, family = run, config, run.family
        generator = generator_of(config.seed, 2, step)
        self.numbers = numbers
        self.noise = family.noise(len(numbers), generator)
        self.times = family.process.draw_times(len(numbers), generator)
        first = int(LATE * config.sampling_steps)
        self.place = int(torch.randint(first, config.sampling_steps, (), generator=generator))
        self.seed = config.seed, 6, step  # for the random numbers of each item
        if run.material.pretrain is not None:
            count = len(run.material.pretrain)
            self.pretrain = torch.randint(count, (len(numbers),), generator=generator).numpy()

    def loss(self, some: Ints) -> tuple[Tensor, dict[str, float]]:
        """The loss of some items of the batch, and its parts by name."""
        run, config = self.run, self.config
        if config.method == "dpo":
            loss, notes = self._preferred(some)
        else:
            loss, notes = self._rewarded(some)
        if run.material.pretrain is not None and config.pretrain_weight:
            plain = self._plain(some)
            loss, notes = loss + config.pretrain_weight * plain, {**notes, "pretrain_loss": plain.item()}
        return loss, notes

    def _rewarded(self, some: Ints) -> tuple[Tensor, dict[str, float]]:
        run, config, family = self.run, self.config, self.run.family
        prompts = [run.material.prompts[number] for number in self.numbers[some]]
        told = family.conditions(prompts, config.strength > 1)
        reference = run.trained if run.kl else None
        given = family, self.noise[some], told, lambda pixels: run.score(pixels, prompts)
        how = config.sampling_steps, config.strength
        if config.method == "refl":
            lost = refl(*given, *how, self.place, reference)
        else:
            lost = draft(*given, *how, config.draft_steps, reference)
        weight = config.reward_weight or REWARD_WEIGHT[config.method]
        notes = {"trained_reward": lost.score.mean().item(), "kl": lost.distance.item()}
        return weight * lost.reward + run.kl * lost.distance, notes

    def _preferred(self, some: Ints) -> tuple[Tensor, dict[str, float]]:
        run, family, data = self.run, self.run.family, self.run.material.preferences
        assert data is not None
        numbers = self.numbers[some]
        better, worse = (
            self._latents(data.pictures.read([names[i] for i in numbers], family.size), some)
            for names in (data.better, data.worse)
        )
        told = family.conditions([data.prompt[i] for i in numbers], False)
        beta = run.config.beta or family.process.beta
        found = dpo(family, run.trained, better, worse, self.noise[some], self.times[some], told, beta)
        return found.mean(), {"ordered": float((found.detach() < np.log(2)).double().mean())}

    def _plain(self, some: Ints) -> Tensor:
        family, data = self.run.family, self.run.material.pretrain
        assert data is not None
        numbers = self.pretrain[some]
        clean = self._latents(data.pictures.read([data.image[i] for i in numbers], family.size), some)
        told = family.conditions([data.prompt[i] for i in numbers], False)
        return denoising(family, clean, self.noise[some], self.times[some], told).mean()

    def _latents(self, pixels: Tensor, some: Ints) -> Tensor:
        """Latents of some items. Each is drawn with its own seed, so that it does not depend on the parts of the
        batch."""
        family = self.run.family
        places = map(int, some)
        found = [family.encode(one[None], generator_of(*self.seed, i)) for i, one in zip(places, pixels, strict=True)]
        return torch.cat(found)


def _told(reward: Reward | Rewards | None) -> object:
    """A value that is equal only for the same heads with the same weights."""
    if isinstance(reward, Rewards):
        return [[_told(one), weight] for one, weight in zip(reward.members, reward.weight.tolist(), strict=True)]
    return reward and weights_hash(reward.head.state_dict())


def _scale(look: Look) -> tuple[float, float]:
    """The mean and the standard deviation of the reward of the untuned pictures."""
    if look.reward is None:
        return 0.0, 1.0
    if not look.reward.std() > 0:
        raise InputError(
            f"the reward gives all {len(look.reward)} pictures of the untuned generator the same score: nothing"
            " can be learned from it; choose another, or raise --judge-pictures"
        )
    return float(look.reward.mean()), float(look.reward.std(ddof=1))
