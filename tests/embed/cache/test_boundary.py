"""Stored activations against those of the towers; parts, resumption, size and what storage costs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_folders import make_folder
from embed_fakes import InlinePool, Table, colors, folder_bytes, picture
from progress_told import Told

from embed.backbones.backbone import Backbone
from embed.backbones.load import load_backbone
from embed.cache import boundary as store
from embed.cache.boundary import Boundary, PartWriter, decode, encode, find_boundary
from embed.cache.store import METADATA, Cache, CacheWriter
from embed.cli.main import main
from embed.config import BoundaryConfig
from embed.files import content_id
from embed.inputs.decoding import Chunk, Picture
from embed.jobs.merge import merge_caches
from embed.jobs.run import _table, embed_images
from embed.modes import WHOLE, parse_mode
from embed.spec import InputError, Source
from embed.unfreeze.families import cut_pictures, cut_prompts
from embed.unfreeze.fill import _chunks, add_boundary, plan_boundary

MODE = parse_mode("blocks=1,1")
PROMPTS = ["red apple", "a", "a grinning face with ears", "two words", ""]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(Source(f"local-dir:{make_folder(tmp_path_factory.mktemp('model') / 'vit', 'vit')}"))


class Pool(InlinePool):
    """Pictures of one colour, without decoding: pixels and id from the bytes."""

    def __init__(self, size: tuple[int, int], stop_after: int | None = None) -> None:
        self.size, self.stop_after = size, stop_after

    def run(self, chunks: Any) -> Any:
        for i, chunk in enumerate(chunks):
            if self.stop_after is not None and i >= self.stop_after:
                raise KeyboardInterrupt
            for one in chunk.pictures:
                seed = int(content_id(one.data)[:8], 16)
                one.id = content_id(one.data)
                one.pixels = np.random.default_rng(seed).integers(0, 256, (*self.size, 3), dtype=np.uint8)
            yield chunk


class Ones:
    features, batch_size = ("projected",), 8

    def images(self, pixels: np.ndarray) -> list[np.ndarray]:
        return [np.eye(32, dtype=np.float32)[[0] * len(pixels)]]

    def prompts(self, prompts: Any) -> tuple[np.ndarray, int]:
        raise NotImplementedError


def table(n: int = 70, part: slice = slice(None)) -> Table:
    return Table([(f"p{i}.png", picture(color)) for i, color in enumerate(colors(n))][part], PROMPTS[part])


def fill(path: Path, backbone: Backbone, n: int = 70, part: slice = slice(None)) -> Cache:
    """A cache with the table's pictures and prompts, whose vectors mean nothing."""
    size = backbone.identity.preprocess.size
    with CacheWriter(path, backbone.identity, backbone.source) as writer:
        embed_images([table(n, part)], writer, Ones(), Pool(size))
        rows = [(text, content_id(text.encode())) for text in PROMPTS[part]]
        if not writer.cache().count("prompts"):
            writer.append("prompts", _table(rows, METADATA["prompts"]), text_emb=np.zeros((len(rows), 32), np.float16))
        writer.commit()
        return writer.cache()


def extend(path: Path, backbone: Backbone, config: BoundaryConfig, pool: Pool | None = None, n: int = 70) -> Any:
    with CacheWriter(path, backbone.identity, backbone.source) as writer:
        work = plan_boundary(writer, backbone, config)
        pool = pool or Pool(backbone.identity.preprocess.size)
        return add_boundary(writer, [table(n)], work, pool, config)


def exact(backbone: Backbone, n: int = 70) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """fp32 activations of pictures, of prompts, and the prompts' lengths."""
    pool, preprocess = Pool(backbone.identity.preprocess.size), backbone.identity.preprocess
    chunk = Chunk([Picture(row["key"], None, row["bytes"]) for batch in table(n).images() for row in batch.to_pylist()])
    pixels = np.stack([one.pixels for one in next(pool.run([chunk])).pictures])
    tokens = torch.from_numpy(backbone.tokenize(PROMPTS))
    with torch.no_grad():
        pictures = cut_pictures(backbone.model.visual, 1, preprocess).below(torch.from_numpy(pixels))[0]
        texts, lengths = cut_prompts(backbone.model.text, 1).below(tokens)
    assert lengths is not None
    return pictures, texts, lengths


