import hashlib

import numpy as np
import pytest

from embed.cache import known
from embed.cache.known import IdSet, name_fingerprint, stack, words


def ids(numbers: list[int]) -> np.ndarray:
    return stack([hashlib.blake2b(str(n).encode(), digest_size=16).digest() for n in numbers])


@pytest.mark.parametrize("longest_run", [1000, known.LONGEST_RUN])
def test_it_agrees_with_pythons_set_through_growth_and_repeats(
    longest_run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "LONGEST_RUN", longest_run)
    rng = np.random.default_rng(0)
    ours, theirs = IdSet(), set[int]()
    for size in (1, 7, 500, 3000, 9000):
        batch = rng.integers(0, 15_000, size).tolist()
        assert ours.contains(ids(batch)).tolist() == [n in theirs for n in batch]
        new = []
        for n in batch:
            new.append(n not in theirs)
            theirs.add(n)
        assert ours.add(ids(batch)).tolist() == new
        assert len(ours) == len(theirs)
    everything = list(range(15_000))
    assert ours.contains(ids(everything)).tolist() == [n in theirs for n in everything]


def test_ids_that_begin_alike_are_told_apart() -> None:
    clash = np.array([[5, 1], [5, 2], [5, 3], [5, 2], [6, 1]], np.uint64)
    ours = IdSet()
    assert ours.add(clash).tolist() == [True, True, True, False, True]
    assert ours.contains(np.array([[5, 4], [5, 3], [6, 1], [7, 1]], np.uint64)).tolist() == [False, True, True, False]


def test_empty_batches() -> None:
    assert IdSet().add(words([])).shape == (0,)


def test_words_are_the_whole_id() -> None:
    first = "00112233445566778899aabbccddeeff"
    assert words([first, "f" * 32]).tobytes() == bytes.fromhex(first) + b"\xff" * 16


def test_a_name_is_met_again_by_what_can_be_seen_without_reading() -> None:
    local = name_fingerprint("a", None, 10, 99)
    assert local == name_fingerprint("a", "1" * 32, 10, 99)
    assert local not in {name_fingerprint("a", None, 11, 99), name_fingerprint("a", None, 10, 98)}
    assert name_fingerprint("a", "1" * 32, None, None) != name_fingerprint("a", "2" * 32, None, None)
    remote = name_fingerprint("http://a", None, None, None)
    assert remote == name_fingerprint("http://a", "1" * 32, 10, None)
