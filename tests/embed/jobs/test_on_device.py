"""Pictures decoded on a device, here the CPU: plain JPEGs alone, all else as ever, and the cache says so."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
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
from embed.engines.nvjpeg import installed_library
from embed.files import content_id
from embed.inputs.decoding import Chunk, DecodePool, Picture, decode
from embed.inputs.images import Limits, load_pixels
from embed.jobs import build, on_device
from embed.jobs.on_device import DeviceDecoder
from embed.jobs.scaling import EXACT, choose_device, kept_decoding
from embed.spec import Identity, InputError, Preprocess

SPEC = Preprocess((32, 32), "squash", "bicubic", (0.0,) * 3, (1.0,) * 3)
IDENTITY = Identity("fake", "0" * 64, SPEC, "none", "letters", 16, 3072)
LIMITS = Limits(max_bytes=100_000)


class Pool(DecodePool):
    """Decodes in this process."""

    def __init__(self) -> None:
        self.scale, self.decoded, self.closed = None, [], False

    def run(self, chunks: Iterable[Chunk]) -> Any:
        for chunk in chunks:
            for one in chunk.work():
                self.decoded.append(one.key)
                decode(one, SPEC, LIMITS, self.scale)
            yield chunk

    def close(self) -> None:
        self.closed = True


def on_cpu(pool: DecodePool) -> DeviceDecoder:
    return DeviceDecoder(pool, SPEC, LIMITS, "cpu", 2)


def jpeg(seed: int, **options: Any) -> bytes:
    return encoded(picture(99 - seed, 71 + seed, seed), "JPEG", **options)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    """One of every kind that a job meets, plain ones first."""
    plain = {f"plain{i}": jpeg(i, comment=b"x" * i) for i in range(9)}
    others = {
        "png": encoded(picture(40, 30), "PNG"),
        "progressive": jpeg(10, progressive=True),
        "cut short": jpeg(11)[:-30],
        "nonsense": b"nonsense",
        "too large": jpeg(12) + bytes(100_000),
    }
    found = []
    for i, (key, data) in enumerate({**plain, **others}.items()):
        if i % 3 == 0:  # in a table
            found.append(Picture(key, None, data, id=content_id(data)))
            continue
        path = tmp_path / key
        path.write_bytes(data)
        found.append(
            Picture(key, str(path), None, path.stat().st_size, path.stat().st_mtime_ns if i % 3 == 1 else None)
        )
    known = Picture("known", None, jpeg(13), known=True)
    return [*found, Picture("missing", str(tmp_path / "missing")), Picture("neither", None), known]


def outcomes(decoder: DecodePool | DeviceDecoder, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    copies = [replace(one) for one in pictures]
    chunks = [Chunk(copies[i : i + 4]) for i in range(0, len(copies), 4)]
    assert list(decoder.run(chunks)) == chunks
    return [{**one.outcome(), "data": one.data, "pixels": one.pixels} for one in copies]


def test_the_device_takes_plain_jpegs_and_all_else_is_as_ever(pictures: list[Picture]) -> None:
    pool, alone = Pool(), Pool()
    ours, theirs = outcomes(on_cpu(pool), pictures), outcomes(alone, pictures)
    assert pool.decoded == [one.key for one in pictures[9:-1]] and len(alone.decoded) == len(pictures) - 1
    for one, other in zip(ours[:9], theirs[:9], strict=True):
        assert np.abs(one.pop("pixels").astype(int) - other.pop("pixels")).max() <= 1
        assert one == {**other, "scaled": True}
    for one, other in zip(ours[9:], theirs[9:], strict=True):
        assert np.array_equal(one.pop("pixels"), other.pop("pixels")) and one == other


def test_where_the_device_fails_the_pool_decodes(pictures: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("nvjpegDecode failed: 5")

    monkeypatch.setattr(on_device, "decode_jpegs", fail)
    for one, other in zip(outcomes(on_cpu(Pool()), pictures), outcomes(Pool(), pictures), strict=True):
        assert np.array_equal(one.pop("pixels"), other.pop("pixels")) and one == other


def test_a_closed_decoder_ends(pictures: list[Picture]) -> None:
    pool = Pool()
    decoder = on_cpu(pool)
    found = decoder.run(iter(Chunk([replace(pictures[0])]) for _ in range(100)))
    next(found)
    decoder.close()
    assert len(list(found)) <= 1 and pool.closed


class Flat:
    """A picture's vector is its pixels."""

    features, batch_size = ("projected",), 5

    def images(self, pixels: np.ndarray) -> list[np.ndarray]:
        return [unit(pixels.reshape(len(pixels), -1).astype(np.float64))]

    def prompts(self, prompts: Sequence[str]) -> tuple[np.ndarray, int]:
        raise NotImplementedError


def darker(data: Sequence[bytes], *_: object) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """A decoder that is far off."""
    exact = [load_pixels(one, SPEC) for one in data]
    return np.stack([np.minimum(pixels, 100) for pixels, _ in exact]), [size for _, size in exact]


