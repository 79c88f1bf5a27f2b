"""Training on a device without waiting for it at each step: the device "meta" has no numbers, so whatever asks for one
there fails. Training in bfloat16, for which the CPU stands in."""

import numpy as np
import pytest
import torch
from heads_tiny import unit
from no_waiting import require_no_waiting

from heads.config import HeadConfig, TrainConfig
from heads.data.comparisons import Pairs
from heads.data.features import Features, features_of
from heads.models import Head, build_head
from heads.training.objectives import Examples, Groups, Part, Ratings
from heads.training.train import _loop, fit, score_items

N, DIM, PER_PROMPT = 120, 8, 6
RNG = np.random.default_rng(0)
SCORES = ("preference", "ranking", "listwise", "rating")  # losses of scores; the others compare embeddings


@pytest.fixture(scope="module")
def features() -> Features:
    prompt, source = np.arange(N) // PER_PROMPT, np.where(RNG.random(N) < 0.5, -1, RNG.integers(0, N, N))
    return features_of(unit(N, 1), unit(N // PER_PROMPT, 2), np.arange(N), prompt, unit(N, 3), source)


def examples(loss: str) -> Examples:
    """Of all items; pairs are of one prompt each, and one in three is a tie."""
    rng = np.random.default_rng(1)  # of its own, so that no test depends on those before
    rng = np.random.default_rng(1)  # of its own, so that no test depends on those before
    if loss in ("ranking", "listwise"):
        return Groups(np.arange(0, N + 1, PER_PROMPT), np.arange(N), rng.integers(0, 3, N).astype(np.float32))
    if loss == "rating":
        return Ratings(np.arange(N), rng.standard_normal(N).astype(np.float32))
    first = np.arange(N)
    second = first // PER_PROMPT * PER_PROMPT + (first + 1) % PER_PROMPT
    target = rng.choice([0, 0.5, 1], N).astype(np.float32)
    return Pairs(first, second, target, rng.random(N).astype(np.float32) + 0.1, first, first)


def head_of(features: Features, kind: str, **shape: str) -> Head:
    pooled = features.pooled_dim if kind == "fusion" else 0
    return build_head(HeadConfig(kind, features.dim, pooled, **shape), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "loss", "reads"),
    [(kind, loss, "both") for kind in ("fusion", "mlp", "cosine") for loss in SCORES]
    + [("cosine", "preference-inbatch", "both"), ("cosine", "triplet", "both"), ("fusion", "preference", "all")],
)
def test_no_step_waits_for_the_device(features: Features, kind: str, loss: str, reads: str) -> None:
    shape = {} if kind == "cosine" else {"reads": reads}
    head, config = (
        head_of(features, kind, **shape).to("meta"),
        TrainConfig(loss=loss, batch_size=5, epochs=1, patience=1),
    )  # type: ignore[arg-type]
    loop = _loop(head, features.to("meta"), [Part(loss, examples(loss), options=config)], None, config, None)
    require_no_waiting(loop)


@pytest.mark.parametrize(("kind", "loss"), [("fusion", "preference"), ("fusion", "rating"), ("cosine", "triplet")])
def test_products_in_bfloat16_train_the_same_head_less_exactly(features: Features, kind: str, loss: str) -> None:
    told, found, kinds = examples(loss), [], set()
    for bf16 in (False, True):
        head = head_of(features, kind)
        torch.manual_seed(0)
        linear = [module for module in head.modules() if isinstance(module, torch.nn.Linear)]
        hooks = [
            module.register_forward_hook(lambda *given: kinds.add((torch.is_grad_enabled(), given[2].dtype)))
            for module in linear
        ]
        history = fit(
            head, features, told, None, TrainConfig(loss=loss, batch_size=20, epochs=3, learning_rate=1e-2, bf16=bf16)
        )  # type: ignore[arg-type]
        for hook in hooks:
            hook.remove()
        assert {weight.dtype for weight in head.parameters()} == {torch.float32}
        found.append((score_items(head, features), history[-1]["trained_loss"]))
        if linear:
            assert kinds == {(False, torch.float32), (True, torch.bfloat16 if bf16 else torch.float32)}
        kinds.clear()
    (exact, exact_loss), (rough, rough_loss) = found
    assert not np.array_equal(exact, rough) and np.corrcoef(exact, rough)[0, 1] > 0.98
    assert rough_loss == pytest.approx(exact_loss, rel=0.05)
