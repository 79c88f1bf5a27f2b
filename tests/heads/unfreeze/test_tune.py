"""What is kept aside for validation when a backbone is tuned shares nothing with what it is trained on."""

import numpy as np
import pytest
from heads_labels import comparisons

from embed.spec import InputError
from heads.config import UnfreezeConfig
from heads.data.split import Split
from heads.training.objectives import items_of
from heads.unfreeze.tune import _train_and_validation

ROWS = 200


def test_no_picture_is_trained_and_validated_on() -> None:
    rng = np.random.default_rng(0)
    labels = comparisons(rng.choice([0.0, 1.0], ROWS), np.arange(ROWS))
    labels.image[:] = rng.integers(0, 150, 2 * ROWS)  # many stand in several rows
    split = Split(np.where(np.arange(ROWS) % 5 == 0, 0, -1), np.arange(ROWS), 1)
    rows = np.flatnonzero(split.fold != 0)
    config = UnfreezeConfig("blocks=1,1")
    train, validation = _train_and_validation(labels, split, rows, config, None)
    trained, validated = (set(labels.image[items_of(one)].tolist()) for one in (train, validation))
    assert trained and validated and not trained & validated
    assert set(validation.row_a.tolist()) <= set(rows.tolist()) and len(validation) == 16  # a tenth of the groups
    with pytest.raises(InputError, match="1 group is left to train on"):
        _train_and_validation(labels, split, rows[:1], config, None)
