"""A tuning from its pipeline to its folder: killed and resumed, cut in parts, judged, loaded by diffusers itself."""

import ast
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from paths import ROOT
from PIL import Image
from reward_tiny import write_head
from tuning_tiny import PROMPTS

from embed.backbones.backbone import Backbone
from embed.records.formats import read_records
from embed.spec import InputError
from heads.config import HeadConfig
from heads.reward.module import Reward
from heads.reward.several import Rewards
from heads.training.loop import Loop
from heads.tuning.config import TuneConfig
from heads.tuning.data import Material, read_examples, read_preferences
from heads.tuning.guards import Look
from heads.tuning.loading import load_family
from heads.tuning.methods import draft
from heads.tuning.pixel import PixelPipeline
from heads.tuning.result import LORA, measure, page_of, save, save_weights
from heads.tuning.train import Run
from heads.tuning.weights import Trained
from heads.unfreeze.distributed import Ranks

TINY: dict[str, Any] = {"steps": 4, "judge_every": 2, "batch_size": 3, "sampling_steps": 2, "judge_pictures": 2}
TINY |= {"learning_rate": 1e-2, "rank": 2, "guidance": 2.0}


@pytest.fixture(scope="module")
def material(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A reward, a judge of another kind, and pictures with choices between them."""
    folder = tmp_path_factory.mktemp("material")
    reward = Reward.on(backbone, write_head(folder / "head", backbone, HeadConfig("cosine", 16)))
    judge = Reward.on(backbone, write_head(folder / "judge", backbone, HeadConfig("fusion", 16, 32, hidden=8), seed=3))
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{i}.png")
    rows = [{"prompt": PROMPTS[i % 2], "pos_path": f"{i}.png", "neg_path": f"{(i + 1) % 4}.png"} for i in range(4)]
    (folder / "pairs.json").write_text(json.dumps(rows))
    records = read_records(str(folder / "pairs.json"))
    return Material(PROMPTS[:2], PROMPTS[2:], reward, judge, read_preferences(records), read_examples(records))


def start(pipelines: dict[str, Path], kind: str, method: str, material: Material, **options: Any) -> Run:
    folder = options.pop("folder", None)
    config = TuneConfig(method, **(TINY | options))  # type: ignore[arg-type]
    return Run(load_family(str(pipelines[kind]), "cpu", None, False, config.whole), material, config, kind, folder)


def bytes_of(run: Run, folder: Path) -> bytes:
    folder.mkdir()
    save_weights(folder, run.trained)
    (file,) = (path for path in folder.rglob("*") if path.suffix == ".safetensors")
    return file.read_bytes()


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [
        ("pixel", "draft", {"ema": 0.5}),
        ("sd3", "refl", {"pretrain": True}),
        ("sd1", "dpo", {}),
        ("pixel", "refl", {"whole": True}),
    ],
)
def test_killed_and_resumed_gives_the_same_bytes(
    pipelines: dict[str, Path], material: Material, tmp_path: Path, kind: str, method: str, options: dict[str, Any]
) -> None:
    pretrain = options.pop("pretrain", False)
    material = material if pretrain else replace(material, pretrain=None)
    whole = start(pipelines, kind, method, material, **options)
    whole.train()

    def kill(loop: Loop) -> None:
        loop.save()
        if loop.step == 3:
            raise Killed

    first = start(pipelines, kind, method, material, folder=tmp_path / "saved", **options)
    with pytest.raises(Killed):
        first.train(on_step=kill)
    again = start(pipelines, kind, method, material, folder=tmp_path / "saved", **options)
    assert again.loop.step == 3
    again.train()
    assert bytes_of(again, tmp_path / "a") == bytes_of(whole, tmp_path / "b")
    assert json.dumps(again.loop.history) == json.dumps(whole.loop.history)
    with pytest.raises(InputError, match="belongs to another training"):
        start(pipelines, kind, method, material, folder=tmp_path / "saved", **options, seed=5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers' own schedulers
@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3", "pixel"])
def test_a_lora_moves_nothing_else_and_diffusers_loads_it(
    pipelines: dict[str, Path], material: Material, backbone: Backbone, tmp_path: Path, kind: str
) -> None:
    run = start(pipelines, kind, "draft", replace(material, judge=None, pretrain=None), folder=tmp_path / "saved")
    before = {name: value.clone() for name, value in run.family.module.state_dict().items()}
    run.train()
    after = run.family.module.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved and all("lora_" in name for name in moved)
    outcome = measure(run)
    about = {"pipeline": kind, "method": "draft"}
    save(tmp_path / "out", run, outcome, page_of(run, outcome, about), about, False)
    assert not (tmp_path / "saved").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("pytorch_lora_weights.safetensors", "tuning.json", "README.md", "report.html")
    }
    kind_of = PixelPipeline if kind == "pixel" else DiffusionPipeline
    absent = dict.fromkeys(("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"))
    pipeline: Any = kind_of.from_pretrained(pipelines[kind], **(absent if kind == "sd3" else {}))
    if kind == "pixel":
        pipeline._read_with(backbone)

    def picture() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        made = pipeline(PROMPTS[0], num_inference_steps=2, generator=generator, output_type="np").images
        return np.asarray(made)

    plain = picture()
    if kind == "pixel":
        pipeline.unet.load_lora_adapter(str(tmp_path / "out"), prefix="unet", weight_name=LORA)
    else:
        pipeline.load_lora_weights(str(tmp_path / "out"))
    assert np.abs(picture() - plain).max() > 1e-4
    assert run.family.part in (tmp_path / "out" / "README.md").read_text()


def test_several_rewards_are_one_on_the_scale_of_the_untuned_pictures(
    pipelines: dict[str, Path], material: Material, backbone: Backbone, tmp_path: Path
) -> None:
    """Against the two heads alone, standardised by hand."""
    folders = [write_head(tmp_path / name, backbone, HeadConfig("cosine", 16), seed) for seed, name in enumerate("ab")]
    one, other = (Reward.on(backbone, folder) for folder in folders)
    both = Rewards({"a": (Reward.on(backbone, folders[0]), 2.0), "b": (Reward.on(backbone, folders[1]), 0.5)})
    run = start(pipelines, "pixel", "draft", replace(material, reward=both, pretrain=None))
    pixels, prompts = run.first.pixels.float() / 255, run.guards.prompts
    total = np.zeros(len(prompts))
    for weight, reward, name in ((2.0, one, "a"), (0.5, other, "b")):
        scores = reward(pixels, prompts).numpy()
        np.testing.assert_allclose(run.first.parts[name], scores, atol=2e-3)  # of pixels that were not rounded
        own = run.first.parts[name]
        total += weight * (own - own.mean()) / own.std(ddof=1)
    np.testing.assert_allclose(run.first.reward, total, atol=1e-4)
    found = run.score(pixels, prompts).numpy()
    np.testing.assert_allclose(found, (total - total.mean()) / total.std(ddof=1), atol=0.05)


def test_a_batch_in_parts_is_the_same_batch(
    pipelines: dict[str, Path], material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for parts in (1, 3):
        run = start(pipelines, "sd1", "refl", material, accumulate=parts, guards=False)
        for loss in run.losses(0, (np.array([0, 1, 0]),)):
            loss.backward()  # type: ignore[no-untyped-call]
        found.append([parameter.grad for parameter in run.trained.parameters.values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


def test_the_judge_decides_what_is_kept(
    pipelines: dict[str, Path], material: Material, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its verdict on the looks: 0, then better, then refused by a guard, then worse."""
    run = start(pipelines, "pixel", "draft", replace(material, pretrain=None), steps=8, patience=3)
    looks, kept = [], []
    real = run.guards.look

    def look(at_once: int) -> Look:
        kept.append({name: p.detach().clone() for name, p in run.trained.parameters.items()})
        found = real(at_once)
        shift = [1.0, 5.0, 0.5, 0.2][len(kept) - 1]
        same = len(kept) == 2  # the pictures of a prompt are one
        assert found.judge is not None and run.first.judge is not None
        return replace(found, judge=run.first.judge + shift, diversity=found.diversity * (0.1 if same else 1))

    monkeypatch.setattr(run.guards, "look", look)
    run.train(on_look=lambda step, look: looks.append(step))
    assert looks == [0, 2, 4, 6, 8] and run.loop.best_epoch == 1
    assert [record["validation_accuracy"] for record in run.loop.history][2] == -np.inf
    for name, parameter in run.trained.parameters.items():
        assert torch.equal(parameter, kept[0][name]) and not torch.equal(parameter, kept[-1][name])
    outcome = measure_nothing(run)
    page = page_of(run, outcome, {"pipeline": "p", "method": "draft"}).decode()
    assert "The weights of step 2 are kept" in page and "none after it, up to step 8, was better" in page
    assert re.search(r"Guards refused the weights of step 4 \(diversity 1?\d% of before\)\.", page)


def test_without_a_judge_the_last_look_is_kept_that_the_guards_let_through(
    pipelines: dict[str, Path], material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(pipelines, "pixel", "draft", replace(material, pretrain=None, judge=None), steps=8, patience=9)
    kept, real = [], run.guards.look

    def look(at_once: int) -> Look:
        kept.append({name: p.detach().clone() for name, p in run.trained.parameters.items()})
        found = real(at_once)
        grain = [1, 1, 5, 5][len(kept) - 1]  # grids from the third look on
        return replace(found, diversity=run.first.diversity, sharpness=run.first.sharpness * grain)

    monkeypatch.setattr(run.guards, "look", look)
    run.train()
    assert run.loop.best_epoch == 2
    for name, parameter in run.trained.parameters.items():
        assert torch.equal(parameter, kept[1][name]) and not torch.equal(parameter, kept[-1][name])
    page = page_of(run, measure_nothing(run), {"pipeline": "p", "method": "draft"}).decode()
    assert "the last weights that the other guards allowed are kept" in page
    assert "Guards refused the weights of step 6 (fine grain 500% of before), 8 (fine grain 500% of before)." in page


def measure_nothing(run: Run) -> Any:
    from heads.tuning.result import Outcome

    return Outcome(run.guards.prompts, run.first, run.first, {})


def test_memory_at_its_end_loses_nothing(
    pipelines: dict[str, Path], material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"folder": tmp_path / "saved", "guards": False}
    run = start(pipelines, "pixel", "draft", replace(material, pretrain=None), **options)
    real = run.score

    def score(pixels: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        if run.loop.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(pixels, prompts)

    monkeypatch.setattr(run, "score", score)
    with pytest.raises(InputError, match=r"3 pictures at once: give --accumulate 2; the 3 steps so far are in"):
        run.train()
    again = start(pipelines, "pixel", "draft", replace(material, pretrain=None), **options, accumulate=2)
    assert again.loop.step == 3
    again.train()
    assert again.loop.step == 4


def test_what_is_missing_is_said(pipelines: dict[str, Path], material: Material, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="refl learns from a reward; give it by --reward HEAD"):
        start(pipelines, "pixel", "refl", replace(material, reward=None))
    with pytest.raises(InputError, match="give them by --data TABLE"):
        start(pipelines, "pixel", "dpo", replace(material, preferences=None))
    with pytest.raises(InputError, match="--draft-steps 9 is more than the 2 steps"):
        TuneConfig("draft", draft_steps=9, sampling_steps=2)
    with pytest.raises(InputError, match="--beta does nothing for the method refl"):
        TuneConfig("refl", beta=1.0)
    with pytest.raises(InputError, match="not a multiple of 4"):
        load_family(str(pipelines["sd1"]), "cpu", 18)
    with pytest.raises(InputError, match="has no model_index"):
        load_family(str(tmp_path), "cpu")
    index = tmp_path / "model_index.json"
    for content, said in [
        ('{"_class_name": "FluxPipeline"}', "of FluxPipeline, which cannot be tuned"),
        ('{"_class_name": "StableDiffusionPipeline", "unet": ["evil", "Model"]}', "has its unet from evil"),
        ('{"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}', "cannot be loaded"),
        ('{"_class_name": "PixelPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}', "and scheduler, both of"),
        ("[", "is damaged"),
    ]:
        index.write_text(content)
        with pytest.raises(InputError, match=said):
            load_family(str(tmp_path), "cpu")
    pipeline = StableDiffusionPipeline.from_pretrained(pipelines["sd1"], safety_checker=None)
    pipeline.vae = None
    from heads.tuning.families import family_of

    with pytest.raises(InputError, match="has no vae; wanted one with unet, vae, "):
        family_of(pipeline)


class Share(Ranks):
    """One of two processes, which keeps its own gradients."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.count, self.rank = 2, rank

    def average_gradients(self, parameters: Any) -> None:
        pass


def test_two_processes_share_a_batch(pipelines: dict[str, Path], material: Material) -> None:
    grads = []
    for ranks in (None, Share(0), Share(1)):
        config = TuneConfig("draft", **(TINY | {"batch_size": 4, "guards": False}))
        run = Run(load_family(str(pipelines["sd1"]), "cpu"), material, config, "sd1", None, ranks)
        for loss in run.losses(0, (np.array([0, 1, 0, 1]),)):
            loss.backward()  # type: ignore[no-untyped-call]
        grads.append([parameter.grad for parameter in run.trained.parameters.values()])
    for whole, first, second in zip(*grads, strict=True):
        torch.testing.assert_close(whole, (first + second) / 2, rtol=1e-3, atol=1e-7)
    with pytest.raises(InputError, match="--batch-size 3 cannot be divided among 2 processes"):
        Run(run.family, material, TuneConfig("draft", **TINY), "sd1", None, Share(0))


def test_nothing_but_the_pixel_pipeline_needs_diffusers_to_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (ROOT / "heads" / "tuning").glob("*.py"):
        tops = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        words = " ".join(map(ast.unparse, tops))
        assert path.name == "pixel.py" or not any(name in words for name in ("diffusers", "peft", "accelerate")), path
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"needs peft; run: pip install 'plaudit\[generators\]'"):
        load_family("anything", "cpu")


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_a_lora_on_frozen_weights_in_bfloat16_has_nearly_the_same_gradient(
    pipelines: dict[str, Path], kind: str
) -> None:
    found = []
    for bf16 in (False, True):
        family = load_family(str(pipelines[kind]), "cpu", bf16=bf16)
        trained = Trained(family, 2)
        assert {parameter.dtype for parameter in trained.parameters.values()} == {torch.float32}
        frozen = {p.dtype for name, p in family.module.named_parameters() if name not in trained.parameters}
        assert frozen == {torch.bfloat16 if bf16 else torch.float32}
        told = family.conditions(PROMPTS[:2], True)
        noise = family.noise(2, torch.Generator().manual_seed(0))
        draft(family, noise, told, lambda pixels: pixels.mean(dim=(1, 2, 3)), 3, 3.0).reward.backward()
        grads = [p.grad.flatten() for p in trained.parameters.values() if p.grad is not None]
        found.append(torch.cat(grads))
    assert float(torch.nn.functional.cosine_similarity(*found, dim=0)) > 0.95


def test_choices_teach_without_a_reward(pipelines: dict[str, Path], material: Material) -> None:
    run = start(pipelines, "sd2", "dpo", replace(material, reward=None, judge=None), steps=2)
    run.train()
    outcome = measure(run)
    assert outcome.figures.keys() == {"sharpness"}
    assert run.loop.history[-1].keys() >= {"ordered", "pretrain_loss", "sharpness", "distance"}
    page = page_of(run, outcome, {"pipeline": "p", "method": "dpo"}).decode()
    assert "There was no judge: the last weights that the other guards allowed are kept" in page
