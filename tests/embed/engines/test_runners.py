import numpy as np
import pytest
import torch

from embed.engines.runners import TORCH_AT_ONCE, cast, multiplies_bf16, torch_runner


class Tower(torch.nn.Module):
    """Two convolutions, and two features of uint8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(8, 6, 3, 2))
        self.seen: list[int] = []

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.append(len(pixels))
        x = self.trunk(pixels.permute(0, 3, 1, 2).float() / 255)
        return x.mean(dim=(2, 3)), x.amax(dim=(2, 3))


def test_a_convolution_trunk_sees_few_pictures_at_once_and_gives_what_it_gives_for_all() -> None:
    torch.manual_seed(0)
    tower = Tower().eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2 * TORCH_AT_ONCE + 3, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        whole = [output.numpy() for output in tower(torch.from_numpy(pixels))]
    tower.seen.clear()
    parts = torch_runner(tower, "fp32", "cpu")(pixels)
    assert tower.seen == [TORCH_AT_ONCE, TORCH_AT_ONCE, 3]
    for part, expected in zip(parts, whole, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", "meta"])  # as on CUDA, but with nothing computed
def test_convolutions_have_their_channels_innermost_like_the_pixels(device: str) -> None:
    tower = Tower()
    torch_runner(tower, "fp32", device)
    weight = tower.trunk[2].weight
    assert weight.device.type == device and weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "device, capabilities, expected",
    [("cpu", {"avx512_f": True}, False), ("cpu", {"avx512_bf16": True}, True), ("cuda", {}, True)],
)
def test_a_cpu_multiplies_bfloat16_if_it_has_instructions_for_it(
    device: str, capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert multiplies_bf16(device) == expected


def test_a_cast_leaves_the_tower_itself_as_it_is() -> None:
    tower = Tower()
    assert cast(tower, "fp32") is tower
    assert {p.dtype for p in cast(tower, "bf16").parameters()} == {torch.bfloat16}
    assert {p.dtype for p in tower.parameters()} == {torch.float32}
