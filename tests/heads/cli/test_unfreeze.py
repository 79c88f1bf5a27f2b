"""The commands end to end on a tiny CLIP: cache with boundary, tune, refresh, evaluate, export, and the papers' two."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import unfreeze_tiny as tiny
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embed.backbones.delta import published_state
from embed.backbones.load import load_backbone
from embed.cache.store import Cache
from embed.cli.main import main as embed
from embed.inputs.images import Limits, load_pixels
from embed.spec import InputError, Source
from heads.cli.main import main as heads
from heads.unfreeze import train

ROWS = 90


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, coloured pictures, and tables in which red wins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "machine"))
    tiny.make_folder(tmp_path / "clip")
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (ROWS, 3), dtype=np.uint8)
    for i, color in enumerate(colors):
        noise = rng.integers(-20, 20, (32, 32, 3))
        Image.fromarray(np.clip(color + noise, 0, 255).astype(np.uint8)).save(f"{i}.png")
    images, prompts = [f"{i}.png" for i in range(ROWS)], [f"prompt {i}" for i in range(ROWS)]
    count = (colors[:, 0].astype(int) + 1) ** 2
    pq.write_table(pa.table({"image": images, "prompt": prompts, "count": count}), "counts.parquet")
    a, b = np.stack([rng.permutation(ROWS)[:2] for _ in range(60)], axis=1)
    pos, neg = np.where(colors[a, 0] > colors[b, 0], [a, b], [b, a])
    table = {"prompt": ["red"] * 60, "pos_path": [images[i] for i in pos], "neg_path": [images[i] for i in neg]}
    pq.write_table(pa.table(table), "pairs.parquet")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], main: Any, *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    code = main([*argv, "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return json.loads(shown.out)


CACHE = ("cache", "counts.parquet", "--model", "local-dir:clip", "--out", "cache", "--workers", "1")
TUNE = ("unfreeze", "cache", "--data", "counts.parquet", "--loss", "preference", "--out", "tuned",
        "--learning-rate", "2e-3", "--epochs", "2", "--batch-size", "512", "--device", "cpu")  # fmt: skip


def test_validate_computes_as_many_pictures_at_once_as_it_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(config: Any, progress: Any) -> None:
        raise InputError(f"{config.batch_size} at once")

    monkeypatch.setattr("embed.jobs.build.build_cache", told)
    assert heads(["validate", "pairs.parquet", "--batch_size", "3"]) == 2
    assert "3 at once" in capsys.readouterr().err


def test_what_embed_cache_suggests_can_be_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed([*CACHE, "--boundary", "blocks=1,0"]) == 0
    plaudit, package, *words = shlex.split(capsys.readouterr().err.splitlines()[-1])
    assert (plaudit, package, words[0]) == ("plaudit", "heads", "unfreeze")
    run(capsys, heads, *words, "--epochs", "1", "--epoch-size", "8", "--device", "cpu")
    assert (folder / "tuned" / "head").is_dir()


def test_tuned_refreshed_evaluated_and_exported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, embed, *CACHE, "--boundary", "blocks=1,1", "--boundary-dtype", "float32")
    blocks = ("--unfreeze-visual", "1", "--unfreeze-text", "1")
    tuned = run(capsys, heads, *TUNE, *blocks, "--wise", "auto", "--tracker", "tensorboard:logs")
    tracked = EventAccumulator("logs").Reload()
    for name in ("pair_accuracy", "frozen_pair_accuracy"):
        assert tracked.Scalars(f"result/{name}")[0].value == pytest.approx(tuned[name]["value"])
    curve = EventAccumulator("logs/unfreezing").Reload().Scalars("validation_accuracy")
    assert [event.value for event in curve] == pytest.approx(tuned["validation_accuracy"])
    assert tuned["pair_accuracy"]["value"] > tuned["frozen_pair_accuracy"]["value"] + 0.1
    # The lead is over the backbone as it was, whose accuracy stands beside.
    lead = tuned["pair_accuracy"]["value"] - tuned["zero_shot_pair_accuracy"]["value"]
    assert tuned["lead"]["zero_shot"]["difference"]["value"] == pytest.approx(lead) and lead > 0.05
    assert len(tuned["validation_accuracy"]) == 3 and 0 <= tuned["wise"] <= 1

    # What moved is small, the rest is the base's, and the whole is a new backbone.
    delta = load_file("tuned/delta.safetensors")
    base, backbone = tiny.load(folder / "clip"), load_backbone(Source("local-dir:clip", "delta:tuned"))
    assert sum(tensor.numel() for tensor in delta.values()) == tuned["parameters"]
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, delta.get(name, base.model.state_dict()[name]))
    assert backbone.identity.weights != base.identity.weights

    # Vectors from the boundary are those that the tuned backbone gives to the pictures.
    result = run(capsys, embed, "refresh", "cache", "--tuned", "tuned", "--out", "fresh", "--device", "cpu")
    assert (result["images"], result["prompts"]) == (ROWS, ROWS)
    fresh = Cache.open("fresh")
    assert fresh.identity == backbone.identity
    preprocess = backbone.identity.preprocess
    pixels = np.stack([load_pixels(Path(f"{i}.png").read_bytes(), preprocess, Limits())[0] for i in range(ROWS)])
    with torch.no_grad():
        images = backbone.image_tower()(torch.from_numpy(pixels)).numpy()
        texts = backbone.text_tower()(torch.from_numpy(backbone.tokenize([f"prompt {i}" for i in range(ROWS)]))).numpy()
    np.testing.assert_allclose(fresh.image_embeddings(), images, atol=1e-3)
    np.testing.assert_allclose(fresh.text_embeddings(), texts, atol=1e-3)

    # The head is like any other.
    again = run(capsys, heads, "evaluate", "tuned/head", "--cache", "fresh", "--data", "counts.parquet")
    assert again["pair_accuracy"]["value"] == pytest.approx(tuned["pair_accuracy"]["value"], abs=0.01)
    assert heads(["evaluate", "tuned/head", "--cache", "cache", "--data", "counts.parquet"]) == 2
    assert "different backbones" in capsys.readouterr().err

    for name in ("whole.safetensors", "whole.pt"):
        run(capsys, heads, "export-checkpoint", "tuned", "--out", name)
        state = load_file(name) if name.endswith("tensors") else torch.load(name, weights_only=True)
        model = open_clip.CLIP(**tiny.CONFIG)
        model.load_state_dict(state, strict=True)
        with torch.no_grad():
            vectors = model.eval().encode_text(torch.from_numpy(backbone.tokenize(["prompt 3"])), normalize=True)
        np.testing.assert_allclose(vectors.numpy(), texts[3:4], atol=1e-5)
    for name in ("whole.onnx", "whole.pt"):  # no suffix of a checkpoint, and one that is there
        assert heads(["export-checkpoint", "nowhere", "--out", name]) == 2
        assert f"{name} " in capsys.readouterr().err


def test_the_pictures_of_comparisons_that_were_trained_on_are_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {"prompt": [f"prompt {i}" for i in range(ROWS // 2)], "pos_path": [f"{i}.png" for i in range(0, ROWS, 2)],
             "neg_path": [f"{i}.png" for i in range(1, ROWS, 2)]}  # fmt: skip
    pq.write_table(pa.table(table), "prompts.parquet")
    run(capsys, embed, "cache", "prompts.parquet", *CACHE[2:], "--boundary", "blocks=1,0")
    argv = (
        "unfreeze",
        "cache",
        "--data",
        "prompts.parquet",
        "--mode",
        "blocks=1,0",
        "--epochs",
        "1",
        "--device",
        "cpu",
    )
    tuned = run(capsys, heads, *argv, "--loss", "triplet", "--margin", "0.5", "--distance", "cosine", "--out", "tuned")
    assert tuned["split"]["held_out_rows"] == ROWS // 10
    trained = set(pq.read_table("tuned/head/trained.parquet")["id"].to_pylist())
    cache = Cache.open("cache")
    prompts = cache.metadata("prompts", ["caption", "prompt_id"])
    seen = {int(name.split()[1]) for name, id in zip(*map(pa.ChunkedArray.to_pylist, prompts.columns), strict=True)
            if id in trained}  # fmt: skip
    assert len(seen) == ROWS // 2 - ROWS // 10
    images = cache.metadata("images", ["image_path", "image_id"]).to_pylist()
    pictures = {int(Path(row["image_path"]).stem) for row in images if row["image_id"] in trained}
    assert pictures == {2 * i + side for i in seen for side in (0, 1)}
    training = json.loads(Path("tuned/head/head.json").read_text())["training"]
    assert (training["margin"], training["distance"], training["reduction"]) == (0.5, "cosine", None)


def test_live_training_reads_pixels_and_gives_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, embed, *CACHE, "--boundary", "blocks=1,0", "--boundary-dtype", "float32")
    cached = run(capsys, heads, *TUNE, "--mode", "blocks=1,0")
    assert heads([*TUNE, "--mode", "blocks=1,0", "--live", "--overwrite"]) == 2
    assert "has no pixels to train blocks=1,0 from" in capsys.readouterr().err
    assert heads([*TUNE, "--mode", "visual", "--overwrite"]) == 2
    assert "--boundary visual" in capsys.readouterr().err
    run(capsys, embed, *CACHE, "--boundary", "visual")
    live = run(capsys, heads, *TUNE, "--mode", "blocks=1,0", "--live", "--overwrite")
    np.testing.assert_allclose(live["validation_accuracy"], cached["validation_accuracy"], atol=0.01)
    whole = run(capsys, heads, *TUNE, "--mode", "all", "--head", "mlp", "--overwrite")
    assert whole["parameters"] == sum(p.numel() for p in tiny.load(folder / "clip").model.parameters())
    assert json.loads(Path("tuned/head/head.json").read_text())["head"]["kind"] == "mlp"


def test_a_killed_run_goes_on_and_one_that_diverges_is_the_users(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, embed, *CACHE, "--boundary", "blocks=1,0", "--boundary-dtype", "float32")
    argv = (*TUNE, "--mode", "blocks=1,0", "--batch-size", "256", "--wise", "0.5")
    run(capsys, heads, *argv)
    whole = [(folder / "tuned" / name).read_bytes() for name in ("delta.safetensors", "head/head.safetensors")]
    assert not Path("tuned.checkpoints").exists()
    shutil.rmtree("tuned")

    measure, measured = train.accuracy_of, []

    def die(*parts: Any) -> float:
        measured.append(measure(*parts))
        if len(measured) == 3:  # after the second epoch
            raise ZeroDivisionError
        return measured[-1]

    monkeypatch.setattr("heads.training.checkpoint.EVERY_S", 0.0)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train, "accuracy_of", die)
        heads(list(argv))
    assert heads([*argv, "--seed", "1"]) == 2
    assert "belongs to another training" in capsys.readouterr().err
    measured.append(0.0)  # a fourth and more do not die
    with monkeypatch.context() as patch:
        patch.setattr(train, "accuracy_of", die)
        run(capsys, heads, *argv)
    assert len(measured) == 6, "the epochs before were not measured again: one, and WiSE-FT's"
    assert [(folder / "tuned" / name).read_bytes() for name in ("delta.safetensors", "head/head.safetensors")] == whole
    assert not Path("tuned.checkpoints").exists()

    assert heads([*argv, "--learning-rate", "1e18"]) == 2
    assert "tuned is a tuned backbone already; say --overwrite to replace it" in capsys.readouterr().err
    assert heads([*argv, "--learning-rate", "1e18", "--overwrite"]) == 2
    assert "lower --learning-rate" in capsys.readouterr().err


def test_a_mode_is_asked_for_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, embed, *CACHE)
    for argv in ((), ("--mode", "all", "--fix-rate", "0.5")):
        assert heads([*TUNE, *argv]) == 2
        assert "give one of --mode, --fix-rate" in capsys.readouterr().err
    assert heads([*TUNE, "--mode", "all", "--wise", "2"]) == 2
    assert "wise is 2.0; wanted auto or 0 to 1" in capsys.readouterr().err
    assert heads([*TUNE, "--mode", "all", "--distance", "cosine"]) == 2
    assert "--distance is for triplet and does nothing for the loss preference" in capsys.readouterr().err


def test_social_rewards_commands_write_its_files(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from heads.cli import papers

    # A configuration that open_clip knows by name, as it knows ViT-L-14.
    (folder / "configs").mkdir()
    (folder / "configs" / "tiny-clip.json").write_text(json.dumps(tiny.CONFIG))
    before = dict(open_clip.factory._MODEL_CONFIGS)
    open_clip.add_model_config(folder / "configs")
    monkeypatch.setattr(papers, "SAVE_STEPS", 5)
    try:
        backbone = ("--model", "tiny-clip", "--pretrained", "random:0")
        mode = ("--training_mode", "visual_upper_layers_textual_upper_layers")
        argv = ("finetune", "--training_file", "pairs.parquet", *mode, "--batch_size", "16", "--n_epochs", "3",
                "--save_folder", "out", "--loss_name", "triplet", "--learning_rate", "1e-3")  # fmt: skip
        done = run(capsys, heads, *argv, *backbone)
        names = [
            f"clip_epoch_{epoch}_global_step_{last}.pth" for epoch in range(3) for last in ("final", 4 * epoch + 4)
        ]
        names += ["clip_epoch_1_global_step_5.pth", "clip_epoch_2_global_step_10.pth"]
        assert sorted(done["checkpoints"]) == sorted(names) == sorted(path.name for path in Path("out").glob("*.pth"))
        assert done["train_loss"][-1] < done["train_loss"][0]

        # Only the mode's parameters differ from where it began.
        start = published_state(load_backbone(Source("tiny-clip", "random:0")).model.state_dict())
        end = torch.load("out/clip_epoch_2_global_step_final.pth", weights_only=True)
        open_clip.CLIP(**tiny.CONFIG).load_state_dict(end, strict=True)
        moved = {name for name in start if not torch.equal(start[name], end[name])}
        blocks = [f"visual.transformer.resblocks.{i}." for i in (1, 2, 3)]
        blocks += ["transformer.resblocks.1.", "transformer.resblocks.2.", "visual.ln_post.", "ln_final."]
        assert moved == {name for name in start if name.startswith(tuple(blocks))} | {"text_projection"}

        zero_shot = run(capsys, heads, "validate", "pairs.parquet", *backbone)
        tuned = run(capsys, heads, "validate", "pairs.parquet", "--model", "tiny-clip",
                    "--checkout_path", "out/clip_epoch_2_global_step_final.pth")  # fmt: skip
        assert tuned["accuracy"] > zero_shot["accuracy"] and tuned["rows"] == 60
    finally:
        open_clip.factory._MODEL_CONFIGS.clear()
        open_clip.factory._MODEL_CONFIGS.update(before)
