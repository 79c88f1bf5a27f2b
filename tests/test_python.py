"""The functions of `plaudit`, used as a notebook would: from a table and pictures to scores, all in memory but for what
each step writes."""

import inspect
import re
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from doc_pages import blocks
from python_tiny import ROWS, tiny_model, write_likes

import plaudit
from embed.config import EmbeddingConfig
from embed.inputs import shown
from embed.jobs.embedded import Embedded, EmbeddingOptions
from embed.options import Internal, hints_of, metadata
from embed.spec import InputError
from export.exported import Exported
from heads.api.calls import HeadOptions
from heads.api.choices import known_options
from heads.api.results import Evaluation, Trained
from runtime.catalogue.queries import find
from runtime.catalogue.writer import build
from runtime.config import IndexConfig, PopularityConfig, Wish

SIGNATURES = {
    "embed": "tables out model pretrained images_root format columns features engine precision device limits progress",
    "train": "cache data out head loss images_root format columns max_missing weights split_by folds test_fraction seed"
    " min_ratio device overwrite progress",
    "evaluate": "head cache data images_root format columns max_missing all_rows strict min_ratio baselines uncertainty"
    " prior_by slice_by report progress",
    "export": "head out precisions images samples prompts max_flips decoding text_search names clip_similarity blends"
    " space head_only overwrite progress",
    "score": "bundle data prompt image_column prompt_column source_column images_root outputs columns progress",
}


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_the_arguments_are_those_of_before_and_described(name: str) -> None:
    function = getattr(plaudit, name)
    parameters = dict(inspect.signature(function).parameters)
    options = parameters.pop("options", None)
    assert list(parameters) == SIGNATURES[name].split()
    hints = get_type_hints(function)
    assert {*parameters, "return"} <= hints.keys()
    described = re.findall(r"^    (\w+): ", inspect.getdoc(function) or "", re.MULTILINE)
    assert described == [*parameters, *(["options"] if options else [])]


def test_keyword_options_are_the_fields_of_the_configs() -> None:
    known = {name: hint for name, hint in known_options().items() if name not in ("head", "loss")}
    assert HeadOptions.__annotations__.keys() == known.keys()
    own = {name for name, hint in hints_of(EmbeddingConfig).items() if not metadata(hint, Internal)}
    given = set(inspect.signature(plaudit.embed).parameters) | EmbeddingOptions.__annotations__.keys()
    assert own - given == {"ray_address", "ray_actors", "num_gpus"}
    assert EmbeddingOptions.__annotations__.keys() <= {field.name for field in fields(EmbeddingConfig)}


@dataclass(frozen=True)
class Made:
    """What the steps made of a table in memory."""

    folder: Path
    table: pd.DataFrame
    cache: Embedded
    head: Trained
    report: Evaluation
    bundle: Exported


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("python")
    table = write_likes(folder)
    cache = plaudit.embed(table, folder / "cache", images_root=folder / "pictures", model=tiny_model(folder))
    head = plaudit.train(cache, table, folder / "head", head="kernel", folds=3, penalty=1.0)
    report = plaudit.evaluate(head)
    bundle = plaudit.export(head, folder / "bundle", images=folder / "pictures", samples=8, max_flips=0.5)
    return Made(folder, table, cache, head, report, bundle)


def pictures_in(html: str) -> list[str]:
    """The names of the pictures that a page shows, each of which is embedded."""
    assert html.count("<img") == html.count('src="data:image/webp;base64,')
    return re.findall(r'alt="([^"]*)"', html)


def test_a_table_in_memory_goes_the_whole_path(made: Made) -> None:
    assert made.cache.to_pandas()["image_path"].tolist() == made.table["image"].tolist()
    assert len(made.cache.failures()) == 0 and made.cache.to_arrow("prompts").num_rows == ROWS
    assert repr(made.cache) == "\n".join(made.cache.lines) and "30" in repr(made.cache)
    assert pictures_in(made.cache._repr_html_()) == made.table["image"].tolist()[:12]
    assert made.head.kind == "kernel" and repr(made.head).splitlines()[-1] == f"written to {made.folder / 'head'}"
    assert "pair accuracy" in made.head._repr_html_()
    assert made.head.document["split"]["folds"] == 3
    assert "ONNX against torch" in repr(made.bundle) and "ONNX against torch" in made.bundle._repr_html_()


def test_an_evaluation_is_of_what_was_held_out_and_shows_the_ends(made: Made) -> None:
    report = made.report
    assert "held out by split" in report.lines[1] and report.verdict in repr(report)
    scores = report.to_pandas()
    assert len(scores) == ROWS and set(scores["fold"]) == {0, 1, 2}
    order = scores.sort_values("percentile", ascending=False, kind="stable")["image"].tolist()
    highest, lowest = [one.key for one in report.highest], [one.key for one in report.lowest]
    by_name = scores.set_index("image")["percentile"]
    assert [by_name[key] for key in highest] == [by_name[key] for key in order[:6]]
    assert [by_name[key] for key in lowest] == [by_name[key] for key in order[:-7:-1]]
    assert pictures_in(report._repr_html_()) == highest + lowest


