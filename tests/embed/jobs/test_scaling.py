"""The scale at which a job decodes large JPEGs: the least that keeps the cosine, noted in the cache and kept to."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import embed_tiny
import numpy as np
import pytest
from embed_fakes import SOURCE, Table, interrupted_at_commit, unit
from embed_image_files import encoded, picture

from embed.backbones import load
from embed.cache.store import Cache, CacheWriter, DecodingEntry
from embed.cli.main import main
from embed.inputs.decoding import Chunk, DecodePool, decode
from embed.inputs.images import Limits, load_pixels, load_scaled
from embed.jobs import build, scaling
from embed.jobs.merge import merge_caches
from embed.jobs.scaling import EXACT, choose_decoding, kept_decoding, with_decoding
from embed.spec import Identity, InputError, Preprocess

SPEC = Preprocess((32, 32), "squash", "bicubic", (0.0,) * 3, (1.0,) * 3)
IDENTITY = Identity("fake", "0" * 64, SPEC, "none", "letters", 16, 3072)


def large(seed: int, format: str = "JPEG") -> bytes:
    return encoded(picture(301, 291, seed), format, quality=95)


class Flat:
    """A picture's vector is its pixels."""

    features, batch_size = ("projected",), 5

    def __init__(self) -> None:
        self.most = 0

    def images(self, pixels: np.ndarray) -> list[np.ndarray]:
        self.most = max(self.most, len(pixels))
        return [unit(pixels.reshape(len(pixels), -1).astype(np.float64))]

    def prompts(self, prompts: Sequence[str]) -> tuple[np.ndarray, int]:
        raise NotImplementedError


class Pool(DecodePool):
    """Decodes in this process."""

    def __init__(self) -> None:
        self.scale = None
        self.decoded = 0

    def run(self, chunks: Iterable[Chunk]) -> Any:
        for chunk in chunks:
            for one in chunk.work():
                self.decoded += 1
                decode(one, SPEC, Limits(), self.scale)
            yield chunk


def cosine(data: bytes, scale: int) -> float:
    exact, ours = load_pixels(data, SPEC)[0].ravel().astype(float), load_scaled(data, SPEC, scale=scale)[0].ravel()
    return float(exact @ ours / np.linalg.norm(exact) / np.linalg.norm(ours.astype(float)))


def choose(tmp_path: Path, pictures: Sequence[bytes], least: float, required: bool = False) -> DecodingEntry:
    table = Table([(str(i), data) for i, data in enumerate(pictures)])
    with CacheWriter(tmp_path / "c", IDENTITY, SOURCE) as writer:
        return choose_decoding([table], writer.cache(), Pool(), Flat(), required, least)


def test_the_least_scale_that_passes_is_taken_with_its_certificate(tmp_path: Path) -> None:
    pictures = [large(i) for i in range(7)]
    at = {scale: [cosine(data, scale) for data in pictures] for scale in (2, 3, 4)}
    assert min(at[2]) < min(at[4]) < 1
    for scale, least in ((2, 0.5), (2, min(at[2]) - 1e-6), (4, min(at[2]) + 1e-6), (4, min(at[4]) - 1e-6)):
        found = choose(tmp_path, [*pictures, large(1, "PNG"), b"broken"], least)
        scale = 3 if scale == 4 and min(at[3]) >= least else scale
        assert found["scale"] == scale and found["rows"] == 7 and found["pictures"] == 0
        assert found["cosine_min"] == pytest.approx(min(at[scale]), abs=2e-6) and found["cosine_min"] >= least - 1e-6
        assert found["cosine_mean"] == pytest.approx(np.mean(at[scale]), abs=2e-6)


def test_pictures_that_a_scale_leaves_as_they_are_prove_nothing_of_it(tmp_path: Path) -> None:
    between = encoded(picture(140, 131, 9), "JPEG", quality=95)  # large at twice the 32 pixels, at half its size
    least = max(cosine(large(0), 2), cosine(between, 2)) + 1e-6
    found = choose(tmp_path, [large(0), between], least)
    assert found["scale"] in (3, 4) and found["rows"] == 1


def test_what_cannot_be_scaled_is_exact_or_an_error_where_it_is_required(tmp_path: Path) -> None:
    assert choose(tmp_path, [large(0)], 1.0) == EXACT
    with pytest.raises(InputError, match=r"cosine of 1.0 .*at 2: 0\.9.*at 4: 0\.9.*--decoding exact"):
        choose(tmp_path, [large(0)], 1.0, required=True)
    small = [large(i, "PNG") for i in range(3)] + [encoded(picture(127, 120), "JPEG")]
    assert choose(tmp_path, small, 0.5) == choose(tmp_path, small, 0.5, required=True) == EXACT


def test_large_pictures_are_looked_for_among_the_first_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [encoded(picture(40, 40, seed), "JPEG") for seed in range(64)]
    assert choose(tmp_path, [*small, large(0)], 0.5) == EXACT
    assert choose(tmp_path, [*small, large(0)], 0.5, required=True)["rows"] == 1
    assert choose(tmp_path, [large(0), *small, large(1)], 0.5)["rows"] == 2
    monkeypatch.setattr(scaling, "CERTIFIED", 4)
    assert choose(tmp_path, [large(i) for i in range(6)], 0.5)["rows"] == 4


