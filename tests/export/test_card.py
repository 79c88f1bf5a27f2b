"""The model card: what a hub reads of it, only options that the head has, and figures in words."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from export.card import model_card, used_options
from heads.config import HeadConfig, TrainConfig


def test_a_hub_reads_the_card_and_people_read_what_it_is_not_for(bundle: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    manifest = json.loads((bundle / "bundle.json").read_text())
    interval = {"value": 0.7549, "low": 0.71374, "high": 0.79609}
    unknown = {"value": 0.5, "low": None, "high": None, "reason": "one prompt"}
    lead = {"difference": {"value": -0.0001, "low": -0.1, "high": 0.2}, "p_value": 0.44}
    metrics = {"pair_accuracy": interval, "chance": unknown, "pairs": 1234, "lead": {"zero_shot": lead}}
    manifest["provenance"] |= {"metrics": metrics, "training": {**asdict(TrainConfig()), "history": [{"loss": 1}]}}
    text = model_card(manifest)
    card = hub.ModelCard(text)
    assert card.data.library_name == "plaudit" and {"onnx", "reward-model"} <= set(card.data.tags)
    assert "| Pairs in the same order as people's choices (equal scores count half) | 0.755 | 0.714 to 0.796 |" in text
    assert "| The same for chance | 0.500 | one prompt |" in text and "1,234 pairs" in text
    assert "| Lead over zero-shot CLIP | +0.000, p = 0.44 | -0.100 to +0.200 |" in text
    assert "Judging people" in text and "history" not in text and "pair_accuracy:" not in text
    snippet = text.split("```python\n")[1].split("```")[0]
    compile(snippet, "card", "exec")
    assert 'Scorer.load("BUNDLE").score("a photo of a cat", ["1.jpg", "2.jpg"])' in snippet


@pytest.mark.parametrize(
    ("kind", "loss", "there", "absent"),
    [
        (
            "kernel",
            "rating",
            {"kind", "landmarks", "reads"},
            {"hidden", "dropout", "activations", "learning_rate", "warmup"},
        ),
        (
            "fusion",
            "preference",
            {"hidden", "dropout", "epochs", "warmup", "reduction"},
            {"landmarks", "margin", "penalty"},
        ),
        ("cosine", "triplet", {"margin", "learning_rate"}, {"hidden", "reads", "reduction", "landmarks"}),
        (None, None, {"hidden", "margin"}, {"history"}),
    ],
)
def test_only_options_that_do_something_are_listed(
    kind: str | None, loss: str | None, there: set[str], absent: set[str]
) -> None:
    options = {**asdict(HeadConfig("kernel", 4, 4)), **asdict(TrainConfig()), "kind": kind, "loss": loss, "history": []}
    found = used_options(options, kind)
    assert there <= set(found) and not absent & set(found)
