"""`python -m embed adopt`, and what other commands say of its caches."""

import json
from pathlib import Path

import embed_tiny
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adopted import clip_retrieval, declare, unit
from embed_fakes import colors, picture

from embed.backbones import load
from embed.cache.store import Cache
from embed.cli import main

TORCH = ("--engine", "torch", "--precision", "fp32", "--device", "cpu", "--workers", "1")


def test_adopt_says_what_it_linked_and_inspect_where_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = unit(4).astype(np.float16)
    vectors[2] = np.nan
    folder = clip_retrieval(tmp_path / "f", [unit(3).astype(np.float16), vectors])
    command = ["adopt", str(folder), "--identity", str(declare(tmp_path)), "--out", str(tmp_path / "c")]
    assert main.main([*command, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "cache": str(tmp_path / "c"),
        "images": {"linked": 3, "written": 3, "known": 0, "failed": 1, "in_cache": 6},
        "prompts": {"linked": 0, "written": 0, "known": 0, "failed": 0, "in_cache": 0},
    }
    assert "1 vectors were refused; run `plaudit embed inspect" in said.err
    assert main.main(["inspect", str(tmp_path / "c")]) == 0
    text = capsys.readouterr().out
    assert "preprocess      unknown" in text and f"adopted from    {folder / 'img_emb' / 'img_emb_1.npy'}" in text
    assert "adopt: the vector is missing or not finite" in text and "p5" in text


def test_verify_reads_the_files_where_no_backbone_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clip_retrieval(tmp_path / "f", [unit(3).astype(np.float16)])
    main.main(["adopt", str(folder), "--identity", str(declare(tmp_path)), "--out", str(tmp_path / "c")])
    assert main.main(["verify", str(tmp_path / "c")]) == 0
    assert "nothing was embedded again: the vectors were adopted" in capsys.readouterr().out
    (tmp_path / "c" / "images" / "keys" / "keys_0000.parquet").write_bytes(b"")
    assert main.main(["verify", str(tmp_path / "c")]) == 2
    assert "keys_0000.parquet changed or missing" in capsys.readouterr().err


@pytest.mark.parametrize("honest", [True, False])
def test_verify_finds_out_who_declares_another_backbone_than_made_the_vectors(
    tmp_path: Path, honest: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures are compared by name: nobody knows the content that an adopted vector is of."""
    monkeypatch.setattr(load, "load_backbone", embed_tiny.load_tiny)
    monkeypatch.setattr("embed.jobs.build.call_apart", embed_tiny.call_here)
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "machine"))
    (pictures := tmp_path / "pictures").mkdir()
    for i, color in enumerate(colors(3)):
        (pictures / f"{i}.png").write_bytes(picture(color))
    assert main.main(["cache", str(pictures), "--model", "tiny", "--out", str(tmp_path / "ours"), *TORCH]) == 0
    ours = Cache.open(tmp_path / "ours")
    vectors = ours.image_embeddings() * (1 if honest else -1)
    table = tmp_path / "t.parquet"
    names = ours.metadata("images")["image_path"]
    pq.write_table(pa.table({"image": names, "vector": vectors.astype(np.float32).tolist()}), table)
    identity = str(tmp_path / "ours" / "manifest.json")
    assert main.main(["adopt", str(table), "--identity", identity, "--out", str(tmp_path / "c")]) == 0
    capsys.readouterr()
    assert main.main(["verify", str(tmp_path / "c"), str(pictures)]) == (0 if honest else 2)
    said = capsys.readouterr()
    assert "3 pictures embedded again" in said.out if honest else "of 3 images embedded again, one has a" in said.err


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = clip_retrieval(tmp_path / "f", [3 * unit(3)])
    for identity, message in ((tmp_path / "none.json", "No such file"), (declare(tmp_path), "say --normalize")):
        command = ["adopt", str(folder), "--identity", str(identity), "--out", str(tmp_path / "c")]
        assert main.main(command) == 2
        error = capsys.readouterr().err
        assert message in error and error.splitlines()[-1].startswith("python -m embed: ")