def test_a_cache_keeps_to_what_it_has(tmp_path: Path) -> None:
    note: DecodingEntry = {"scale": 2, "rows": 9, "cosine_mean": 0.9999, "cosine_min": 0.9995, "pictures": 3}

    class Holding(Cache):
        def __init__(self, *notes: DecodingEntry, count: int = 1) -> None:
            self.manifest = {"decoding": list(notes)} if notes else {}  # type: ignore[typeddict-item]
            self.count = lambda side: count  # type: ignore[method-assign]

    new, old, scaled = Holding(count=0), Holding(), Holding(note)
    assert kept_decoding(new, "auto", 0.999) is None and kept_decoding(old, "auto", 0.999) == EXACT
    assert kept_decoding(scaled, "auto", 0.999) == note and kept_decoding(scaled, "auto", 0.9999) is None
    assert kept_decoding(old, "scaled", 0.999) is None and kept_decoding(scaled, "scaled", 0.999) == note
    assert kept_decoding(scaled, "exact", 0.999) == EXACT
    assert with_decoding(old, EXACT) == [] and with_decoding(old, note) == [note] == with_decoding(scaled, note)
    assert with_decoding(scaled, EXACT) == [note, EXACT] == with_decoding(Holding(note, EXACT), EXACT)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of twelve large JPEGs and a small one, and the machine that embeds them with the tiny backbone."""
    monkeypatch.setattr(load, "load_backbone", embed_tiny.load_tiny)
    monkeypatch.setattr("embed.jobs.build.call_apart", embed_tiny.call_here)
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "machine"))
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        (tmp_path / "pictures" / f"{i:02}.jpg").write_bytes(encoded(picture(90 + i, 75, i), "JPEG"))
    (tmp_path / "pictures" / "small.jpg").write_bytes(encoded(picture(20, 20), "JPEG"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pictures"


def arguments(out: str, table: Path | str = "pictures") -> list[str]:
    return [str(table), "--model=tiny", f"--out={out}", "--device=cpu", "--workers=1", "--min-cosine=0.9"]


def embed(out: str, *options: str, table: Path | str = "pictures") -> list[DecodingEntry]:
    assert main(["cache", *arguments(out, table), *options]) == 0
    return Cache.open(out).decoding


def test_a_cache_says_how_its_pictures_were_decoded(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed("exact") == embed("auto", "--decoding=auto") == [], "too few to be worth a trial"
    (note,) = embed("c", "--decoding=scaled")
    assert (note["scale"], note["rows"], note["pictures"]) == (2, 12, 12) and 0.9 < note["cosine_min"] < 1
    assert "12 large pictures at 2 times the size wanted" in inspected("c", capsys)
    assert "decoding" not in json.loads(Path("exact", "manifest.json").read_text())
    assert not np.array_equal(Cache.open("c").image_embeddings()[:12], Cache.open("exact").image_embeddings()[:12])
    assert np.array_equal(Cache.open("c").image_embeddings()[12:], Cache.open("exact").image_embeddings()[12:])
    # The vectors are those that the same decoding gives now, and not exact ones.
    assert main(["verify", "c", "pictures", "--min-cosine=0.99999"]) == 0


def inspected(cache: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["inspect", cache]) == 0
    return capsys.readouterr().out


def test_auto_takes_what_passes_where_there_are_many(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TRIAL_RECORDS", 13)
    monkeypatch.setattr(build, "candidates", lambda wanted, device: [build.REFERENCE])
    assert [note["scale"] for note in embed("c")] == [2]
    assert embed("strict", "--min-cosine=1") == []


def test_more_pictures_are_decoded_as_the_cache_has_them(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (note,), _ = embed("c", "--decoding=scaled"), embed("old")
    more = tiny.parent / "more"
    more.mkdir()
    for i in range(3):
        (more / f"more{i}.jpg").write_bytes(encoded(picture(99, 80, 50 + i), "JPEG"))
    monkeypatch.setattr(build, "TRIAL_RECORDS", 1)
    monkeypatch.setattr(build, "candidates", lambda wanted, device: [build.REFERENCE])
    assert embed("c", table=more) == [{**note, "pictures": 15}]
    assert embed("old", table=more) == []
    (tiny / "last.jpg").write_bytes(encoded(picture(99, 80, 99), "JPEG"))
    assert embed("c", "--decoding=exact") == [{**note, "pictures": 15}, EXACT]
    assert Cache.open("c").scale is None


def test_a_killed_job_goes_on_with_the_scale_it_had(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--decoding=scaled", "--batch-size=2"]
    embed("whole", *options)
    monkeypatch.setattr("embed.jobs.run.SHARD_ROWS", 4)
    embed("parts", *options)
    with interrupted_at_commit():
        assert main(["cache", *arguments("killed"), *options]) != 0
    assert Cache.open("killed").decoding[0]["pictures"] == 4
    embed("killed", *options)
    files = sorted(path.relative_to("parts") for path in Path("parts").rglob("*") if path.is_file())
    assert files and all(Path("parts", f).read_bytes() == Path("killed", f).read_bytes() for f in files)
    assert Cache.open("killed").decoding == Cache.open("whole").decoding


def test_merged_caches_say_what_each_did(tiny: Path) -> None:
    (note,) = embed("c", "--decoding=scaled")
    other = tiny.parent / "other"
    other.mkdir()
    (other / "o.jpg").write_bytes(encoded(picture(99, 80, 77), "JPEG"))
    (second,) = embed("d", "--decoding=scaled", table=other)
    for _ in range(2):  # again, nothing is counted twice
        merge_caches([Path("c"), Path("d")], Path("m"))
        assert Cache.open("m").decoding == [note, second]
