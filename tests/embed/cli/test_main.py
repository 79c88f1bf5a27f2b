import json
from pathlib import Path
from typing import IO

import embed_tiny
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_fakes import colors, folder_bytes, picture
from progress_told import Told

from embed import files
from embed.backbones import load
from embed.cache.store import Cache
from embed.cli import main
from embed.jobs.verify import damaged_files

TORCH = ("--engine", "torch", "--precision", "fp32", "--device", "cpu", "--workers", "1")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "load_backbone", embed_tiny.load_tiny)
    monkeypatch.setattr("embed.jobs.build.call_apart", embed_tiny.call_here)
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "machine"))
    embed_tiny.LOADED.clear()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Four ratings: of pictures 0 to 3 by path, 2 and 3 of equal content."""
    for i, color in enumerate([*colors(3), colors(3)[2]]):
        (tmp_path / f"{i}.png").write_bytes(picture(color))
    rows = {"image": [f"{i}.png" for i in range(4)], "rating": [1.0, 2, 3, 4], "prompt": ["a", "b", "a", "long text"]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def test_cache_embeds_a_table_and_says_what_it_did(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = table.parent / "c"
    assert main.main(["cache", str(table), "--model", "tiny", "--out", str(out), *TORCH, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"]["embedded"], result["images"]["known"], result["images"]["failed"]) == (3, 1, 0)
    assert (result["prompts"]["embedded"], result["prompts"]["truncated"]) == (3, 1)
    assert result["engines"]["images"]["precision"] == "fp32"
    cache = Cache.open(out)
    assert cache.image_rows([f"{i}.png" for i in range(4)]).tolist() == [0, 1, 2, 2]
    np.testing.assert_allclose(np.linalg.norm(cache.image_embeddings().astype(float), axis=1), 1, atol=1e-3)
    before = folder_bytes(out)
    embed_tiny.LOADED.clear()
    assert main.main(["cache", str(table), "--model", "tiny", "--out", str(out), *TORCH]) == 0
    assert embed_tiny.LOADED == [] and folder_bytes(out) == before
    assert "4" in capsys.readouterr().out


def test_a_side_without_records_has_no_engine(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures := table.parent / "pictures").mkdir()
    (table.parent / "0.png").rename(pictures / "0.png")
    assert (
        main.main(["cache", str(pictures), "--model", "tiny", "--out", str(table.parent / "c"), *TORCH, "--json"]) == 0
    )
    said = capsys.readouterr()
    assert "pictures: torch fp32 on cpu" in said.err and "prompts: torch" not in said.err
    assert list(json.loads(said.out)["engines"]) == ["images"]


def test_the_first_table_with_labels_is_what_to_train_on(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures := table.parent / "pictures").mkdir()
    (pictures / "0.png").write_bytes(picture((1, 2, 3)))
    for tables, named in ([str(pictures)], "TABLE"), ([str(pictures), str(table)], str(table)):
        assert main.main(["cache", *tables, "--model", "tiny", "--out", str(table.parent / "c"), *TORCH]) == 0
        words = capsys.readouterr().err.splitlines()[-1].split()
        assert words[:3] == ["plaudit", "heads", "train"] and words[words.index("--data") + 1] == named


def test_auto_writes_its_certificate_and_a_second_run_keeps_to_it(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = table.parent / "c"
    command = ["cache", str(table), "--model", "tiny", "--out", str(out), "--workers", "1", "--device", "cpu"]
    assert main.main([*command[:-5], str(table.parent / "small"), *command[-4:]]) == 0
    assert "torch fp32 on cpu" in capsys.readouterr().err, "little work is not worth a trial"
    monkeypatch.setattr("embed.jobs.build.TRIAL_RECORDS", 3)
    assert main.main(command) == 0
    assert "cosine to fp32 at least" in capsys.readouterr().err
    (engine,) = Cache.open(out).manifest["engines"]["images"]
    assert engine["cosine_min"] >= 0.999
    (table.parent / "0.png").write_bytes(picture((77, 7, 7)))
    assert main.main(command) == 0
    assert Cache.open(out).manifest["engines"]["images"] == [engine]
    assert Cache.open(out).count("images") == 4


def test_inspect_tells_identity_counts_and_failures(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (table.parent / "1.png").write_bytes(b"broken")
    out = table.parent / "c"
    assert main.main(["cache", str(table), "--model", "tiny", "--out", str(out), *TORCH]) == 0
    assert f"warning: 1 pictures failed; run `plaudit embed inspect {out}` to see" in capsys.readouterr().err
    assert main.main(["inspect", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["names"], result["prompts"], result["failures"]) == (2, 3, 3, 1)
    assert result["identity"] == embed_tiny.IDENTITY.to_json() | {
        "preprocess": json.loads(json.dumps(embed_tiny.IDENTITY.to_json()["preprocess"]))
    }
    assert result["reasons"][0] | {"count": 1, "example": "1.png"} == result["reasons"][0]
    assert main.main(["inspect", str(out)]) == 0
    assert "unknown format" in capsys.readouterr().out


def test_a_run_of_which_every_picture_fails_is_an_error(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        (table.parent / f"{i}.png").unlink()
    command = ["cache", str(table), "--model", "tiny", "--out", str(table.parent / "c"), *TORCH]
    assert main.main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "none of the 4 pictures could be embedded; the last, 3.png, failed with read: no such file" in line
    cache = Cache.open(table.parent / "c")
    assert (cache.count("prompts"), len(cache.failures())) == (3, 4), "nothing that was done is lost"
    (table.parent / "0.png").write_bytes(picture(colors(1)[0]))
    assert main.main(command) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        (["--model", "tinny"], "near names: tiny"),
        (["--format", "nonsense"], "nonsense"),
        (["--device", "cuda:99"], "'cuda:99' cannot be used"),
        (["--features", "middle"], "wanted one of projected"),
        (["--min-cosine", "7"], "--min-cosine is 7.0"),
        (["--workers", "0"], "workers is 0"),
        (["--images-root", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    table: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    command = ["cache", str(table), "--model", "tiny", "--out", str(table.parent / "c"), *TORCH, *change]
    assert main.main(command) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_missing_table_and_a_foreign_folder(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["cache", "gone.parquet", "--model", "tiny", "--out", str(table.parent / "c"), *TORCH]) == 2
    assert "gone.parquet" in capsys.readouterr().err
    before = sorted(table.parent.iterdir())
    assert main.main(["cache", str(table), "--model", "tiny", "--out", str(table.parent), *TORCH]) == 2
    assert "not a cache and not empty" in capsys.readouterr().err
    assert [p for p in sorted(table.parent.iterdir()) if p.name != "machine"] == before


def test_another_backbones_cache_is_refused_with_both_identities(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = table.parent / "c"
    assert main.main(["cache", str(table), "--model", "tiny", "--out", str(out), *TORCH]) == 0
    assert main.main(["cache", str(table), "--model", "tiny", "--out", str(out), *TORCH, "--ignore-exif"]) == 2
    error = capsys.readouterr().err
    assert "'ignore_exif': False" in error and "'ignore_exif': True" in error


def test_pooled_features_are_stored_and_not_mixed(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = table.parent / "c"
    command = ["cache", str(table), "--model", "tiny", "--out", str(out), *TORCH]
    assert main.main([*command, "--features", "projected,pooled"]) == 0
    assert [array.shape for array in Cache.open(out).arrays("images", "pooled_emb")] == [(3, 64)]
    assert main.main(command) == 2
    assert "--features projected,pooled" in capsys.readouterr().err


def test_verify_embeds_a_sample_again_and_finds_changed_bytes(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = table.parent / "c"
    assert main.main(["cache", str(table), "--model", "tiny", "--out", str(out), *TORCH]) == 0
    capsys.readouterr()
    assert main.main(["verify", str(out), str(table), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"]["compared"] == 3 and result["images"]["cosine_min"] > 0.99999
    assert result["prompts"]["compared"] == 3 and result["prompts"]["cosine_min"] > 0.99999
    assert damaged_files(Cache.open(out), told := Told()) == []
    assert told.works["hashes"].total == result["files"] and told.works["hashes"].whole()
    shard = out / "images" / "img_emb" / "img_emb_0000.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert main.main(["verify", str(out)]) == 2
    assert "images/img_emb/img_emb_0000.npy" in capsys.readouterr().err


def test_verify_finds_vectors_of_another_model(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = table.parent / "c"
    assert main.main(["cache", str(table), "--model", "tiny", "--out", str(out), *TORCH]) == 0
    other = embed_tiny.ImageTower(["projected"]).eval().requires_grad_(False)
    monkeypatch.setattr(embed_tiny.TinyBackbone, "image_tower", lambda self, features: other)
    assert main.main(["verify", str(out), str(table)]) == 2
    assert "images embedded again" in capsys.readouterr().err


def test_merge_joins_caches_of_one_backbone(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = table.parent
    rows = pq.read_table(table)
    for name, part in (("a", rows.slice(0, 3)), ("b", rows.slice(2, 2))):
        pq.write_table(part, folder / f"{name}.parquet")
        command = ["cache", str(folder / f"{name}.parquet"), "--model", "tiny", "--out", str(folder / name), *TORCH]
        assert main.main(command) == 0
    assert main.main(["merge", str(folder / "a"), str(folder / "b"), "--out", str(folder / "ab")]) == 0
    merged = Cache.open(folder / "ab")
    assert (merged.count("images"), merged.count("prompts")) == (3, 3)
    assert merged.image_rows([f"{i}.png" for i in range(4)]).tolist() == [0, 1, 2, 2]
    np.testing.assert_array_equal(merged.image_embeddings(), Cache.open(folder / "a").image_embeddings())
    before = folder_bytes(folder / "ab")
    assert main.main(["merge", str(folder / "b"), str(folder / "a"), "--out", str(folder / "ab")]) == 0
    assert folder_bytes(folder / "ab") == before
    command = ["cache", str(table), "--model", "tiny", "--out", str(folder / "c"), *TORCH, "--ignore-exif"]
    assert main.main(command) == 0
    capsys.readouterr()
    assert main.main(["merge", str(folder / "a"), str(folder / "c"), "--out", str(folder / "ac")]) == 2
    assert "different backbones" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_a_sound_cache(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(path: Path, mode: str) -> IO[bytes]:
        return open("/dev/full" if ".npy" in str(path) and "w" in mode else path, mode)

    monkeypatch.setattr(files, "open", full, raising=False)
    out = table.parent / "c"
    command = ["cache", str(table), "--model", "tiny", "--out", str(out), *TORCH]
    assert main.main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "img_emb_0000.npy" in error and "No space left on device" in error
    assert Cache.open(out).count("images") == 0
    monkeypatch.undo()
    monkeypatch.setattr(load, "load_backbone", embed_tiny.load_tiny)
    assert main.main(command) == 0 and Cache.open(out).count("images") == 3


def test_backbones_lists_the_starter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["backbones", "--json"]) == 0
    names = [one["model"] for one in json.loads(capsys.readouterr().out)["backbones"]]
    assert names[0] == "starter" and "ViT-B-32" in names
