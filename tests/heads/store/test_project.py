"""In a cosine head's space the inner product orders as the head does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from heads_tiny import DIM, identity, make_cache
from progress_told import Told

from embed.cache.store import Cache
from embed.spec import IdentityMismatch, InputError
from heads.config import HeadConfig
from heads.models import Cosine, build_head
from heads.store.project import project_cache, projected_identity, require_cosine


def trained(seed: int = 0) -> Cosine:
    torch.manual_seed(seed)
    head = build_head(HeadConfig("cosine", DIM))
    assert isinstance(head, Cosine)
    for matrix in (head.image_residual, head.text_residual):
        torch.nn.init.normal_(matrix, std=0.3)
    return head.eval()


def test_inner_products_of_the_projected_cache_are_the_heads_cosines(tmp_path: Path) -> None:
    cache, head = make_cache(tmp_path / "cache", ["a", "b", "c"], ["x", "y"]), trained()
    project_cache(cache, head, identity(), tmp_path / "out")
    moved = Cache.open(tmp_path / "out")
    v, t = (x.astype(np.float64) for x in (cache.image_embeddings(), cache.text_embeddings()))
    a = np.eye(DIM) + head.image_residual.detach().double().numpy()
    b = np.eye(DIM) + head.text_residual.detach().double().numpy()
    av, bt = v @ a.T, t @ b.T
    av, bt = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (av, bt))
    found = moved.image_embeddings().astype(np.float64) @ moved.text_embeddings().astype(np.float64).T
    np.testing.assert_allclose(found, av @ bt.T, atol=2e-3)  # stored in half precision
    assert moved.keys().equals(cache.keys())
    assert moved.metadata("images").equals(cache.metadata("images"))


def test_the_space_has_an_identity_of_its_own(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", ["a"], ["x"])
    moved = project_cache(cache, trained(), identity(), tmp_path / "out")
    assert moved == Cache.open(tmp_path / "out").identity == projected_identity(identity(), trained())
    assert len({moved.weights, identity().weights, projected_identity(identity(), trained(1)).weights}) == 3
    with pytest.raises(IdentityMismatch):
        project_cache(cache, trained(1), identity(), tmp_path / "out")
    with pytest.raises(IdentityMismatch):
        project_cache(cache, trained(), identity("b" * 64), tmp_path / "other")


def test_run_again_it_adds_nothing(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", ["a", "b"], ["x"])
    for _ in range(2):
        project_cache(cache, trained(), identity(), tmp_path / "out", told := Told())
        assert told.works["projecting"].total == 3 and told.works["projecting"].whole()
    moved = Cache.open(tmp_path / "out")
    assert (moved.count("images"), moved.count("prompts"), len(moved.keys())) == (2, 1, 2)


def test_only_a_cosine_head_has_a_space() -> None:
    with pytest.raises(InputError, match="HEAD is a linear head"):
        require_cosine(build_head(HeadConfig("linear", DIM)), "HEAD")
