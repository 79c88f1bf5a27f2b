"""Vectors that others made become a cache: where they lie, each or its reason, under what was declared."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adopted import DECLARED, DIM, clip_retrieval, declare, unit
from embed_fakes import IDENTITY, SOURCE, folder_bytes
from paths import ROOT
from progress_told import Told

from embed.addresses import places_below
from embed.cache.store import Cache, CacheWriter
from embed.config import AdoptConfig
from embed.jobs import adopt, vectors
from embed.jobs.adopt import adopt_vectors, read_identity
from embed.jobs.merge import merge_caches
from embed.jobs.verify import damaged_files
from embed.spec import IdentityMismatch, InputError, Source

HALVES = [unit(40, seed=i).astype(np.float16) for i in range(3)]


def take(folder: Path | str, out: Path, identity: Path | None = None, **config: object) -> Cache:
    declared = read_identity(identity or declare(out.parent))
    adopt_vectors(str(folder), *declared, out, AdoptConfig(**config))  # type: ignore[arg-type]
    return Cache.open(out)


def test_vectors_stay_where_they_lie_and_are_found_by_name(tmp_path: Path) -> None:
    folder = clip_retrieval(tmp_path / "f", HALVES, HALVES[::-1])
    counts = adopt_vectors(
        str(folder), *read_identity(declare(tmp_path)), tmp_path / "c", AdoptConfig(), told := Told()
    )
    assert sum(told.works["adopting"].steps) == 240 and told.works["adopting"].ended
    cache = Cache.open(tmp_path / "c")
    assert [(one.linked, one.written, one.failed) for one in counts.values()] == [(120, 0, 0), (120, 0, 0)]
    for number in range(3):
        for side, kind in (("images", "img_emb"), ("prompts", "text_emb")):
            shard = tmp_path / "c" / side / kind / f"{kind}_{number:04d}.npy"
            assert shard.samefile(folder / kind / f"{kind}_{number}.npy")
    np.testing.assert_array_equal(cache.image_embeddings(), np.concatenate(HALVES))
    np.testing.assert_array_equal(cache.text_embeddings(), np.concatenate(HALVES[::-1]))
    assert cache.image_rows(["p119", "p0", "p41", "p120"]).tolist() == [119, 0, 41, -1]
    assert cache.prompt_rows(["c41", "none"]).tolist() == [41, -1]
    assert cache.image_rows(["https://a.example/41.jpg"], places_below("/")).tolist() == [41]
    assert cache.places()[41].as_py() == "https://a.example/41.jpg"
    assert cache.source.is_adopted and cache.identity.dim == DIM and damaged_files(cache) == []


def test_a_copy_has_the_same_rows_in_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK_ROWS", 15)
    folder = clip_retrieval(tmp_path / "f", HALVES, HALVES)
    linked, copied = take(folder, tmp_path / "linked"), take(folder, tmp_path / "copied", copy=True)
    assert len(copied.files("images", "img_emb")) == 9
    for side in ("images", "prompts"):
        assert copied.metadata(side).equals(linked.metadata(side))
    assert copied.keys().equals(linked.keys())
    shutil.rmtree(folder)
    np.testing.assert_array_equal(Cache.open(tmp_path / "copied").image_embeddings(), np.concatenate(HALVES))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f2"])
def test_vectors_of_other_numbers_are_written_as_halves(tmp_path: Path, dtype: str) -> None:
    folder = clip_retrieval(tmp_path / "f", [unit(30).astype(dtype)])
    cache = take(folder, tmp_path / "c")
    assert not any(entry["linked"] for entry in cache.adopted.values())
    np.testing.assert_allclose(cache.image_embeddings().astype(float), unit(30), atol=1e-3)


def test_rows_that_cannot_be_used_are_named_and_lose_no_other(tmp_path: Path) -> None:
    bad = HALVES[1].copy()
    bad[3, 2], bad[5, 0], bad[7] = np.nan, np.inf, 0
    folder = clip_retrieval(tmp_path / "f", [HALVES[0], bad])
    names = pq.read_table(folder / "metadata" / "metadata_1.parquet").to_pandas()
    names.loc[11, "image_path"] = None
    names.to_parquet(folder / "metadata" / "metadata_1.parquet")
    cache = take(folder, tmp_path / "c")
    assert [entry["linked"] for _, entry in sorted(cache.adopted.items())] == [True, False]
    good = np.delete(bad, [3, 5, 7, 11], axis=0)
    np.testing.assert_array_equal(cache.image_embeddings(), np.concatenate([HALVES[0], good]))
    assert cache.image_rows(["p43", "p44", "p45"]).tolist() == [-1, 43, -1]
    failed = {row["key"]: row["reason"] for row in cache.failures().to_pylist()}
    place = f"{folder / 'img_emb' / 'img_emb_1.npy'} row 11"
    assert failed == {"p43": adopt.NOT_FINITE, "p45": adopt.NOT_FINITE, "p47": adopt.ZERO, place: adopt.NAMELESS}
    # Mended where they came from, they are taken over, and the ledger forgets them.
    os.remove(folder / "img_emb" / "img_emb_1.npy")
    np.save(folder / "img_emb" / "img_emb_1.npy", HALVES[1])
    cache = take(folder, tmp_path / "c")
    assert (cache.image_rows(["p43", "p45", "p47"]) >= 0).all()
    assert cache.failures()["key"].to_pylist() == [place]


def test_a_null_vector_of_a_table_is_refused_by_name(tmp_path: Path) -> None:
    rows = [HALVES[0][0].tolist(), None, HALVES[0][2].tolist()]
    pq.write_table(pa.table({"image": ["a", "b", "c"], "vector": rows}), tmp_path / "t.parquet")
    pq.write_table(
        pa.table({"image": ["d"], "vector": pa.array([None], pa.list_(pa.float32()))}), tmp_path / "u.parquet"
    )
    for name in ("t", "u"):
        cache = take(tmp_path / f"{name}.parquet", tmp_path / "c")
    assert cache.image_rows(["a", "b", "c", "d"]).tolist() == [0, -1, 1, -1]
    assert {row["key"]: row["reason"] for row in cache.failures().to_pylist()} == dict.fromkeys("bd", adopt.NOT_FINITE)


def test_a_table_is_taken_in_blocks_each_known_by_where_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "BLOCK_ROWS", 15)
    rows = HALVES[0].astype(np.float32)
    rows[33] = np.inf
    names = [f"p{i}" for i in range(40)]
    pq.write_table(pa.table({"image": names, "vector": rows.tolist()}), tmp_path / "t.parquet")
    first = folder_bytes(take(tmp_path / "t.parquet", tmp_path / "c").path)
    cache = take(tmp_path / "t.parquet", tmp_path / "c")
    assert folder_bytes(cache.path) == first and len(cache.adopted) == 3
    np.testing.assert_array_equal(cache.image_embeddings(), np.delete(HALVES[0], 33, axis=0))
    assert cache.image_rows(names).tolist() == [*range(33), -1, *range(33, 39)]
    assert cache.failures()["detail"].to_pylist() == [f"{tmp_path / 't.parquet'} row 33"]


def test_another_length_is_an_error_until_it_is_to_be_mended(tmp_path: Path) -> None:
    longer = np.concatenate([unit(3), 5 * unit(2, seed=1)])
    folder = clip_retrieval(tmp_path / "f", [HALVES[0], longer.astype(np.float16)])
    with pytest.raises(
        InputError, match=r"img_emb_1.npy: 2 vectors .* the first 5.0.* in row 3 .*, p43; say --normalize"
    ):
        take(folder, tmp_path / "c")
    assert Cache.open(tmp_path / "c").count("images") == 40, "what was good stays"
    cache = take(folder, tmp_path / "c", normalize=True)
    assert [entry["linked"] for _, entry in sorted(cache.adopted.items())] == [True, False]
    expected = longer / np.linalg.norm(longer, axis=1, keepdims=True)
    np.testing.assert_allclose(cache.image_embeddings()[40:].astype(float), expected, atol=2e-3)


def test_a_second_run_adds_what_is_new_and_a_killed_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = HALVES[2].copy()
    bad[0] = np.nan
    folder = clip_retrieval(tmp_path / "f", [*HALVES[:2], bad], HALVES)
    whole = folder_bytes(take(folder, tmp_path / "whole").path)
    assert folder_bytes(take(folder, tmp_path / "whole").path) == whole
    calls, actual = [], CacheWriter.commit

    def killed(writer: CacheWriter, **fields: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        actual(writer, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(CacheWriter, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        take(folder, tmp_path / "killed")
    assert Cache.open(tmp_path / "killed").count("prompts") == 0
    assert folder_bytes(take(folder, tmp_path / "killed").path) == whole


def test_equal_vectors_are_one_picture(tmp_path: Path) -> None:
    twice = HALVES[0].copy()
    twice[9] = twice[4]
    cache = take(clip_retrieval(tmp_path / "f", [twice]), tmp_path / "c")
    assert cache.image_rows(["p4", "p9"]).tolist() == [4, 4] and len(set(cache.keys()["image_id"].to_pylist())) == 39
    merged = merge_caches([cache.path], tmp_path / "m")
    assert merged["images"] == 39 and Cache.open(tmp_path / "m").image_rows(["p4", "p9"]).tolist() == [4, 4]


@pytest.mark.parametrize("symbolic", [False, True])
def test_a_linked_file_that_changed_is_refused(tmp_path: Path, symbolic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    if symbolic:
        monkeypatch.setattr(os, "link", refuse)
    folder = clip_retrieval(tmp_path / "f", HALVES[:1])
    take(folder, tmp_path / "c")
    file, shard = folder / "img_emb" / "img_emb_0.npy", tmp_path / "c" / "images" / "img_emb" / "img_emb_0000.npy"
    assert shard.is_symlink() == symbolic
    shutil.copytree(tmp_path / "c", tmp_path / "copy")  # has files of its own, of another time
    Cache.open(tmp_path / "copy")
    os.utime(file, ns=(1, 1))
    Cache.open(tmp_path / "c")
    with open(file, "r+b") as opened:  # in place
        opened.seek(-2, os.SEEK_END)
        opened.write(b"\0\0")
    with pytest.raises(InputError, match=r"links to the vectors in .*img_emb_0.npy, and that file has changed"):
        Cache.open(tmp_path / "c")
    Cache.open(tmp_path / "copy")
    shard.unlink()
    with pytest.raises(InputError, match="is gone; put it back"):
        Cache.open(tmp_path / "c")


def test_an_identity_is_what_is_declared_and_what_is_not_is_unknown(tmp_path: Path) -> None:
    identity, source = read_identity(declare(tmp_path))
    assert identity.to_json() == {
        **DECLARED,
        **{"preprocess": None, "activation": "unknown", "tokenizer": "unknown", "context_length": 0, "pipeline": 0},
    }
    assert source.is_adopted and source.model == "acme-clip"
    assert type(identity).from_json(json.loads(json.dumps(identity.to_json()))) == identity
    more = {**DECLARED, "preprocess": IDENTITY.to_json()["preprocess"], "tokenizer": "words", "context_length": 64}
    known, _ = read_identity(declare(tmp_path, **more))
    assert known.preprocess == IDENTITY.preprocess and known.tokenizer == "words"
    assert len(identity.differences(known)) == 3, "what is unknown equals nothing that is known"
    with pytest.raises(InputError, match="it was not declared how acme-clip prepares pictures"):
        identity.preprocess  # noqa: B018


def test_the_example_of_an_identity_is_one() -> None:
    identity, _ = read_identity(ROOT / "examples" / "identity.json")
    assert identity.preprocess.size == (224, 224) and identity.tokenizer == "unknown" and identity.dim == 512


def test_vectors_of_a_backbone_of_ours_take_its_identity_from_a_manifest(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "ours", IDENTITY, SOURCE):
        pass
    assert read_identity(tmp_path / "ours" / "manifest.json") == (IDENTITY, Source("fake"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": None}, r"identity.json: the identity's fields \['weights'\] are missing; wanted model"),
        ({"wieghts": "1"}, r"fields \['wieghts'\] are unknown; wanted model, weights and dim"),
        ({"weights": "unknown"}, "the identity's weights is 'unknown'; wanted a text"),
        ({"model": 3}, "the identity's model is 3"),
        ({"dim": "8"}, "the identity's dim is '8'; wanted the number of values"),
        ({"dim": True}, "the identity's dim is True"),
        ({"preprocess": "bicubic"}, "field of the wrong kind .preprocess is 'bicubic'"),
        ({"preprocess": {"size": 8}}, "Preprocess: fields .* are missing"),
    ],
)
def test_an_identity_that_says_too_little_is_refused(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_identity(declare(tmp_path, **fields))


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00"])
def test_what_is_no_identity_is_shown_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "identity.json").write_text(text)
    with pytest.raises(InputError, match=r'wanted JSON such as \{"model": "acme-clip"'):
        read_identity(tmp_path / "identity.json")


def test_vectors_of_two_identities_never_meet(tmp_path: Path) -> None:
    folder = clip_retrieval(tmp_path / "f", HALVES[:1])
    take(folder, tmp_path / "c")
    before = folder_bytes(tmp_path / "c")
    with pytest.raises(IdentityMismatch, match="weights: 2024-05 / 2024-06"):
        take(folder, tmp_path / "c", declare(tmp_path, weights="2024-06"))
    assert folder_bytes(tmp_path / "c") == before
    with pytest.raises(InputError, match="has vectors of 8 numbers; the identity's dim is 9"):
        take(folder, tmp_path / "d", declare(tmp_path, dim=9))
