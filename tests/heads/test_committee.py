"""The uncertainty is the jackknife's, whatever constants and factors lie between the members."""

import numpy as np
import pytest
import torch
from heads_tiny import DIM

from heads.committee import Committee, aligned
from heads.config import HeadConfig
from heads.models import Head, build_head

ROWS = torch.nn.functional.normalize(torch.randn(7, DIM, generator=torch.Generator().manual_seed(3)), dim=-1)


def heads(count: int) -> list[Head]:
    made = [build_head(HeadConfig("linear", DIM)) for _ in range(count)]
    for number, head in enumerate(made):
        for weight in head.parameters():
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(number))
    return made


@torch.no_grad()
def scores(head: Head) -> np.ndarray:
    return head(image_embedding=ROWS).numpy()


def test_the_committee_of_every_part_gives_the_standard_error_of_the_jackknife() -> None:
    members, gains, offsets = heads(4), [1.0, 2.0, 0.5, 1.5], [0.0, -1.0, 3.0, 0.25]
    committee = Committee(members, {"gains": gains, "offsets": offsets}, 4)
    for row in range(len(ROWS)):
        moved = [g * float(scores(m)[row]) + o for m, g, o in zip(members, gains, offsets, strict=True)]
        mean = sum(moved) / 4
        expected = (3 / 4 * sum((one - mean) ** 2 for one in moved)) ** 0.5
        assert scores(committee)[row] == pytest.approx(expected, rel=1e-5)
    assert not committee.training or not any(p.requires_grad and p.grad is not None for p in committee.parameters())


def test_some_of_many_parts_give_the_same_unit_as_all() -> None:
    # Members drawn alike: the mean square over many committees of 5 of 20 is that of the committee of all 20.
    every, none = heads(20), {"gains": [1.0] * 20, "offsets": [0.0] * 20}
    whole = scores(Committee(every, none, 20))  # type: ignore[arg-type]
    some = {"gains": [1.0] * 5, "offsets": [0.0] * 5}
    rng = np.random.default_rng(0)
    drawn = [scores(Committee([every[i] for i in rng.permutation(20)[:5]], some, 20)) for _ in range(400)]  # type: ignore[arg-type]
    np.testing.assert_allclose(np.mean(np.square(drawn), axis=0), whole**2, rtol=0.15)


def test_members_that_differ_by_a_constant_and_a_factor_agree() -> None:
    head = np.array([3.0, 1.0, 2.0, 5.0], np.float32)
    members = [10 * head - 4, head / 3 + 100, head]
    found = aligned(head, members)
    for member, gain, offset in zip(members, found["gains"], found["offsets"], strict=True):
        np.testing.assert_allclose(gain * member + offset, head, rtol=1e-5)
    flat = np.full(4, 7, np.float32)  # a member that learnt nothing keeps its factor, and so it is of a head's
    assert aligned(head, [flat])["gains"] == aligned(flat, [head])["gains"] == [1.0]
