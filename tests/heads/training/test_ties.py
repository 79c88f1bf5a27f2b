"""Of epochs that validate equally well the first is trained anew for, as the loop keeps it."""

from typing import Any

import pytest
from trainings import task

from heads.training import folds


@pytest.mark.parametrize(("accuracies", "epochs"), [([0.5, 0.7, 0.7], 2), ([0.7, 0.7, 0.6], 1), ([0.5, 0.6, 0.7], 3)])
def test_the_first_of_the_best_epochs_is_chosen(
    accuracies: list[float], epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fit(head: Any, features: Any, parts: Any, validation: Any, config: Any, epochs: int | None, *_: Any) -> Any:
        asked.append((validation is None, epochs))
        return [{"validation_accuracy": accuracy} for accuracy in accuracies]

    monkeypatch.setattr(folds, "fit", fit)
    trained = folds.train_heads(task("fusion", folds=None))
    assert trained.chosen == {"epochs": epochs}
    assert asked == [(False, None), (True, epochs)]
