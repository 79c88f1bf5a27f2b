"""Files of weights: none runs code, and what is none says what it is."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from embed.backbones.state_dicts import read_state_dict
from embed.spec import InputError


def test_torchscript_is_refused_and_its_conversion_loads(tmp_path: Path) -> None:
    class Holder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("input_resolution", torch.tensor(32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    path = tmp_path / "archive.pt"
    with pytest.warns(FutureWarning):
        torch.jit.script(Holder()).save(str(path))
    with pytest.raises(InputError, match="TorchScript archive") as caught:
        read_state_dict(path)
    command = str(caught.value).partition('python -c "')[2].rstrip('"')
    with pytest.warns(FutureWarning):
        exec(command)  # the line that the error tells the user to run
    assert set(read_state_dict(tmp_path / "archive.tensors.pt")) == {"input_resolution"}


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("bomb_went_off"),))


def test_no_code_from_a_pickle_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"x": torch.zeros(1)}, "args": Bomb()}, "zip.pt")
    Path("old.pth").write_bytes(pickle.dumps({"args": Bomb()}, protocol=2))
    for name in ("zip.pt", "old.pth"):
        with pytest.raises(InputError, match="cannot be read as plain tensors"):
            read_state_dict(Path(name))
    assert not Path("bomb_went_off").exists()


def test_what_is_no_state_dict_says_what_it_is(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "nested.pt")
    torch.save(torch.zeros(1), tmp_path / "tensor.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"123")
    (tmp_path / "weights.npz").write_bytes(b"123")
    for name, expected in {
        "nested.pt": "it holds model, epoch",
        "tensor.pt": "it holds Tensor",
        "broken.safetensors": "cannot be read",
        "weights.npz": "wanted one of .safetensors",
    }.items():
        with pytest.raises(InputError, match=expected):
            read_state_dict(tmp_path / name)