@pytest.mark.parametrize("dtype, error", [("float32", 0), ("float16", 2e-3), ("bfloat16", 2e-2), ("int8", 5e-2)])
def test_what_was_stored_is_what_the_tower_computes(
    dtype: str, error: float, tmp_path: Path, backbone: Backbone
) -> None:
    fill(tmp_path / "cache", backbone)
    done = extend(tmp_path / "cache", backbone, BoundaryConfig(MODE, dtype))
    pictures, texts, lengths = exact(backbone)
    cache = Cache.open(tmp_path / "cache")
    rows = np.random.default_rng(0).permutation(70)[:40]
    values, none = Boundary(cache, "images", 1, dtype).take(rows)
    assert none is None and values.dtype == torch.float32
    torch.testing.assert_close(values, pictures[rows], rtol=error, atol=error)
    order = np.array([3, 0, 2])
    values, found = Boundary(cache, "prompts", 1, dtype).take(order)
    assert found is not None and found.tolist() == lengths[order].tolist()
    for i, row in enumerate(order):
        torch.testing.assert_close(values[i, : found[i]], texts[row, : found[i]], rtol=error, atol=error)
        assert not values[i, found[i] :].any()
    # The size was told before, exactly, and what the storage costs is measured.
    for side in ("images", "prompts"):
        stored = sum(array.nbytes for name in ("values", "scales") for array in
                     store._maps(cache.files(side, f"boundary_1_{dtype}"), name))  # fmt: skip
        assert done[side]["size_bytes"] == stored
        assert 1 - 0.01 * error - 1e-6 <= done[side]["certificate"]["cosine_min"] <= 1 + 1e-6
        assert (done[side]["certificate"]["max_difference"] > 0) == (dtype != "float32")


