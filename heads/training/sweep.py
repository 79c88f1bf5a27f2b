"""Search for the head, loss and options that order validation rows best, within a given time.

Options are a dictionary as `heads train --config` reads it. The caller's `task_of` makes a training of them. Knows no
file, and never uses the test part.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from heads.config import SweepConfig
from heads.data.comparisons import Labels, pairs_among
from heads.models import HEADS, Convex
from heads.training import convex
from heads.training.auto import READ_SOURCES
from heads.training.convex import Round
from heads.training.folds import Task, asides, blend_one, validation_rounds
from heads.training.loop import Diverged
from heads.training.train import fit, validation_accuracy

logger = logging.getLogger(__name__)

Options = dict[str, Any]

LOSSES = {
    "comparisons": ["preference"],
    "counts": ["preference", "rating"],
    "groups": ["preference", "ranking", "listwise"],
    "ratings": ["preference", "rating"],
}
KERNEL_ROWS = 20_000  # above so many rows its landmarks are too few to be worth a trial
# name: lowest and highest value; the logarithm is drawn uniformly
RANGES = {"learning_rate": (1e-4, 1e-2), "weight_decay": (1e-3, 1e1), "penalty": (1e-6, 1e-1)}
WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Trial:
    """Options, and the accuracy of each validation round. A trial that was given up has fewer rounds."""

    options: Options
    accuracies: list[float]
    seconds: float

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.accuracies))


def sweep(
    task_of: Callable[[Options], Task],
    default: Options,
    config: SweepConfig,
    clock: Callable[[], float] = time.monotonic,
    observe: Callable[[Trial], None] = lambda _: None,
) -> list[Trial]:
    """Run trials until the time is over, and return them in order. The first is `default`, which is always finished;
    then comes every head with its own defaults. `task_of(options)` is the training, always on the same table and split,
    without folds.

    A trial is given up if after a round it is worse than half of the others were, if it diverges, or if the time is
    over.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=config.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0),
    )
    labels, start = task_of(default).labels, clock()
    heads = heads_for(labels)
    plain = [_plain(head, labels) for head in heads]
    waiting = [options for options in plain if options != default]
    trials: list[Trial] = []

    def late() -> bool:
        return bool(trials) and clock() - start > 60 * config.minutes

    while not late():
        asked = study.ask() if trials and not waiting else None
        options = _suggest(asked, labels, heads) if asked else waiting.pop(0) if trials else default
        began, accuracies, pruned = clock(), list[float](), False
        try:
            for accuracy in _accuracies(task_of(options), config, late):
                accuracies.append(accuracy)
                if asked:
                    asked.report(float(np.mean(accuracies)), len(accuracies))
                    if len(accuracies) < config.folds and asked.should_prune():
                        pruned = True
                        break
        except Diverged as error:
            if not trials:
                raise
            logger.info(f"given up: {error}")
            pruned, accuracies = True, []
        if asked and (late() or pruned):
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        elif asked:
            study.tell(asked, float(np.mean(accuracies)))
        if accuracies:
            trials.append(Trial(options, accuracies, clock() - began))
            observe(trials[-1])
    return trials


def best_of(trials: Sequence[Trial]) -> Trial:
    """The finished trial with the highest accuracy, if it beats the first by more than the standard error of their
    differences over the rounds. Otherwise it is the first, since the highest of many is partly high by luck."""
    first = trials[0]
    finished = [trial for trial in trials if len(trial.accuracies) == len(first.accuracies)]
    best = max(finished, key=lambda trial: trial.accuracy)
    lead = np.subtract(best.accuracies, first.accuracies)
    return best if lead.mean() > lead.std(ddof=1) / np.sqrt(len(lead)) else first


def has_prompts(labels: Labels) -> bool:
    """Whether every item of a table has a prompt."""
    return len(labels.prompt) > 0 and int(labels.prompt[labels.items].min()) >= 0


def heads_for(labels: Labels) -> list[str]:
    """The heads that suit a table. If some row has no prompt, they read only pictures."""
    heads = ["linear", "mlp", "fusion"] + ["cosine"] * has_prompts(labels)
    return heads + ["kernel", "blend"] * (len(labels) <= KERNEL_ROWS)


def _plain(head: str, labels: Labels) -> Options:
    options: Options = {"head": head, "loss": "preference"}
    if labels.source is not None and head in READ_SOURCES and has_prompts(labels):
        return options | {"reads": "all"}
    return options if has_prompts(labels) or head == "linear" else options | {"reads": "image"}


def _suggest(trial: Any, labels: Labels, heads: Sequence[str]) -> Options:
    """Draw options that suit the table. A blend has none to draw."""
    head = trial.suggest_categorical("head", [head for head in heads if head != "blend"])
    options = _plain(head, labels) | {"loss": trial.suggest_categorical("loss", LOSSES[labels.kind])}

    def draw(name: str) -> None:
        # The best values differ between heads, so each head has its own parameters.
        low, high = RANGES[name]
        options[name] = trial.suggest_float(f"{head} {name}", low, high, log=True)

    if issubclass(HEADS[head], Convex):
        draw("penalty")
    else:
        draw("learning_rate")
        draw("weight_decay")
    if head == "fusion":
        options["hidden"] = trial.suggest_categorical("fusion hidden", WIDTHS)
        options["input_dropout"] = trial.suggest_float("fusion input_dropout", 0.0, 0.7)
    return options


def _accuracies(task: Task, config: SweepConfig, late: Callable[[], bool]) -> Iterator[float]:
    """Yield the accuracy of each finished round, until the time is over."""
    rng = np.random.default_rng(config.seed)  # the same rounds for every trial
    held_out = task.split.withheld_rows(0)
    if task.head_config.kind == "blend":
        for aside in asides(task, held_out, rng, config.folds):
            if len(pairs := pairs_among(task.labels, aside, rng, task.min_ratio)):
                head, *_ = blend_one(task, np.concatenate([held_out, aside]), "trial")
                if late():
                    return
                yield validation_accuracy(head, task.features, pairs)
        return
    for one in validation_rounds(task, held_out, rng, config.folds):
        accuracy = _accuracy(task, one, late)
        if late():
            return
        yield accuracy


class _OutOfTime(Exception):
    pass


def _accuracy(task: Task, one: Round, late: Callable[[], bool]) -> float:
    head = task.new_head()
    if isinstance(head, Convex):
        penalties = convex.PENALTIES if task.config.penalty is None else (task.config.penalty,)
        chosen, history = convex.choose_penalty(lambda: cast(Convex, task.new_head()), task.features, [one], penalties)
        return next(record["validation_accuracy"] for record in history if record["penalty"] == chosen)

    def observe(epoch: int, record: Mapping[str, float]) -> None:
        if late():
            raise _OutOfTime

    try:
        history = fit(head, task.features, one.parts, one.pairs, task.config, observe=observe, progress=task.progress)
    except _OutOfTime:
        return float("nan")
    return max(record["validation_accuracy"] for record in history)
