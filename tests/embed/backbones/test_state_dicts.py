"""Files of weights: none runs code, and what is none says what it is."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from embed.backbones.state_dicts import fit, read_state_dict
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
    torch.save({"model": {"a": 1}, "epoch": 3}, tmp_path / "nested.pt")
    torch.save({"model": {"a": torch.zeros(1)}, "ema": {"a": torch.zeros(1)}}, tmp_path / "two.pt")
    torch.save(torch.zeros(1), tmp_path / "tensor.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"123")
    (tmp_path / "weights.npz").write_bytes(b"123")
    for name, expected in {
        "nested.pt": "it holds model, epoch",
        "two.pt": "it holds several sets of named tensors: model, ema",
        "tensor.pt": "it holds Tensor",
        "broken.safetensors": "cannot be read",
        "weights.npz": "wanted one of .safetensors",
    }.items():
        with pytest.raises(InputError, match=expected):
            read_state_dict(tmp_path / name)


STATE = {"visual.a": torch.ones(2), "text.b": torch.zeros(3), "logit_scale": torch.ones(())}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}},
        {"state_dict": prefixed("module."), "state_dict_ema": STATE},
        prefixed("_orig_mod."),
        {"state_dict": prefixed("module._orig_mod.")},
        {"state_dict": prefixed("model."), "epoch": 1, "pytorch-lightning_version": "2.0"},
        {"module": STATE, "ds_config": {"a": 1}, "dtype": torch.float16},
        {"model": STATE, "epoch": 1},
        {"n_averaged": torch.tensor(5), **prefixed("module.")},
        {"initted": torch.tensor(1), "step": torch.tensor(9), **prefixed("ema_model.")},
    ],
)
def test_weights_are_found_however_a_trainer_wraps_them(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "weights.pt")
    found = read_state_dict(tmp_path / "weights.pt")
    assert found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def shards(folder: Path, weight_map: dict[str, str]) -> Path:
    for file in {"model-1.safetensors", "model-2.safetensors"} & set(weight_map.values()):
        save_file({name: STATE[name] for name, at in weight_map.items() if at == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    first, second = "model-1.safetensors", "model-2.safetensors"
    found = read_state_dict(shards(tmp_path, {"visual.a": first, "text.b": second, "logit_scale": second}))
    assert found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)
    (tmp_path / second).unlink()
    with pytest.raises(InputError, match=r"names model-2.safetensors, but no such file is beside it"):
        read_state_dict(tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize(
    "text", ["{}", "[", '{"weight_map": {"a": "../outside.safetensors"}}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, text: str) -> None:
    save_file(STATE, tmp_path / "outside.safetensors")
    (tmp_path / "in").mkdir()
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(InputError):
        read_state_dict(index)


def test_a_prefix_that_not_all_names_share_is_named() -> None:
    model = torch.nn.Linear(2, 3)
    mixed = {f"net.{name}": tensor for name, tensor in model.state_dict().items()} | {"loss.weight": torch.zeros(1)}
    with pytest.raises(InputError, match=r"begin with 'net\.', while others do not: save only these"):
        fit(model, mixed, "tiny")