def activations(cache: Cache, side: str, keys: list[str], dtype: str) -> Any:
    """What the cache has of those names, and the lengths of prompts."""
    rows = cache.image_rows(keys) if side == "images" else cache.prompt_rows(keys)
    return Boundary(cache, side, 1, dtype).take(rows)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_merged_caches_keep_what_all_of_them_have(
    dtype: str, tmp_path: Path, backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {"a": slice(0, 4), "b": slice(None, 1, -1)}
    for name, part in parts.items():
        fill(tmp_path / name, backbone, 7, part)
        extend(tmp_path / name, backbone, BoundaryConfig(MODE, dtype), n=7)
    inputs, out, told = [tmp_path / "b", tmp_path / "a"], tmp_path / "ba", Told()
    merge_caches(inputs, out, told)
    assert told.works["merging"].whole()
    merged = Cache.open(out)
    for side, keys in (("images", [f"p{i}.png" for i in range(7)]), ("prompts", PROMPTS)):
        assert merged.count(side) == len(keys)
        # What both have comes from the first: in a batch of others the same picture's activations differ by rounding.
        for path, some in ((inputs[0], keys[2:]), (inputs[1], keys[:2])):
            values, lengths = activations(Cache.open(path), side, some, dtype)
            found, of_found = activations(merged, side, some, dtype)
            assert torch.equal(found, values)
            assert lengths is None or torch.equal(of_found, lengths)
        worst = min(Cache.open(path).boundaries[f"{side}/boundary_1_{dtype}"]["certificate"]["cosine_min"]
                    for path in inputs)  # fmt: skip
        assert merged.boundaries[f"{side}/boundary_1_{dtype}"]["certificate"]["cosine_min"] == worst
    before = folder_bytes(out)
    merge_caches(inputs, out)
    assert folder_bytes(out) == before and not caplog.messages
    fill(tmp_path / "bare", backbone, 7)
    merge_caches([*inputs, tmp_path / "bare"], tmp_path / "mixed")
    assert not Cache.open(tmp_path / "mixed").boundaries
    assert caplog.messages == [
        f"{side}/boundary_1_{dtype} is left out, because it is not in {tmp_path / 'bare'}"
        for side in ("images", "prompts")
    ]


def test_int8_scales_each_token() -> None:
    values = torch.tensor([[[1.0, -127.0], [0.001, 0.0005], [0.0, 0.0]]])
    stored, scales = encode(values, "int8")
    assert scales is not None and stored.tolist() == [[[1, -127], [127, 64], [0, 0]]]
    again = decode(stored, scales, "int8")
    assert (again - values).abs().amax() <= 0.5 * scales.max()
    torch.testing.assert_close(again[0, 1], values[0, 1], rtol=0.01, atol=0)
    with pytest.raises(InputError, match="too large for float16; choose --boundary-dtype bfloat16"):
        encode(torch.tensor([[1e6]]), "float16")


def test_killed_and_run_again_gives_the_same_bytes(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PartWriter, "PART_ROWS", 16)
    config = BoundaryConfig(MODE, batch_size=8)
    for name in ("whole", "killed"):
        fill(tmp_path / name, backbone)
    extend(tmp_path / "whole", backbone, config)
    size = backbone.identity.preprocess.size
    with pytest.raises(KeyboardInterrupt):
        extend(tmp_path / "killed", backbone, config, Pool(size, stop_after=1))
    assert 0 < Boundary(Cache.open(tmp_path / "killed"), "images", 1, "float16").parts < 5
    done = extend(tmp_path / "killed", backbone, config)
    assert done["images"]["rows"] == 70 - 32 and done["images"]["missing"] == 0
    whole, killed = folder_bytes(tmp_path / "whole"), folder_bytes(tmp_path / "killed")
    arrays = [name for name in whole if "boundary" in name]
    assert len(arrays) == 2 * 5 + 2 and {n: whole[n] for n in arrays} == {n: killed[n] for n in arrays}


def test_a_cache_that_grew_is_extended_by_what_is_new(tmp_path: Path, backbone: Backbone) -> None:
    fill(tmp_path / "cache", backbone, 30)
    config = BoundaryConfig(MODE, "float32")
    extend(tmp_path / "cache", backbone, config, n=30)
    fill(tmp_path / "cache", backbone, 70)
    done = extend(tmp_path / "cache", backbone, config)
    assert done["images"]["rows"] == 40 and done["prompts"]["rows"] == 0
    values, _ = Boundary(Cache.open(tmp_path / "cache"), "images", 1, "float32").take(np.arange(70))
    torch.testing.assert_close(values, exact(backbone)[0])


def test_tables_are_read_no_further_than_the_last_picture_that_lacks_activations() -> None:
    read: list[int] = []

    class Noting(Table):
        def images(self) -> Any:
            for batch in super().images():  # of 100
                read.append(len(batch))
                yield batch

    one, other = (Noting([(f"p{i}.png", b"x") for i in range(250)]) for _ in range(2))
    for wanted, batches in ({}, 0), ({"p0.png": "a"}, 1), ({"p0.png": "a", "p120.png": "b"}, 2), ({"gone": "c"}, 6):
        read.clear()
        found = [picture.key for chunk in _chunks([one, other], wanted) for picture in chunk.pictures]
        assert found == [key for key in wanted if key != "gone"] and len(read) == batches


def test_pictures_that_are_not_there_are_counted_and_refused_later(tmp_path: Path, backbone: Backbone) -> None:
    fill(tmp_path / "cache", backbone)
    done = extend(tmp_path / "cache", backbone, BoundaryConfig(MODE), n=60)
    assert done["images"]["missing"] == 10
    with pytest.raises(InputError, match="10 of the rows asked for have no activations in images/boundary_1_float16"):
        Boundary(Cache.open(tmp_path / "cache"), "images", 1, "float16").take(np.arange(70))


def test_too_large_a_boundary_is_refused_before_any_work(tmp_path: Path, backbone: Backbone) -> None:
    fill(tmp_path / "cache", backbone)
    with pytest.raises(InputError, match=r"would take 0\.00 GB, but --max-gb is 1e-06"):
        extend(tmp_path / "cache", backbone, BoundaryConfig(MODE, max_bytes=1000))
    assert "boundary" not in Cache.open(tmp_path / "cache").manifest
    with pytest.raises(InputError, match="dtype is 'int4'; wanted float16, bfloat16, int8 or float32"):
        BoundaryConfig(MODE, "int4")


def test_whole_towers_keep_pixels_and_the_shallowest_fit_is_found(tmp_path: Path, backbone: Backbone) -> None:
    cache = fill(tmp_path / "cache", backbone)
    assert find_boundary(cache, "images", 1) is None
    extend(tmp_path / "cache", backbone, BoundaryConfig(parse_mode("all")))
    cache = Cache.open(tmp_path / "cache")
    pixels, _ = Boundary(cache, "images", WHOLE, "uint8").take(np.array([5]))
    assert pixels.dtype == torch.uint8 and pixels.shape == (1, *backbone.identity.preprocess.size, 3)
    found = find_boundary(cache, "images", 1)
    assert found is not None and found.depth == WHOLE and find_boundary(cache, "prompts", WHOLE) is None
    for config in (BoundaryConfig(parse_mode("blocks=2,2")), BoundaryConfig(MODE), BoundaryConfig(MODE, "int8")):
        extend(tmp_path / "cache", backbone, config)
    cache = Cache.open(tmp_path / "cache")
    names = [boundary.name for depth in (1, 2) if (boundary := find_boundary(cache, "images", depth))]
    assert names == ["images/boundary_1_float16", "images/boundary_2_float16"]


def test_the_command_embeds_and_extends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "machine"))
    make_folder(tmp_path / "vit", "vit")
    (tmp_path / "pictures").mkdir()
    for i, color in enumerate(colors(3)):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(picture(color))
        (tmp_path / "pictures" / f"{i}.txt").write_text(f"prompt {i}")
    argv = ["cache", str(tmp_path / "pictures"), "--model", f"local-dir:{tmp_path / 'vit'}",
            "--out", str(tmp_path / "cache"), "--workers", "1", "--json"]  # fmt: skip
    assert main(argv) == 0
    capsys.readouterr()
    assert main([*argv, "--boundary", "blocks=1,1"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert result["images"]["embedded"] == 0 and result["boundary"]["images"]["rows"] == 3
    assert "images: 3 rows to add, 0.000 GB of float16" in shown.err
    # The blocks above, on what was stored, give the vectors that the cache has.
    cache = Cache.open(tmp_path / "cache")
    model = load_backbone(cache.source)
    values, _ = Boundary(cache, "images", 1, "float16").take(np.arange(3))
    with torch.no_grad():
        vectors = cut_pictures(model.model.visual, 1, model.identity.preprocess).above(values)[1]
    cosine = (torch.nn.functional.normalize(vectors) * torch.from_numpy(cache.image_embeddings()).float()).sum(1)
    assert float(cosine.min()) > 0.9999
    assert main([*argv, "--boundary", "visual_last_layers"]) == 2
    assert "near names: visual_last_layer" in capsys.readouterr().err
