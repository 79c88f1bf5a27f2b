"""Turn questions into as many requests as they need, and the service's answers into those of the clients."""

import base64
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Generic, NamedTuple, TypeVar

import httpx
import numpy as np

from embed.arrays import Float32s, softmax
from embed.spec import InputError
from runtime.clients.answers import Hit, Id, ItemError, Like, Picture, Ranked, Score, ServiceError, Text, Wishes
from runtime.clients.exchange import Steps, document_of, expected

TOO_MUCH = (413, 429, 504)  # one request has too many bytes or items, or missed its deadline

Sources = Picture | Sequence[Picture | None] | None  # source pictures: one for all, or one or None for each

Answer = TypeVar("Answer", covariant=True)
Given = TypeVar("Given")
Send = Callable[..., Steps[httpx.Response]]  # (path, divisible, **arguments of httpx) posts a request


class Item(NamedTuple):
    """A picture, a prompt, or a picture with its prompt, and its source picture."""

    picture: Picture | None
    prompt: str | None
    source: Picture | None = None


@dataclass
class Question(Generic[Answer]):
    """A question about each of many items."""

    path: str
    lists: tuple[str, ...]  # lists in the answer's JSON, which together have the order of the items
    parse: Callable[[Mapping[str, Any]], Answer]
    outputs: tuple[str, ...] = ()  # the requested outputs of the bundle
    most: float = math.inf  # the most items in one request, as learned from refusals
    bundles: set[tuple[str, str]] = field(default_factory=set)  # digest and precision of the bundles that answered


def scoring(outputs: Sequence[str] | None = None) -> Question[Score]:
    if outputs is not None and not several_of(outputs):
        raise InputError("outputs is empty; wanted names of the bundle's outputs, or None")
    return Question("/v1/score", ("items",), _score, tuple(outputs or ()))


def _score(given: Mapping[str, Any]) -> Score:
    found = filled(Score, given)
    if found.outputs is None:
        return found
    return replace(found, outputs={name: filled(Score, values) for name, values in given["outputs"].items()})


def embedding() -> Question[Float32s]:
    return Question("/v1/embed", ("images", "prompts"), lambda given: np.array(given["embedding"], np.float32))


def scored_items(images: Sequence[Picture], prompts: str | Sequence[str] | None, sources: Sources = None) -> list[Item]:
    """Each picture with its prompt and its source. Raise InputError unless there is one prompt or source for all, or
    one for each picture."""
    several = [prompts] * len(images) if prompts is None or isinstance(prompts, str) else prompts
    if len(several) != len(images):
        raise InputError(f"got {len(several)} prompts for {len(images)} pictures; wanted one, or one for each")
    made_from: Sequence[Picture | None]
    if sources is None or isinstance(sources, str | bytes | os.PathLike):
        made_from = [sources] * len(images)
    else:
        made_from = sources
    if len(made_from) != len(images):
        raise InputError(f"got {len(made_from)} sources for {len(images)} pictures; wanted one, or one for each")
    return [Item(*one) for one in zip(several_of(images), several, made_from, strict=True)]


def embedded_items(images: Sequence[Picture], prompts: Sequence[str]) -> list[Item]:
    """The pictures, then the prompts."""
    return [
        *(Item(image, None) for image in several_of(images)),
        *(Item(None, prompt) for prompt in several_of(prompts)),
    ]


def several_of(given: Sequence[Given]) -> Sequence[Given]:
    """The sequence itself. Raise InputError if it is a single text or the bytes of one picture."""
    if isinstance(given, str | bytes):
        raise InputError(f"got {given[:50]!r}; wanted a list, even for a single one")
    return given


def batches(items: Iterable[Item], most: int, most_bytes: int) -> Iterator[list[Item]]:
    """Yield the items in order, in batches of at most so many items and bytes. An item that is larger is a batch of its
    own."""
    batch, size_bytes = list[Item](), 0
    for item in items:
        picture_bytes, source_bytes = _size_bytes(item.picture), _size_bytes(item.source)
        more_bytes = (
            0 if batch and item.source == batch[-1].source else source_bytes
        )  # a source that all items share is sent once
        if batch and (len(batch) == most or size_bytes + picture_bytes + more_bytes > most_bytes):
            yield batch
            batch, size_bytes, more_bytes = [], 0, source_bytes
        batch.append(item)
        size_bytes += picture_bytes + more_bytes
    if batch:
        yield batch


def _size_bytes(picture: Picture | None) -> int:
    if isinstance(picture, bytes):
        return len(picture)
    try:
        return 0 if picture is None or is_url(picture) else os.stat(picture).st_size
    except OSError:  # reading the file later raises the error again
        return 0


def is_url(picture: Picture) -> bool:
    return isinstance(picture, str) and re.match("https?://", picture, re.IGNORECASE) is not None


def with_bytes(item: Item) -> Item | ItemError:
    """The item with its files' bytes in place of their paths, or an error if one cannot be read."""
    picture, source = _read(item.picture), _read(item.source)
    if isinstance(picture, ItemError):
        return picture
    if isinstance(source, ItemError):
        return replace(source, message=f"its source picture: {source.message}")
    return Item(picture, item.prompt, source)


def _read(picture: Picture | None) -> Picture | ItemError | None:
    if picture is None or isinstance(picture, bytes) or is_url(picture):
        return picture
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "unreadable"
        return ItemError("read", reason, str(error))


