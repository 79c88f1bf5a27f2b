"""Store a tuned backbone as the parameters that changed: a few megabytes beside the base, and a new identity.

    tuned.json           format, the base's identity and source, the tuned identity, how it was made; written last
    delta.safetensors    the new values of the changed parameters, fp32, by their names in the whole model

`--pretrained delta:FOLDER` loads the base and then replaces these parameters.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from embed.files import atomic_write, read_manifest, write_json
from embed.spec import Identity, InputError, Source, known_fields, require_same_identity

if TYPE_CHECKING:
    import torch

    from embed.backbones.backbone import Backbone

PREFIX = "delta:"
FORMAT = 1


class TunedBase(TypedDict):
    """The backbone that was tuned."""

    identity: dict[str, Any]
    source: dict[str, Any]


class TunedManifest(TypedDict):
    """The content of tuned.json; training adds more keys."""

    format: int
    base: TunedBase
    identity: dict[str, Any]
    parameters: int
    mode: NotRequired[str]


def save_delta(
    path: Path, weights: Mapping[str, "torch.Tensor"], base: "Backbone", about: Mapping[str, object]
) -> Identity:
    """Write the new values of parameters of `base` to the folder `path` and return the tuned backbone's identity.

    `base` must hold its original weights when this is called. `about` is added to the manifest.
    """
    from safetensors.torch import save

    from embed.backbones.backbone import weights_hash

    state = base.model.state_dict()
    moved = {name: weights[name].detach().cpu().contiguous() for name in sorted(weights)}
    identity = replace(base.identity, weights=weights_hash({**state, **moved}))
    (path / "tuned.json").unlink(missing_ok=True)
    with atomic_write(path / "delta.safetensors") as file:
        file.write(save(moved))
    manifest = {
        "base": {"identity": base.identity.to_json(), "source": asdict(base.source)},
        "identity": identity.to_json(),
        "parameters": sum(tensor.numel() for tensor in moved.values()),
    }
    write_json(path / "tuned.json", {"format": FORMAT, **manifest, **about})
    return identity


def read_tuned(path: Path) -> TunedManifest:
    """Read the manifest of a tuned backbone. Raise InputError if the folder holds none."""
    return read_manifest(path / "tuned.json", "tuned backbone", (FORMAT,), TunedManifest)


def tuned_source(path: Path) -> Source:
    """Return the source that loads the tuned backbone."""
    return Source(read_tuned(path)["base"]["source"]["model"], f"{PREFIX}{path}")


def published_state(state: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """Return a state dict in the layout that OpenAI's CLIP and open_clip share, with the text tower at the top level.

    If that layout has no place for this text tower, the state dict is returned as it is, in the layout of open_clip's
    CustomTextCLIP.
    """
    text = "text."
    names = {name for name in state if name.startswith(text)}
    plain = {"positional_embedding", "text_projection", "token_embedding", "transformer", "ln_final"}
    if "text.cls_emb" in names or not all(name.split(".")[1] in plain for name in names):
        return dict(state)
    if "text.text_projection" not in names or "text.token_embedding.weight" not in names:
        return dict(state)
    return {name.removeprefix(text): tensor for name, tensor in state.items()}


def base_source(source: Source) -> Source:
    """Return the source of the backbone from which `source`, whose `pretrained` is `delta:FOLDER`, was tuned.

    Raise InputError if `source` names another model.
    """
    path = Path(str(source.pretrained).removeprefix(PREFIX))
    base = Source(**known_fields(Source, read_tuned(path)["base"]["source"]))
    if base.model != source.model:
        raise InputError(f"{path} was tuned from {base.model}: use --model {base.model}")
    return base


def apply_delta(base: "Backbone", source: Source) -> "Backbone":
    """Return `base` with the weights of `source`, whose `pretrained` is `delta:FOLDER`.

    Raise InputError if the base or the resulting weights differ from those that the folder was made with.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from embed.backbones.backbone import weights_hash

    path = Path(str(source.pretrained).removeprefix(PREFIX))
    manifest = read_tuned(path)
    wanted = Identity.from_json(manifest["base"]["identity"])
    require_same_identity(wanted, f"the base of {path}", base.identity, "the backbone that its source gives")
    parameters = dict(base.model.named_parameters())
    try:
        weights = load_file(path / "delta.safetensors")
    except (SafetensorError, FileNotFoundError) as error:
        raise InputError(f"{path}/delta.safetensors cannot be read ({error}); tune the backbone again") from None
    for name, value in weights.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise InputError(f"{path}: {name} {tuple(value.shape)} does not fit {base.identity.model}")
        parameters[name].data.copy_(value)
    identity = replace(base.identity, weights=weights_hash(base.model.state_dict()))
    tuned = Identity.from_json(manifest["identity"])
    require_same_identity(tuned, str(path), identity, "what its weights give")
    return replace(base, identity=identity, source=source)
