"""Published heads give the published scores, and no other file becomes a head."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from heads_tiny import DIM, make_cache
from paths import DATA
from safetensors.torch import save_file

from embed.spec import Identity, InputError, Source
from heads.cli.main import main
from heads.store.disk import load_head
from heads.store.published import read_published, read_scorer

GOLDEN = DATA / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the published heads are not on this machine")


def golden_vectors(name: str) -> np.ndarray:
    folder = GOLDEN / "laion-aesthetic" / name
    return np.concatenate([np.load(folder / f"rating{i}.npy").reshape(1, -1) for i in range(10)]).astype(np.float32)


def scores(path: Path, vectors: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return read_published(path)[0](image_embedding=torch.from_numpy(vectors)).numpy()


@needs_golden
def test_laion_aesthetic_scores_as_published() -> None:
    folder = GOLDEN / "laion-aesthetic"
    ours = scores(folder / "sa_0_4_vit_b_32_linear.pth", golden_vectors("vit_b_32_embeddings"))
    published = [-1.470, 0.273, 1.990, 3.611, 5.087, 6.393, 7.668, 8.915, 9.917, 11.006]
    np.testing.assert_allclose(ours, published, atol=1e-3)
    ours = scores(folder / "sa_0_4_vit_l_14_linear.pth", golden_vectors("vit_l_14_embeddings"))
    np.testing.assert_allclose(ours[[0, -1]], [-2.458, 11.304], atol=1e-3)
    assert (np.diff(ours) > 0).all()


@needs_golden
def test_improved_aesthetic_scores_as_its_layers_by_hand() -> None:
    path = GOLDEN / "improved-aesthetic" / "sac+logos+ava1-l14-linearMSE.pth"
    weights = torch.load(path, map_location="cpu", weights_only=True)
    vectors = golden_vectors("vit_l_14_embeddings")
    expected = vectors.astype(np.float64)
    for layer in (0, 2, 4, 6, 7):
        expected = expected @ weights[f"layers.{layer}.weight"].double().numpy().T
        expected = expected + weights[f"layers.{layer}.bias"].double().numpy()
    np.testing.assert_allclose(scores(path, vectors), expected[:, 0], atol=1e-3)
    assert np.ptp(expected) > 1


def test_an_imported_head_is_measured_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = make_cache(tmp_path / "cache", [f"p{i}.png" for i in range(20)], ["a prompt"])
    weight = torch.arange(DIM)[None].float()
    save_file({"bias": torch.tensor([0.5]), "weight": weight}, "published.safetensors")
    assert main(["import", "published.safetensors", "--cache", "cache", "--out", "head", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "linear"
    head, manifest = load_head("head")
    assert Identity.from_json(manifest["identity"]) == cache.identity
    vectors = torch.from_numpy(cache.image_embeddings()).float()
    expected = (vectors @ weight.T).squeeze(1) + 0.5
    torch.testing.assert_close(head(image_embedding=vectors), expected)

    table = [{"image": f"p{i}.png", "rating": float(expected[i])} for i in range(20)]
    Path("table.json").write_text(json.dumps(table))
    assert main(["evaluate", "head", "--cache", "cache", "--data", "table.json", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pair_accuracy"]["value"] == 1.0
    assert result["rows"] == 20
    assert "it is unknown what the published head was trained on" in result["part"]

    save_file({"weight": torch.zeros(1, DIM + 1), "bias": torch.zeros(1)}, "wide.safetensors")
    assert main(["import", "wide.safetensors", "--cache", "cache", "--out", "other"]) == 2
    assert f"reads vectors of {DIM + 1} numbers" in capsys.readouterr().err
    assert not Path("other").exists()


SCALE = 3.5
SCORERS = {
    "pickscore.safetensors": {"visual_projection.weight": torch.zeros(2, 2), "logit_scale": torch.tensor(SCALE)},
    "hps.pt": {"state_dict": {"module.logit_scale": torch.tensor([SCALE]), "module.text_projection": torch.zeros(2)}},
    "social.pth": {"visual.proj": torch.zeros(2, 2), "logit_scale": torch.tensor(SCALE, dtype=torch.float16)},
}


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("form", ["{}", "some_tag@{}"])
def test_a_scorer_in_clip_form_scores_by_its_own_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (save_file if name.endswith("safetensors") else torch.save)(SCORERS[name], name)
    cache = make_cache(tmp_path / "cache", ["a", "b", "c"], ["x", "y", "z"], None, Source("ViT", form.format(name)))
    assert main(["import", name, "--cache", "cache", "--out", "head", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "cosine"
    head, manifest = load_head("head")
    assert Identity.from_json(manifest["identity"]) == cache.identity
    v, t = (torch.from_numpy(x).float() for x in (cache.image_embeddings(), cache.text_embeddings()))
    cosine = torch.nn.functional.cosine_similarity(v, t)
    torch.testing.assert_close(head(image_embedding=v, text_embedding=t), np.exp(SCALE) * cosine)

    make_cache(tmp_path / "other", ["a"], ["x"], None, Source("ViT", "laion2b"))
    assert main(["import", name, "--cache", "other", "--out", "no"]) == 2
    assert "is a backbone of its own, and other was not made with it" in capsys.readouterr().err


def test_a_scorer_without_a_number_for_its_scale_is_refused(tmp_path: Path) -> None:
    torch.save({"logit_scale": torch.tensor(torch.nan)}, tmp_path / "nan.pt")
    with pytest.raises(InputError, match=r"logit_scale is \(\) \[nan\]; wanted one number"):
        read_scorer(tmp_path / "nan.pt", 8)
    torch.save({"weight": torch.zeros(1, 8), "bias": torch.zeros(1)}, tmp_path / "linear.pt")
    assert read_scorer(tmp_path / "linear.pt", 8) is None


def test_other_files_are_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "harmed",))

    (tmp_path / "code.pth").write_bytes(pickle.dumps(Harmful(), protocol=2))
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    save_file({"weight": torch.zeros(2, 8), "bias": torch.zeros(2)}, tmp_path / "two.safetensors")
    save_file({"weight": torch.zeros(1, 8)}, tmp_path / "biasless.safetensors")
    save_file({"weight": torch.full((1, 8), torch.nan), "bias": torch.zeros(1)}, tmp_path / "nan.safetensors")
    for name, message in [
        ("code.pth", "cannot be read as plain tensors"),
        ("text.pth", "cannot be read as plain tensors"),
        ("text.safetensors", "text.safetensors cannot be read"),
        ("list.pth", "it holds list"),
        ("two.safetensors", r"shapes \[\(2, 8\)\]; wanted LAION's"),
        ("biasless.safetensors", "by layer"),
        ("nan.safetensors", "'weight' is not finite"),
    ]:
        with pytest.raises(InputError, match=message):
            read_published(tmp_path / name)
    assert not (tmp_path / "harmed").exists()