def outcomes(
    send: Send, question: Question[Answer], read: Sequence[Item | ItemError]
) -> Steps[list[Answer | ItemError]]:
    """An answer or an error for each item of a batch."""
    good = [item for item in read if not isinstance(item, ItemError)]
    answers = iter((yield from _answers(send, question, good)) if good else ())
    return [item if isinstance(item, ItemError) else next(answers) for item in read]


def _answers(send: Send, question: Question[Answer], items: Sequence[Item]) -> Steps[list[Answer | ItemError]]:
    """Send the items. A request that is too much is halved, and so are later ones. A single item that is too large gets
    its own error."""
    if len(items) > question.most:
        half = len(items) // 2
        first = yield from _answers(send, question, items[:half])
        return first + (yield from _answers(send, question, items[half:]))
    order, form = _form(items)
    asked = [("outputs", (None, name)) for name in question.outputs]
    response = yield from send(question.path, len(items) > 1, files=[*form, *asked])
    try:
        document = document_of(response)
    except ServiceError as error:
        if error.status in TOO_MUCH and len(items) > 1:
            question.most = min(question.most, len(items) // 2)
            return (yield from _answers(send, question, items))
        if error.status == 413:
            return [ItemError("limits", error.reason, error.message)]
        raise
    with expected(response):
        question.bundles.add((document["bundle"], document["precision"]))
        given = [answer for name in question.lists for answer in document[name]]
        found = {i: _outcome(question, answer) for i, answer in zip(order, given, strict=True)}
    if len(question.bundles) > 1:
        message = (
            "the service changed to another bundle meanwhile, whose answers cannot be compared; send the request again"
        )
        raise ServiceError(response.status_code, "another bundle", message, response.request.headers["x-request-id"])
    return [found[i] for i in range(len(items))]


def _form(items: Sequence[Item]) -> tuple[list[int], list[tuple[str, tuple[str | None, bytes | str]]]]:
    """The order in which the service will answer, and the fields of the form: first files, then addresses, then
    prompts."""
    order = sorted(range(len(items)), key=lambda i: (bytes, str, NoneType).index(type(items[i].picture)))
    pictures = [items[i].picture for i in order]
    files = [("images", (str(i), picture)) for i, picture in enumerate(pictures) if isinstance(picture, bytes)]
    urls = [("urls", (None, picture)) for picture in pictures if isinstance(picture, str)]
    prompts = [prompt for i in order if (prompt := items[i].prompt) is not None]
    if None not in pictures and len(set(prompts)) == 1:  # one prompt for all pictures
        del prompts[1:]
    return order, [*files, *urls, *(("prompts", (None, prompt)) for prompt in prompts), *_sources(items, order)]


def _sources(items: Sequence[Item], order: Sequence[int]) -> list[tuple[str, tuple[str | None, bytes | str]]]:
    """The fields of the source pictures: none, one for all, or one for each picture with an empty text for none."""
    given = [items[i].source for i in order]
    if all(source == given[0] for source in given):
        del given[1:]
    if not any(given):
        return []
    parts = [(str(i), one) if isinstance(one, bytes) else (None, str(one or "")) for i, one in enumerate(given)]
    return [("sources", part) for part in parts]


def _outcome(question: Question[Answer], given: Mapping[str, Any]) -> Answer | ItemError:
    return question.parse(given) if given["ok"] else filled(ItemError, given["error"])


def filled(kind: Callable[..., Answer], given: Mapping[str, Any]) -> Answer:
    """A dataclass from the JSON fields with its names. Other fields, from a newer service, are ignored."""
    names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in given.items() if name in names})


def ranked(scores: Sequence[Score | ItemError]) -> list[Ranked | ItemError]:
    """Ranks and probabilities as /v1/rank would give for all pictures in one request. Ties keep their order."""
    good = {i: score for i, score in enumerate(scores) if isinstance(score, Score)}
    order = sorted(good, key=lambda i: -good[i].score)
    logits = np.array([one.score if one.calibrated_score is None else one.calibrated_score for one in good.values()])
    probabilities = dict(zip(good, softmax(logits).tolist(), strict=True))
    places = {i: place for place, i in enumerate(order, start=1)}
    return [
        Ranked(**vars(score), rank=places[i], probability=probabilities[i]) if isinstance(score, Score) else score
        for i, score in enumerate(scores)
    ]


def similar_body(likes: Sequence[Like], dislikes: Sequence[Like], wishes: Wishes) -> dict[str, object]:
    """The JSON body for /v1/similar. Raise OSError for a picture's file that cannot be read."""
    sides = {"likes": likes, "dislikes": dislikes}
    return {side: [_named(like) for like in several_of(given)] for side, given in sides.items()} | dict(wishes)


def _named(like: Like) -> dict[str, object]:
    if isinstance(like, Text | Id):
        return dict(vars(like))
    if isinstance(like, np.ndarray):
        return {"vector": like.tolist()}
    if is_url(like):
        return {"url": like}
    data = like if isinstance(like, bytes) else Path(like).read_bytes()
    return {"image": base64.b64encode(data).decode()}


def hits_of(response: httpx.Response) -> list[Hit]:
    document = document_of(response)
    with expected(response):
        return [filled(Hit, hit) for hit in document["hits"]]