def test_the_certificate_is_of_the_first_pictures_that_the_device_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [jpeg(i) for i in range(7)]
    table = Table([("png", encoded(picture(50, 50), "PNG")), *((str(i), data) for i, data in enumerate(files))])

    def choose(least: float) -> DecodingEntry:
        with CacheWriter(tmp_path / "c", IDENTITY, SOURCE) as writer:
            pool = Pool()
            return choose_device([table], writer.cache(), pool, on_cpu(pool), Flat(), least)

    monkeypatch.setattr(on_device, "decode_jpegs", darker)
    exact = np.stack([load_pixels(data, SPEC)[0] for data in files]).reshape(7, -1).astype(float)
    off = np.minimum(exact, 100)
    cosine = (exact * off).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(off, axis=1)
    found = choose(float(cosine.min()) - 1e-5)
    assert (found["decoder"], found["rows"], found["pictures"]) == ("device", 7, 0)
    assert found["cosine_min"] == pytest.approx(cosine.min(), abs=2e-6)
    assert found["cosine_mean"] == pytest.approx(cosine.mean(), abs=2e-6)
    with pytest.raises(InputError, match=r"measured 0\.9\d+ on 7.*--decoding exact"):
        choose(float(cosine.min()) + 1e-5)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of twelve JPEGs and a PNG, and the machine that embeds them with the tiny backbone on a CPU that
    decodes."""
    monkeypatch.setattr(load, "load_backbone", embed_tiny.load_tiny)
    monkeypatch.setattr("embed.jobs.build.call_apart", embed_tiny.call_here)
    monkeypatch.setattr(build, "KINDS", ("cpu",))
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "machine"))
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        (tmp_path / "pictures" / f"{i:02}.jpg").write_bytes(encoded(picture(90 + i, 75, i), "JPEG"))
    (tmp_path / "pictures" / "last.png").write_bytes(encoded(picture(20, 20), "PNG"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pictures"


def arguments(out: str, *options: str) -> list[str]:
    return ["cache", "pictures", "--model=tiny", f"--out={out}", "--device=cpu", "--workers=1", *options]


def embed(out: str, *options: str) -> list[DecodingEntry]:
    assert main(arguments(out, "--min-cosine=0.99", *options)) == 0
    return Cache.open(out).decoding


def test_a_cache_says_what_was_decoded_on_a_device(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (note,) = embed("c", "--decoding=device")
    assert (note["decoder"], note["scale"], note["rows"], note["pictures"]) == ("device", None, 12, 12)
    library = note["library"]
    assert library == installed_library()
    assert Cache.open("c").scale is None and embed("exact") == []
    off = Cache.open("c").image_embeddings() - Cache.open("exact").image_embeddings().astype(float)
    assert np.abs(off[:12]).max() < 0.01 and not off[12:].any()
    capsys.readouterr()
    assert main(["inspect", "c"]) == 0
    assert f"12 JPEGs on a device by {library}: cosine to exact at least 0.9" in capsys.readouterr().out
    assert main(["verify", "c", "pictures", "--min-cosine=0.999"]) == 0


def test_a_cache_keeps_to_the_device_which_auto_never_takes_by_itself(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert embed("few") == []
    monkeypatch.setattr(build, "TRIAL_RECORDS", 1)
    monkeypatch.setattr(build, "candidates", lambda wanted, device: [build.REFERENCE])
    assert not any("decoder" in note for note in embed("many"))
    (note,) = embed("c", "--decoding=device")
    (tiny / "more.jpg").write_bytes(encoded(picture(99, 80, 99), "JPEG"))
    assert embed("c") == [{**note, "pictures": 13}]
    (tiny / "most.jpg").write_bytes(encoded(picture(99, 80, 98), "JPEG"))
    monkeypatch.setattr(build, "KINDS", ("cuda",))
    assert embed("c") == [{**note, "pictures": 13}, EXACT], "a machine without a device goes on exactly"
    scaled = Cache.open("c")
    assert kept_decoding(scaled, "device", 0.9) is None and kept_decoding(scaled, "scaled", 0.9) is None


def test_a_cache_of_another_library_is_measured_anew_or_continued_exactly(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_device, "installed_library", lambda: "torchvision")
    embed("c", "--decoding=device")
    manifest = json.loads(Path("c/manifest.json").read_text())
    del manifest["decoding"][0]["library"]  # as it was when torchvision was the only one
    Path("c/manifest.json").write_text(json.dumps(manifest))
    (tiny / "more.jpg").write_bytes(encoded(picture(99, 80, 99), "JPEG"))
    assert [one["pictures"] for one in embed("c")] == [13]
    monkeypatch.setattr(on_device, "installed_library", lambda: "nvimgcodec")
    (tiny / "most.jpg").write_bytes(encoded(picture(99, 80, 98), "JPEG"))
    assert embed("c")[1:] == [EXACT]
    (tiny / "last.jpg").write_bytes(encoded(picture(99, 80, 97), "JPEG"))
    last = embed("c", "--decoding=device")[-1]
    assert (last["library"], last["rows"], last["pictures"]) == ("nvimgcodec", 1, 1)


def test_what_cannot_be_done_is_an_error_before_anything_is_loaded(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments("ray", "--decoding=device", "--engine=ray")) == 2
    monkeypatch.setattr(build, "KINDS", ("cuda",))
    assert main(arguments("c", "--decoding=device")) == 2
    said = capsys.readouterr().err
    assert "embeds in a Ray cluster" in said and "embeds on cpu; ask for --decoding exact or scaled" in said
    assert not Path("c").exists()


def test_a_killed_job_goes_on_with_the_device(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--decoding=device", "--batch-size=2"]
    monkeypatch.setattr("embed.jobs.run.SHARD_ROWS", 4)
    embed("parts", *options)
    with interrupted_at_commit():
        assert main(arguments("killed", "--min-cosine=0.99", *options)) != 0
    assert Cache.open("killed").decoding[0]["pictures"] == 4
    embed("killed", *options)
    files = sorted(path.relative_to("parts") for path in Path("parts").rglob("*") if path.is_file())
    assert files and all(Path("parts", f).read_bytes() == Path("killed", f).read_bytes() for f in files)
    assert json.loads(Path("killed", "manifest.json").read_text())["decoding"][0]["decoder"] == "device"
