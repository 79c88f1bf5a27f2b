"""tokenizer.json gives open_clip's ids, whatever the prompt."""

import csv
import json
import unicodedata
from pathlib import Path

import numpy as np
import open_clip
import pytest
from paths import DATA

from embed.backbones.backbone import token_counts
from embed.inputs import vocabulary
from embed.inputs.tokenizer import Tokenizer, kept_tokenizer
from embed.inputs.vocabulary import CORPUS, convert, require_same_tokens
from embed.spec import InputError


def random_prompts(count: int) -> list[str]:
    """Assigned characters of every plane, mixed with ASCII and what cleaning looks for."""
    generator = np.random.default_rng(0)
    pieces = [
        "&amp;",
        "&#39;",
        "&lt",
        " ",
        "\n",
        "'s",
        "'RE",
        "Ã©",
        "’",
        "ﬀ",
        "É",
        "12",
        "_",
        "\u0345",
        "<END_OF_text>",
    ]
    pieces += ["<start_of_text>", "<", "ſ", "K", "İ", "ᾳ", "\u0301"]
    prompts = []
    for _ in range(count):
        length = int(generator.integers(1, 40))
        high = generator.choice([0x80, 0x500, 0x3000, 0x10000, 0x1F700], length)
        letters = [chr(int(generator.integers(1, h))) for h in high]
        kept = [c for c in letters if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
        kept += list(generator.choice(pieces, int(generator.integers(0, 6))))
        generator.shuffle(kept)
        prompts.append("".join(kept))
    return prompts


@pytest.mark.parametrize("clean", ["lower", "whitespace"])
def test_names_of_special_tokens_are_read_where_a_word_may_begin(clean: str) -> None:
    """After punctuation they are more punctuation, and in other case than written they are no special tokens."""
    theirs = open_clip.SimpleTokenizer(clean=clean)
    ours = Tokenizer(*convert(theirs, shortens=False))
    special = "<start_of_text>", "<end_of_text>"
    for name in (*special, "<END_of_text>", "<end_of_text", "end_of_text>"):
        for prompt in (name, f"a{name}b", f"1{name}", f"!{name}", f"<{name}>", f"'s{name}", f"{name}{name} x"):
            assert np.array_equal(ours([prompt]), theirs([prompt]).numpy()), prompt
    assert theirs(["a<end_of_text>b"])[0, 2] == theirs.eot_token_id


def tokenizers() -> dict[str, open_clip.SimpleTokenizer]:
    return {
        "clip": open_clip.SimpleTokenizer(),
        "short": open_clip.SimpleTokenizer(context_length=8, clean="whitespace"),
        "canonical": open_clip.SimpleTokenizer(context_length=32, clean="canonicalize"),
    }


@pytest.mark.parametrize("name", list(tokenizers()))
def test_ids_equal_open_clips_on_awkward_and_random_prompts(name: str) -> None:
    theirs = tokenizers()[name]
    ours = Tokenizer(*convert(theirs, shortens=False))
    for prompt in (*CORPUS, *random_prompts(300)):
        wanted = theirs([prompt]).numpy()
        assert np.array_equal(ours([prompt]), wanted), prompt
    assert ours(["a", "b c"]).dtype == np.int32


def test_ids_equal_open_clips_on_the_prompts_of_two_data_sets() -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not on this machine")
    prompts = {item["prompt"] for item in json.loads((DATA / "imagereward" / "test.json").read_text())}
    with open(DATA / "agiqa3k" / "data.csv", encoding="utf-8") as file:
        prompts |= {row["prompt"] for row in csv.DictReader(file)}
    theirs = open_clip.SimpleTokenizer()
    ours = Tokenizer(*convert(theirs, shortens=False))
    assert len(prompts) > 700
    assert np.array_equal(ours(sorted(prompts)), theirs(sorted(prompts)).numpy())


def test_truncation_keeps_the_end_of_text() -> None:
    theirs = open_clip.SimpleTokenizer()
    ids = Tokenizer(*convert(theirs, shortens=False))(["word " * 200])
    assert ids.shape == (1, 77)
    assert ids[0, 0] == theirs.sot_token_id and ids[0, -1] == theirs.eot_token_id


def test_hugging_face_tokenizer_of_the_starter() -> None:
    starter = pytest.importorskip("embed.backbones.starter")
    if not starter.is_installed():
        pytest.skip("the starter's packages are not installed")
    theirs = starter.load_starter()[1]
    ours = Tokenizer(*convert(theirs, shortens=False))
    for prompt in (*CORPUS, *random_prompts(100)):
        assert np.array_equal(ours([prompt]), theirs([prompt]).numpy()), prompt


def test_a_difference_is_an_error_that_shows_it() -> None:
    theirs = open_clip.SimpleTokenizer()
    ours = Tokenizer(*convert(theirs, shortens=False))
    assert require_same_tokens(ours, lambda prompts: theirs(prompts).numpy(), ["more"]) == len(CORPUS) + 1
    with pytest.raises(InputError, match="cannot be exported"):
        require_same_tokens(ours, lambda prompts: theirs(prompts).numpy() + 1, [])


def test_tokenizers_that_no_file_can_hold_are_refused() -> None:
    with pytest.raises(InputError, match="at random"):
        convert(open_clip.SimpleTokenizer(reduction_mask="random"), shortens=False)
    with pytest.raises(InputError, match="no fast tokenizer"):
        convert(object(), shortens=False)
    with pytest.raises(InputError, match="known are"):
        vocabulary.cleaning_of(str.upper)


@pytest.mark.parametrize("context_length", [8, 77])
def test_a_kept_tokenizer_tokenizes_and_counts_as_open_clip_does(tmp_path: Path, context_length: int) -> None:
    theirs = open_clip.SimpleTokenizer(context_length=context_length)
    vocabulary.keep_tokenizer(tmp_path, theirs)
    ours = kept_tokenizer(tmp_path)
    assert ours is not None
    prompts = [*CORPUS, *random_prompts(50)]
    assert np.array_equal(ours(prompts), theirs(prompts).numpy())
    counts = token_counts(theirs, prompts)
    assert ours.count_truncated(prompts) == sum(count > context_length for count in counts) >= 4


def test_nothing_is_kept_of_a_tokenizer_that_cannot_be_written_down(tmp_path: Path) -> None:
    vocabulary.keep_tokenizer(tmp_path, open_clip.SimpleTokenizer(reduction_mask="random"))
    assert kept_tokenizer(tmp_path) is None
