"""`python -m heads generate`. It is in this package because it also scores with bundles, which `heads` may not
import."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from embed.cli.console import progress, table
from embed.config import DeviceConfig
from embed.files import read_lines, write_json
from embed.options import Range
from embed.spec import InputError
from heads.generating.config import GenerateConfig, parse_seeds
from heads.generating.server import SourceLimits

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

    from heads.generating.best import Score

PLAIN = "{prompt}"


def generate(
    pipeline: str,
    /,
    *,
    prompts: Path | None = None,
    templates: Path | None = None,
    seeds: str = "0..3",
    out: Path | None = None,
    best: Path | None = None,
    lora: Path | None = None,
    making: GenerateConfig,
    device: DeviceConfig,
    serve: bool = False,
    host: str = "127.0.0.1",
    port: Annotated[int, Range(0, 65_535)] = 8100,
    limits: SourceLimits,
) -> dict[str, object]:
    """Generate pictures of prompts, and choose the best ones with a head.

    Pictures that are in the folder already are kept, so a run that was stopped can be continued. With --serve, pictures
    are generated for requests over HTTP.

    Example:
        plaudit heads generate sd --prompts prompts.txt --best bundle --out made

    Args:
        pipeline: A diffusers pipeline: a folder, or a name on a hub.
        prompts: A file of prompts, one a line.
        templates: A file of templates, one a line, each with {prompt} in it. By default the prompt itself.
        seeds: The seeds of the pictures for each prompt in a template, such as 0..15 or 1,5,9.
        out: The folder to write the pictures to.
        best: Choose the best with a bundle of `python -m export onnx`, or with a head of `python -m heads train`.
        lora: A folder of `python -m heads tune` to generate with.
        serve: Answer POST /generate instead, until SIGTERM. Requests need one of the bearer tokens in $PLAUDIT_TOKEN.
        host: The address for --serve to listen on.
        port: The port for --serve to listen on, or 0 for any free port.
    """
    if serve:
        if prompts or out or best:
            raise InputError("--serve takes no --prompts, --out or --best, because it generates what requests ask for")
        return _serve(pipeline, lora, making, device, host, port, limits)
    if prompts is None or out is None:
        raise InputError("nothing to do; wanted --prompts FILE and --out FOLDER, or --serve")
    from runtime.scoring.best_of_n import read_templates

    lines = read_lines(prompts, "prompt")
    forms = list(read_templates(templates)) if templates else [PLAIN]
    numbers = parse_seeds(seeds)
    from heads.generating import pictures
    from heads.generating.best import choose, rates, score_all

    score = None if best is None else _scorer(best, device.device)  # first, because generating may take hours
    pictures.begin(out, pipeline, None if lora is None else str(lora), lines, forms, making)
    candidates = pictures.plan(lines, forms, numbers)
    made = 0
    if missing := [one for one in candidates if not (out / one.file).exists()]:
        loaded, settled = _load(pipeline, lora, making, device)
        made = pictures.generate(loaded, missing, out, settled, progress)
    print(f"{len(candidates)} pictures of {len(lines)} prompts in {out}, {made} of them new")
    document: dict[str, Any] = {"out": str(out), "pictures": len(candidates), "new": made}
    if score is None:
        return document
    scores = score_all(score, lines, candidates, out, progress)
    chosen = choose(lines, forms, candidates, scores)
    found = rates(forms, candidates, scores)
    document |= {
        "by": str(best),
        "best": [asdict(one) for one in chosen],
        "templates": [asdict(one) | {"over_first": one.over_first and one.over_first.to_json()} for one in found],
    }
    write_json(out / "best.json", document)
    rows = [[one.prompt[:40], one.image, f"{one.score:.4f}", f"{one.mean:.4f}", one.candidates] for one in chosen]
    print(*table(["prompt", "best", "score", "mean", "of"], rows), sep="\n")
    if len(forms) > 1:
        print(*_templates(found), sep="\n")
    return document


def _templates(found: Sequence[Any]) -> list[str]:
    from heads.report.figures import told

    rows = []
    for one in sorted(found, key=lambda one: -one.best):
        over = "" if one.over_first is None else told(one.over_first, ".3f")
        rows.append([one.template[:60], f"{one.best:.3f}", f"{one.wins:.3f}", over])
    header = ["template", "has the best", "wins", "over the first"]
    return [*table(header, rows), "wins count pairs of pictures of one prompt; 95 % intervals are over prompts"]


def _load(
    name: str, lora: Path | None, making: GenerateConfig, device: DeviceConfig
) -> "tuple[DiffusionPipeline, GenerateConfig]":
    """Return the pipeline, and the options for making pictures with it."""
    from embed.devices import resolve_device
    from heads.tuning.loading import load_family

    family = load_family(name, resolve_device(device.device), making.size, making.precision == "bf16")
    if lora is not None:
        from heads.generating.tuned import load_tuned

        load_tuned(family, lora)
    return family.pipeline, replace(making, guidance=making.guidance or family.guidance)


def _scorer(best: Path, device: str) -> "Score":
    """Return a function that scores pictures for a prompt: a bundle with onnxruntime, a head with torch."""
    if (best / "bundle.json").exists():
        from runtime.scoring.scorer import Scorer

        scorer = Scorer.load(best)
        return lambda prompt, paths: scorer.score_items(prompt, paths).scores
    from heads.generating.rewarded import scores_of
    from heads.reward.module import Reward

    reward = Reward.load(best, device)
    return lambda prompt, paths: scores_of(reward, prompt, paths)


def _serve(
    name: str,
    lora: Path | None,
    making: GenerateConfig,
    device: DeviceConfig,
    host: str,
    port: int,
    limits: SourceLimits,
) -> dict[str, object]:
    try:
        import uvicorn

        from runtime.service.network.connections import bounded
        from runtime.service.network.listening import listen
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; run: pip install 'plaudit[serve]'") from None
    from heads.generating.pictures import make
    from heads.generating.server import create_app
    from runtime.cli.serve import TOKEN_VARIABLE, read_tokens, require_token

    tokens = read_tokens(None, TOKEN_VARIABLE)
    require_token(host, tokens, no_token=False)
    with closing(listen(host, port)) as socket:  # first, because loading takes long
        pipeline, settled = _load(name, lora, making, device)

        def pictures(texts: Sequence[str], seeds: Sequence[int]) -> "list[Image]":
            found: list[Image] = []
            for start in range(0, len(texts), settled.batch_size):
                some = slice(start, start + settled.batch_size)
                found += make(pipeline, texts[some], seeds[some], settled)
            return found

        app = create_app(pictures, limits, tokens)
        http = bounded(max_connections=64, max_per_address=64)
        settings = uvicorn.Config(app, http=http, log_config=None, access_log=False, server_header=False)
        where = f"[{host}]" if ":" in host else host
        print(f"generating with {name} on {where}:{socket.getsockname()[1]}; stop with Ctrl-C", flush=True)
        uvicorn.Server(settings).run([socket])
    return {"pipeline": name, "stopped": True}
