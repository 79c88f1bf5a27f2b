"""A pixel pipeline samples as a loop does, comes back from disk as it was, and runs nothing that a folder holds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pixel_tiny import tiny_pipeline
from torch.nn import functional as F
from unfreeze_tiny import load, make_folder

from embed.backbones.backbone import Backbone
from embed.spec import IdentityMismatch, InputError
from heads.tuning.pixel import PixelPipeline

PROMPTS = ["red apple", "a large green pear", "plum"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load(make_folder(tmp_path_factory.mktemp("backbone") / "tiny"))


@pytest.fixture
def saved(backbone: Backbone, tmp_path: Path) -> Path:
    tiny_pipeline(backbone).save_pretrained(tmp_path / "generator")
    return tmp_path / "generator"


def seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def test_prompts_are_the_unit_vectors_of_the_backbone(backbone: Backbone) -> None:
    pipeline = tiny_pipeline(backbone)
    found = pipeline.encode_prompts([*PROMPTS, PROMPTS[0]])
    assert found.shape == (4, 1, 16)
    with torch.no_grad():
        expected = F.normalize(backbone.model.text(torch.from_numpy(backbone.tokenize(PROMPTS)).long()), dim=-1) * 4
    torch.testing.assert_close(found[:3, 0], expected)
    torch.testing.assert_close(found[0], found[3])


def test_samples_are_those_of_ddim_in_closed_form(backbone: Backbone) -> None:
    pipeline, steps, scale = tiny_pipeline(backbone), 4, 3.0
    found = pipeline(PROMPTS, steps, scale, generator=seeds(3), output_type="pt").images
    cumulative = pipeline.scheduler.alphas_cumprod.double()
    condition, nothing = pipeline.encode_prompts(PROMPTS), pipeline.encode_prompts([""])
    for i, generator in enumerate(seeds(3)):
        x = torch.randn(1, 3, 8, 8, generator=generator).double()
        for k in range(steps):
            t = 1000 - 250 * k - 1
            a, b = cumulative[t].sqrt(), (1 - cumulative[t]).sqrt()
            with torch.no_grad():
                given, without = (
                    pipeline.unet(x.float(), t, c).sample.double() for c in (condition[i : i + 1], nothing)
                )
            v = without + scale * (given - without)
            clean, noise = a * x - b * v, a * v + b * x
            # The last step leaves the noise of the first time step, as DDIM's configuration says.
            after = cumulative[t - 250] if k + 1 < steps else pipeline.scheduler.final_alpha_cumprod.double()
            x = after.sqrt() * clean + (1 - after).sqrt() * noise
        torch.testing.assert_close(found[i], (x[0] / 2 + 0.5).clamp(0, 1).float(), atol=1e-4, rtol=1e-4)
    assert found.std() > 0.05


def test_a_picture_depends_on_its_own_seed_and_prompt(backbone: Backbone) -> None:
    pipeline = tiny_pipeline(backbone)
    together = pipeline(PROMPTS, 2, generator=seeds(3), output_type="pt").images
    alone = pipeline(PROMPTS[2], 2, generator=torch.Generator().manual_seed(2), output_type="pt").images
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=1e-5)
    (picture,) = pipeline(PROMPTS[2], 2, generator=torch.Generator().manual_seed(2)).images
    np.testing.assert_allclose(np.asarray(picture), alone[0].permute(1, 2, 0).numpy() * 255, atol=0.51)


def test_it_comes_back_from_disk(backbone: Backbone, saved: Path) -> None:
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "PixelPipeline" and index["text"]["identity"]["dim"] == 16
    assert not list(saved.rglob("*.bin")) and not (saved / "text").exists()
    again = PixelPipeline.from_pretrained(saved)
    again.set_progress_bar_config(disable=True)
    pictures = [
        one(PROMPTS, 2, generator=seeds(3), output_type="pt").images for one in (tiny_pipeline(backbone), again)
    ]
    torch.testing.assert_close(*pictures)


def test_another_backbone_is_refused(saved: Path, tmp_path: Path) -> None:
    index = json.loads((saved / "model_index.json").read_text())
    index["text"]["source"]["model"] = f"local-dir:{make_folder(tmp_path / 'other', seed=1)}"
    (saved / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(IdentityMismatch, match="weights"):
        PixelPipeline.from_pretrained(saved).encode_prompts(PROMPTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "DDPMPipeline"}, "'DDPMPipeline'; wanted a PixelPipeline"),
        ({"_class_name": ["evil", "PixelPipeline"]}, "wanted a PixelPipeline"),
        ({"unet": ["evil", "UNet2DConditionModel"]}, "both of diffusers"),
        ({"extra": ["diffusers", "UNet2DModel"]}, "both of diffusers"),
        ({"text": None}, "name the backbone"),
    ],
)
def test_nothing_in_a_folder_is_run(saved: Path, change: dict[str, object], message: str) -> None:
    (saved / "evil.py").write_text("raise SystemExit('it ran')")
    index = saved / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(InputError, match=message):
        PixelPipeline.from_pretrained(saved)


def test_bad_input_is_told_in_words(backbone: Backbone, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no model_index\.json"):
        PixelPipeline.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="takes no trust_remote_code"):
        PixelPipeline.from_pretrained(saved, trust_remote_code=True)
    with pytest.raises(InputError, match="got 0 prompts"):
        tiny_pipeline(backbone)([])
    (saved / "model_index.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        PixelPipeline.from_pretrained(saved)
