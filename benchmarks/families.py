"""Export every family of backbones and compare it with torch on real pictures: difference, time and memory.

    python benchmarks/families.py --images FOLDER... [--models NAME...] [--precision fp32,fp16,int8] [--samples 200]

Backbones have their full shapes and random weights (the starter has its own): whether a graph is right does not depend
on the weights, and nothing is downloaded. A tokenizer that would come from the hub is replaced by a small one that is
trained here. The score is that of a fusion head with random weights. Each model runs in a separate process.
The last line is one JSON document. ViT-L/14 takes some minutes and 6 GB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path[0] = str(Path(__file__).parents[1])  # not this folder, which holds another `embed`
from embed.backbones.backbone import Backbone  # noqa: E402
from embed.backbones.load import load_backbone  # noqa: E402
from embed.cli.console import table  # noqa: E402
from embed.inputs.fetch import some_pictures  # noqa: E402
from embed.spec import Source  # noqa: E402
from export.bundle_writer import export_bundle  # noqa: E402
from export.config import ExportConfig  # noqa: E402
from heads.config import PROMPTS, HeadConfig  # noqa: E402
from heads.models import build_head  # noqa: E402

MODELS = ("starter", "ViT-B-32", "RN50", "convnext_base_w", "ViT-B-16-SigLIP", "roberta-ViT-B-32", "ViT-L-14")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of pictures")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--precision", type=lambda names: tuple(names.split(",")), default=("fp32",))
    parser.add_argument("--samples", type=int, default=200, help="pictures in all, the same number from each folder")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the model of this process
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args)))
        return
    rows, results = [], {}
    for model in args.models:
        done = subprocess.run([sys.executable, *sys.argv, "--one", model], stdout=subprocess.PIPE, text=True)
        results[model] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": True}
        for precision, figures in results[model].get("parity", {}).items():
            scores = figures["scores"]
            cosine = min(vectors["cosine_min"] for vectors in figures["vectors"].values())
            rows.append(
                [
                    f"{model} {precision}",
                    f"{scores['max_score_difference']:.1e}",
                    f"{scores['score_spread']:.2g}",
                    f"{cosine:.8f}",
                    f"{scores['flips']:.3%}",
                    f"{results[model]['export_s']:.0f}",
                    f"{results[model]['peak_mb']:.0f}",
                ]
            )
    header = ["backbone", "score off by", "spread of scores", "lowest cosine", "pairs flipped", "seconds", "peak MB"]
    print("", *table(header, rows), sep="\n", file=sys.stderr)
    print(json.dumps(results))


def load(name: str) -> Backbone:
    """Return the backbone with random weights from a seed, or the starter."""
    import open_clip

    if name == "starter":
        return load_backbone(Source(name))
    config = open_clip.get_model_config(name)
    if not config["text_cfg"].get("hf_tokenizer_name"):
        return load_backbone(Source(name, "random:0"))
    with tempfile.TemporaryDirectory() as folder:
        return load_backbone(stand_in(config, Path(folder)))


def stand_in(config: dict[str, Any], folder: Path) -> Source:
    """Write a checkpoint of the configuration to `folder`, which needs nothing from the hub."""
    import open_clip
    from safetensors.torch import save_file
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, RobertaConfig

    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(PROMPTS, vocab_size=600, special_tokens=list(special.values()), show_progress=False)
    trained.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained.to_str()), **special).save_pretrained(folder)
    text = config["text_cfg"]
    text["hf_tokenizer_name"] = str(folder)
    if "hf_model_name" in text:
        RobertaConfig().save_pretrained(folder)  # roberta-base
        text |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    config.pop("custom_text", None)
    torch.manual_seed(0)
    save_file(open_clip.CustomTextCLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return Source(f"local-dir:{folder}")


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Export one model and return its parity, seconds and peak memory."""
    backbone = load(name)
    head = build_head(HeadConfig("fusion", backbone.identity.dim)).eval()
    generator = torch.Generator().manual_seed(0)
    list(head.parameters())[-2].data.normal_(0, 0.05, generator=generator)  # otherwise every score is zero
    manifest = {"head": {"kind": "fusion"}, "identity": backbone.identity.to_json()}
    share = -(-args.samples // len(args.images))
    pictures = tuple(path for folder in args.images for path in some_pictures(folder, share))
    # Random weights say nothing about the order of pictures, so any share of flips is accepted and printed.
    config = ExportConfig(args.precision, pictures=pictures[: args.samples], max_flips=0.99)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(Path(folder) / "bundle", backbone, head, manifest, config)
    status = Path("/proc/self/status").read_text()
    peak_kb = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "parity": bundle["parity"]["precisions"],
        "export_s": time.perf_counter() - start,
        "peak_mb": int(peak_kb) / 1000,
    }


if __name__ == "__main__":
    main()
