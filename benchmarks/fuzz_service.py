"""Send mutated bodies of every kind to every route of the service: none may be answered with 500.

    python benchmarks/fuzz_service.py BUNDLE --catalogue CATALOGUE --count 5000

It starts `python -m runtime serve` on loopback and posts `count` bodies to the routes of its own OpenAPI description:
JSON with odd values, forms with odd parts, both with bytes flipped, cut and repeated, and content types that do not
fit. Each must be answered, with 2xx or 4xx (or 503, 504 and 507, which say what is lacking), and a valid request must
be answered afterwards. The body of a fault is printed. The last line of stdout is one JSON document; the exit code is 1
if there was a fault."""

import argparse
import base64
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # not this folder, which holds another `embed`

from benchmarks.attacks.service import AUTHORIZED, Service, picture  # noqa: E402
from benchmarks.fuzz_images import mutated  # noqa: E402

SKIPPED = "/admin/"  # reloading a bundle takes long and reads no body
ALLOWED = {503, 504, 507}
BOUNDARY = "xxboundaryxx"
JSON, FORM = "application/json", f"multipart/form-data; boundary={BOUNDARY}"
FIELDS = ("image", "images", "prompt", "prompts", "url", "urls", "likes", "dislikes", "k", "where", "x" * 300)
TYPES = (
    *(JSON, FORM, "", "text/plain", "application/json; charset=utf-7", "application/json\t;;="),
    *("multipart/form-data", FORM + "; charset=rot13", "multipart/form-data; boundary=" + "b" * 300),
    "application/x-www-form-urlencoded",
)
# Values that make no sense in a request.
ODD: Sequence[Any] = (
    *(None, True, 0, -1, 1 << 31, 1 << 63, 1 << 64, 10**400, -0.0, 1e308, 1e-320, float("nan"), float("inf")),
    *([], {}, [[]], [None], {"": {}}, [1] * 100),
    *("", "\0", "\ud800", "\udfff\ud800", "a" * 5000, "ﷺ" * 500, "𝔘" * 3000, "\x1b[31m\r\n", "%s%n{0}", "=" * 100),
    *("data:image/png;base64,", "data:,x", "http://[::1", "http://127.0.0.1:1/a.png", "file:///etc/passwd", "////"),
)
WHERE = (
    *("a = 1", "category = 'x' and", "((((" * 40, "count < 1e999", "year >= '2024-13-45'", "not not not a is null"),
    *("key in ('a', 1, null)", "'" * 9, "\"count\" = 'é'", "1 = 1 or 2", "count between 1 and", "💥 = 1"),
)
DISPOSITIONS = ("form-data", "x", '"')
NAMES = (*('; filename="a.png"',) * 9, "; filename*=utf-8''%ff", '; filename="\\"', '; filename=""')
HEADS = ("", "", "Content-Type: image/png\r\n", "Content-Transfer-Encoding: base64\r\n", "a" * 9000 + ": x\r\n")


