"""A head takes the place of another one whole, or not at all."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from heads_tiny import DIM

from embed.spec import InputError
from heads.config import HeadConfig
from heads.store import disk
from heads.store.disk import load_committee, load_fold_heads, load_head, load_trained_ids, save_head

CONFIG = HeadConfig("linear", DIM)


def save(path: Path, seed: int, folds: int = 0, overwrite: bool = False) -> torch.Tensor:
    """Save heads with random weights, and give those of the one in use."""
    torch.manual_seed(seed)
    heads = [disk.build_head(CONFIG) for _ in range(1 + folds)]
    for head in heads:
        for weight in head.parameters():
            torch.nn.init.normal_(weight)
    manifest: dict[str, Any] = {"head": vars(CONFIG), "split": {"folds": folds or None}}
    save_head(path, heads[0], heads[1:], pa.array([str(seed)]), manifest, overwrite)
    return next(heads[0].parameters()).detach()


def weights(path: Path) -> torch.Tensor:
    return next(load_head(path)[0].parameters()).detach()


def test_only_who_may_overwrite_does_and_nothing_of_the_old_head_stays(tmp_path: Path) -> None:
    first = save(tmp_path / "head", 1, folds=2)
    with pytest.raises(InputError, match="head is a head already; say --overwrite to replace it"):
        save(tmp_path / "head", 2)
    assert torch.equal(weights(tmp_path / "head"), first) and len(load_fold_heads(tmp_path / "head")) == 2
    second = save(tmp_path / "head", 2, overwrite=True)
    assert torch.equal(weights(tmp_path / "head"), second) and load_fold_heads(tmp_path / "head") == []
    assert sorted(os.listdir(tmp_path / "head")) == ["head.json", "head.safetensors", "trained.parquet"]
    assert os.listdir(tmp_path) == ["head"]


@pytest.mark.parametrize("writer", ["write_with", "write_json"])
def test_a_head_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    def full(*args: object) -> None:
        raise OSError("no space left")

    first = save(tmp_path / "head", 1, folds=2)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(disk, writer, full)
        save(tmp_path / "head", 2, overwrite=True)
    assert torch.equal(weights(tmp_path / "head"), first) and len(load_fold_heads(tmp_path / "head")) == 2
    assert load_trained_ids(tmp_path / "head").to_pylist() == ["1"] and os.listdir(tmp_path) == ["head"]


def test_a_head_from_before_there_were_committees_is_read_without(tmp_path: Path) -> None:
    save(tmp_path / "old", 1, folds=3)
    assert load_committee(tmp_path / "old") is None and len(load_fold_heads(tmp_path / "old")) == 3
    manifest = {**disk.load_manifest(tmp_path / "old"), "committee": {"gains": [1.0, 2.0], "offsets": [0.0, -1.0]}}
    disk.write_json(tmp_path / "old" / "head.json", manifest)
    committee = load_committee(tmp_path / "old")
    assert committee is not None and (len(committee.members), committee.groups) == (2, 3) and not committee.training