def test_paths_of_artifacts_do_as_well_and_give_the_same(made: Made) -> None:
    path, table = str(made.folder / "head"), pa.Table.from_pandas(made.table)
    again = plaudit.evaluate(path, made.folder / "cache", table)
    assert again.document["pair_accuracy"] == made.report.document["pair_accuracy"]
    with pytest.raises(InputError, match="is the path of a head; give its cache and a table too"):
        plaudit.evaluate(path)
    opened = plaudit.Cache.open(made.cache)
    assert repr(opened).startswith("30 pictures and 30 prompts of local-dir:")
    assert plaudit.Scorer.load(made.bundle).identity == opened.identity


def test_a_table_is_scored_as_its_rows_are(made: Made) -> None:
    table = made.table.drop(columns="count").assign(row=range(ROWS))
    table.loc[3, "image"] = "lost.png"
    scored = plaudit.score(made.bundle, table, images_root=made.folder / "pictures")
    with pytest.raises(InputError, match="has no column 'prompt'"):
        plaudit.score(made.bundle, table.drop(columns="prompt"), images_root=made.folder / "pictures")
    frame = scored.to_pandas()
    scorer = plaudit.Scorer.load(made.bundle)
    good = table.drop(index=3)
    expected = scorer.score(good["prompt"].tolist(), [made.folder / "pictures" / name for name in good["image"]])
    assert np.allclose(frame.drop(index=3)["score"], expected, atol=1e-5)
    assert scored.errors == 1 and np.isnan(frame["score"][3]) and frame["row"].tolist() == list(range(ROWS))
    best = frame.sort_values("score", ascending=False, kind="stable")["image"].tolist()[:12]
    assert pictures_in(scored._repr_html_()) == best
    assert best[0] in repr(scored).splitlines()[2]


def test_hits_are_a_list_and_a_table(made: Made) -> None:
    catalogue = build(
        made.folder / "catalogue",
        made.cache.open(),
        pa.Table.from_pandas(made.table),
        PopularityConfig(),
        IndexConfig(),
    )[0]
    assert repr(catalogue).startswith("30 pictures by popularity, index exact")
    assert pictures_in(catalogue._repr_html_()) == made.table["image"].tolist()[:-13:-1]
    assert catalogue.to_pandas()["count"].tolist() == sorted(made.table["count"], reverse=True)
    hits = catalogue.search(catalogue.vectors[:1].astype(np.float32), 3)[0]
    frame = hits.to_pandas()
    assert frame["key"].tolist() == [hit.key for hit in hits] and frame["prompt"].notna().all()
    assert frame["blended_score"].tolist() == [hit.blended_score for hit in hits]
    assert pictures_in(hits._repr_html_()) == [hit.key for hit in hits]
    assert [line.split()[0] for line in repr(hits).splitlines()] == ["picture", *(hit.key for hit in hits)]
    found = find(catalogue, catalogue.vectors[0].astype(np.float32), Wish(k=2))
    assert found[0].key in found._repr_html_() and len(found.to_arrow()) == 2


def test_what_shows_itself_is_escaped(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"'.png"
    for html in (
        shown.lines_html([hostile]),
        shown.table_html(["", hostile], [(hostile, 1)], hostile),
        shown.pictures_html([(shown.picture_at([str(tmp_path / hostile)]), hostile, hostile)], hostile),
    ):
        assert "<script" not in html and "&lt;script&gt;" in html
        assert "\"'.png" not in html


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hiden": 3}, "unknown option given: 'hiden'; near names: hidden"),
        ({"hidden": "wide"}, "hidden given is 'wide'; wanted a whole number"),
        ({"head": "linear", "hidden": 8}, "--hidden is for fusion and does nothing for the head linear"),
        ({"max_missing": 2}, "max_missing is 2; wanted 0 to 1"),
        ({"folds": 3, "test_fraction": 0.5}, "has no effect together with"),
        ({}, "is a head already; say --overwrite"),
    ],
)
def test_what_cannot_be_is_said(made: Made, options: dict[str, Any], said: str) -> None:
    out = made.folder / ("head" if not options else "new")
    with pytest.raises(InputError, match=re.escape(said)):
        plaudit.train(made.cache, made.table, out, **options)
    assert not (made.folder / "new").exists()


def test_the_blocks_of_the_page_run_as_one_notebook(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/python.md, with a backbone of few numbers in place of the starter."""
    monkeypatch.chdir(tmp_path)
    write_likes(tmp_path)
    monkeypatch.setattr(plaudit, "embed", partial(plaudit.embed, model=tiny_model(made.folder)), raising=False)
    found: dict[str, Any] = {}
    for block in blocks():
        if block.page == "docs/python.md" and block.language == "python" and not block.why_not_run:
            exec(compile(block.text, block.page, "exec"), found)
    assert isinstance(found["head"], Trained)