def sound_requests() -> dict[str, list[Any]]:
    """Return requests by the route that they are for, valid or nearly valid."""
    image = base64.b64encode(picture()).decode()
    like = {"likes": [{"text": "a dog"}], "k": 3, "popularity_weight": 0.3}
    scored = [
        {"prompt": "a cat", "images": [image, "bm8gcGljdHVyZQ=="]},
        {"prompt": "a", "images": [{"url": "http://example.com/a.png"}, image]},
    ]
    return {
        "/v1/score": [*scored, {"prompt": ["a", "b"], "images": [image, image]}],
        "/v1/rank": scored,
        "/v1/embed": [{"images": [image], "prompts": ["a red square", "é"]}],
        "/v1/similar": [
            like,
            {**like, "dislikes": [{"vector": [0.5] * 32}, {"id": "p3.png"}], "where": "creator = 'x'", "dedup": 0.9},
            {**like, "likes": [{"image": image}], "group_by": "creator", "per_group": 2, "min_percentile": 50},
            {"likes": [{"text": "a"}], "front": True},
        ],
    }


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container and key that holds a value, at any depth."""
    found = []
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found += [(value, key), *places(value[key])]
    return found


def odd_json(rng: random.Random, seeds: list[Any]) -> bytes:
    """Return a request with some of its values replaced, removed, renamed or repeated."""
    value = deepcopy(rng.choice(seeds))
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice(places(value) or [([0], 0)])
        odd = rng.choice(WHERE) if key == "where" and rng.random() < 0.8 else deepcopy(rng.choice(ODD))
        match rng.randrange(5):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[rng.choice((*FIELDS, "\ud800", ""))] = odd
            case 2 if isinstance(container, list):
                container *= rng.choice((2, 70))
            case _:
                container[key] = odd
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", rng.choice(("surrogatepass", "replace")))


def odd_form(rng: random.Random, seeds: list[Any]) -> bytes:
    """Return a form of some parts, with odd names, headers and values."""
    parts = []
    for _ in range(rng.choice((0, 1, 2, 3, 3, 3, 8, 80))):
        name = rng.choice(FIELDS[:4] if rng.random() < 0.8 else FIELDS)
        disposition = f'form-data; name="{name}"' if rng.random() < 0.95 else rng.choice(DISPOSITIONS)
        if name.startswith("image") or rng.random() < 0.1:
            disposition += rng.choice(NAMES)
        head = f"Content-Disposition: {disposition}\r\n" + (rng.choice(HEADS) if rng.random() < 0.1 else "")
        value = picture() if name.startswith("image") and rng.random() < 0.5 else b"a cat"
        if rng.random() < 0.2:
            value = rng.choice((b"", b"\xff\xfe", str(rng.choice(ODD)).encode("utf-8", "replace")))
        parts.append(f"--{BOUNDARY}\r\n{head}\r\n".encode() + value + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def odd_bytes(rng: random.Random, seeds: list[Any]) -> bytes:
    """Return bytes of either kind, flipped, cut, spliced and repeated."""
    of = [rng.choice((odd_json, odd_form))(rng, seeds), json.dumps(rng.choice(seeds)).encode()]
    return mutated(of, rng.randrange(1 << 30), rng.randrange(2))


KINDS: tuple[tuple[str, Callable[[random.Random, list[Any]], bytes]], ...] = (
    (JSON, odd_json),
    (FORM, odd_form),
    (JSON, odd_bytes),
    (FORM, odd_bytes),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--catalogue", type=Path)
    parser.add_argument("--count", type=int, default=5000, help="number of bodies (default 5000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default 0)")
    options = parser.parse_args()
    rng, sound = random.Random(options.seed), sound_requests()
    anything = [request for requests in sound.values() for request in requests]
    service = Service(options.bundle, *(["--catalogue", str(options.catalogue)] if options.catalogue else []))
    outcomes: Counter[str] = Counter()
    faults = []
    try:
        described = json.loads(service.ask("GET", "/openapi.json")[1])["paths"]
        routes = [(method.upper(), path) for path, methods in described.items() for method in methods]
        routes = [(method, path) for method, path in routes if not path.startswith(SKIPPED)]
        posts = [route for route in routes if route[0] == "POST"]
        for i in range(options.count):
            method, path = rng.choice(posts) if rng.random() < 0.95 else rng.choice([*routes, ("POST", "/v1/nothing")])
            kind, make = KINDS[i % len(KINDS)]
            body = make(rng, sound.get(path, anything) if rng.random() < 0.8 else anything)
            headers = {**AUTHORIZED, "Content-Type": kind if rng.random() < 0.9 else rng.choice(TYPES)}
            status, answer = service.ask(method, path, body, headers)
            outcomes[f"{path} {status}"] += 1
            if not (200 <= status < 500 or status in ALLOWED):
                faults.append({"route": f"{method} {path}", "type": headers["Content-Type"], "status": status})
                print(method, path, status, headers["Content-Type"], body[:500], answer[:300], sep="\n  ", flush=True)
        if service.score() != 200:
            faults.append({"route": "a sound request afterwards"})
    finally:
        service.stop()
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:6} {outcome}")
    print(json.dumps({"count": options.count, "seed": options.seed, "outcomes": outcomes, "faults": faults}))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
