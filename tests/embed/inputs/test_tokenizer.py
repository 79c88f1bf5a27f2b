"""Cleaning equals open_clip's, its fast way included; columns of padding are cut where the tower allows it."""

import re

import numpy as np
import open_clip
import pytest
from open_clip.tokenizer import get_clean_fn

from embed.inputs.tokenizer import CLEANINGS, PLAIN, Tokenizer, TokenizerConfig, clean
from embed.inputs.vocabulary import CORPUS, convert
from embed.spec import InputError


@pytest.mark.parametrize("cleaning", CLEANINGS)
def test_cleaning_equals_open_clips(cleaning: str) -> None:
    printable = [chr(c) for c in range(0x20, 0x7F)]
    generator = np.random.default_rng(0)
    random = ["".join(generator.choice(printable, 30)) for _ in range(300)]
    assert sum(bool(PLAIN.fullmatch(text)) for text in random) > 100  # the fast way is tried
    for text in (*CORPUS, *random):
        wanted = text if cleaning == "none" else get_clean_fn(cleaning)(text)
        assert clean(text, cleaning) == wanted, text


def test_padding_is_cut_to_the_longest_prompt() -> None:
    tokenizer = Tokenizer(*convert(open_clip.SimpleTokenizer(), shortens=True))
    full = open_clip.SimpleTokenizer()(["a cat", "a dog on a mat"]).numpy()
    ids = tokenizer(["a cat", "a dog on a mat"])
    assert ids.shape == (2, 7)
    assert np.array_equal(ids, full[:, :7]) and not full[:, 7:].any()
    assert tokenizer([]).shape[0] == 0


def test_a_replaced_separator_becomes_zero() -> None:
    text, config = convert(open_clip.SimpleTokenizer(), shortens=False)
    end = 49407
    ids = Tokenizer(text, TokenizerConfig(**{**config.to_json(), "zeroed_id": end}))(["a cat"])
    assert end not in ids and np.count_nonzero(ids) == 3


def test_half_of_a_surrogate_pair_is_refused() -> None:
    tokenizer = Tokenizer(*convert(open_clip.SimpleTokenizer(), shortens=True))
    with pytest.raises(InputError, match="surrogate"):
        tokenizer(["good", "bad \ud83d"])


def test_bad_files_and_configurations_are_errors() -> None:
    config = TokenizerConfig("lower", 77, 0)
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        Tokenizer("{}", config)
    with pytest.raises(InputError, match=re.escape("cleaning is 'tidy'")):
        TokenizerConfig("tidy", 77, 0)
