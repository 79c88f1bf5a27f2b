"""Load the result of `heads tune` into the pipeline that it was tuned from."""

from pathlib import Path

from embed.files import read_manifest
from embed.spec import InputError
from heads.tuning.families import Family
from heads.tuning.result import FORMAT


def load_tuned(family: Family, folder: Path) -> None:
    """Load the LoRA or the whole weights of a folder into a pipeline. Raise InputError if there are none, or they do
    not fit.

    A LoRA from elsewhere is also accepted if its file is one that diffusers writes.
    """
    name, part, pipeline = "pytorch_lora_weights.safetensors", family.part, family.pipeline
    if (folder / "tuning.json").exists():
        read_manifest(folder / "tuning.json", "tuned generator", (FORMAT,), dict)
    elif not (folder / name).exists():
        raise InputError(
            f"{folder} is not a tuned generator: it has no tuning.json and no {name}; give one of heads tune"
        )
    try:
        if (folder / part).is_dir():
            kind = type(family.module)
            tuned = kind.from_pretrained(folder, subfolder=part, use_safetensors=True)
            family.module.load_state_dict(tuned.state_dict())
        elif hasattr(pipeline, "load_lora_weights"):
            pipeline.load_lora_weights(str(folder), weight_name=name)
        else:
            family.module.load_lora_adapter(str(folder), prefix=part, weight_name=name)
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{folder} does not fit {type(pipeline).__name__}: {reason}") from None
