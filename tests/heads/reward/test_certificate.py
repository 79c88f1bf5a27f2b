"""The certificate says how far the reward is from the uint8 path, on real files."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from reward_tiny import PROMPTS, make_head, pictures, write_head
from torch import Tensor
from torch.nn import functional as F

from embed.backbones.backbone import Backbone
from embed.spec import InputError, Preprocess
from heads.cli.main import main
from heads.config import HeadConfig
from heads.reward import certificate, encoder
from heads.reward.certificate import Certificate, certify
from heads.reward.module import Reward
from heads.store.disk import load_head, load_manifest

FUSION = HeadConfig("fusion", 16, 32, hidden=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine pictures of three sizes, one of them on its side by its metadata, and a file that is none."""
    (tmp_path / "pictures").mkdir()
    for i, size in enumerate([(50, 70), (40, 40), (90, 33)] * 3):
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 0 else 1
        Image.fromarray(pictures(9, *size)[i]).save(tmp_path / "pictures" / f"{i}.png", exif=exif)
    (tmp_path / "pictures" / "none.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


def measured(backbone: Backbone, folder: Path, dtype: torch.dtype = torch.float32) -> Certificate:
    exact, reward = (Reward(backbone, make_head(FUSION), dtype=one) for one in (torch.float32, dtype))
    return certify(reward, exact, sorted(folder.iterdir()), PROMPTS)


def test_the_reward_is_the_uint8_path(backbone: Backbone, folder: Path) -> None:
    found = measured(backbone, folder)
    assert (found.pictures, found.unreadable, found.prompts, found.pairs) == (9, 1, 3, 108)
    assert found.equal_pixels == 1 and found.flips == 0 and found.min_cosine > 1 - 1e-6
    assert found.max_score_difference <= 1e-4 * found.score_deviation


def test_another_way_to_resize_shows(backbone: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def squashed(pixels: Tensor, spec: Preprocess, rounding: bool = True) -> Tensor:
        return 255 * F.interpolate(pixels, spec.size, mode="bicubic").clamp(0, 1)

    monkeypatch.setattr(encoder, "preprocess", squashed)
    monkeypatch.setattr(certificate, "in_tensors", squashed)
    found = measured(backbone, folder)
    assert found.equal_pixels < 0.5 and found.min_cosine < 1 - 1e-5 and found.flips > 0
    assert found.max_score_difference > 1e-2 * found.score_deviation


def test_half_precision_shows(backbone: Backbone, folder: Path) -> None:
    found = measured(backbone, folder, torch.bfloat16)
    assert found.equal_pixels == 1 and 1e-4 < found.max_score_difference / found.score_deviation < 0.2


def test_it_wants_two_pictures(backbone: Backbone, tmp_path: Path) -> None:
    reward = Reward(backbone, make_head(FUSION))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="0 of 1 pictures can be read"):
        certify(reward, reward, [tmp_path / "a.png"], PROMPTS)


def test_the_command_stores_it_with_the_head(
    backbone: Backbone, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = write_head(tmp_path / "head", backbone, FUSION)
    (tmp_path / "prompts.txt").write_text("plum\n\npear\n")
    assert main(["reward", str(head), "--images", str(folder), "--prompts", str(tmp_path / "prompts.txt")]) == 0
    told = capsys.readouterr()
    assert "equal pixels                          100.0000%" in told.out and "0.0000% of 72" in told.out
    assert "1 of 10 pictures cannot be read" in told.err
    assert main(["reward", str(head), "--images", str(folder), "--precision", "bf16", "--samples", "5"]) == 0
    stored = load_manifest(head)["reward"]
    assert set(stored) == {"fp32", "bf16"} and stored["fp32"]["pairs"] == 72 and stored["fp32"]["flips"] == 0
    load_head(head)  # which it still is
    (tmp_path / "prompts.txt").write_text("\n")
    assert main(["reward", str(head), "--images", str(folder), "--prompts", str(tmp_path / "prompts.txt")]) == 2
    assert "holds no prompt" in capsys.readouterr().err
