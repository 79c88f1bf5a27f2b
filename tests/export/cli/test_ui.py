"""`plaudit ui` as a process, over a folder such as `plaudit run` leaves."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from catalogue_fakes import make_cache, make_labels
from export_tiny import write_pictures
from paths import ROOT
from waiting import wait_until

import plaudit
from runtime.catalogue.writer import build
from runtime.config import IndexConfig, PopularityConfig, SessionConfig
from runtime.scoring.scorer import Scorer


def test_the_pages_are_served_with_catalogue_report_and_votes(bundle: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    out.mkdir()
    (out / "bundle").symlink_to(bundle)
    (out / "report.html").write_text("<h1>how good it is</h1>")
    pictures = write_pictures(tmp_path / "pictures", 6)
    scorer = Scorer.load(bundle, SessionConfig(threads=1))
    cache = make_cache(out / "cache", scorer.embed_images(pictures), of=scorer.identity)
    build(out / "catalogue", cache, make_labels(6), PopularityConfig(), IndexConfig("exact", 0.9))
    command = [sys.executable, "-m", "plaudit", "ui", str(out), "--port", "0", "--no-open"]
    with open(log, "wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    try:
        wait_until(lambda: "startup complete" in log.read_text() or process.poll() is not None, 120)
        (url,) = re.findall(r"^pages on (http://127\.0\.0\.1:\d+)/$", log.read_text(), re.MULTILINE)
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            for page in ("/", "/look", "/compare"):
                assert client.get(page).status_code == 200
            assert "how good it is" in client.get("/v1/report").text
            assert len(client.get("/v1/catalogue").json()) > 1
        assert (out / "votes.db").exists()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_a_folder_without_a_bundle_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plaudit.main(["ui", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no bundle to show; make one with `plaudit run TABLE --images PICTURES" in line


def test_a_browser_is_opened_unless_it_is_not_to_be(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundle").symlink_to(bundle)
    found = []
    monkeypatch.setattr("runtime.cli.serve.serve_locally", lambda *given: found.append(given))
    assert plaudit.main(["ui", str(tmp_path)]) == 0 and plaudit.main(["ui", str(tmp_path), "--no-open"]) == 0
    assert [given[1:] for given in found] == [("127.0.0.1", 8000, 0.0, True), ("127.0.0.1", 8000, 0.0, False)]
    config = found[0][0]
    assert config.pages and config.catalogue is None and config.voting.votes is None
