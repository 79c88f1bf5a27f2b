"""The README's commands, in their order, as somebody types them who has a table and pictures.

Runs the starter several times over, which takes minutes, so it is no part of `make test`; `make test-all` runs it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from doc_pages import blocks, check_command, commands_in
from paths import ROOT
from PIL import Image

EMOJI = ROOT / "examples" / "emoji"
PICTURES = 60


def write_table(folder: Path) -> None:
    """likes.csv and pictures/, as the README says that they look."""
    rows = pq.read_table(EMOJI / "emoji.parquet", columns=["image", "count"]).to_pylist()[::12][:PICTURES]
    (folder / "pictures").mkdir()
    lines = ["image,count"]
    for number, row in enumerate(rows):
        name = f"{number}.jpg" if number else "cat.jpg"
        with Image.open(EMOJI / row["image"]) as picture:
            on_white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
        on_white.convert("RGB").save(folder / "pictures" / name)
        lines.append(f"{name},{row['count']}")
    (folder / "likes.csv").write_text("\n".join(lines) + "\n")


def test_the_commands_of_the_readme_work(tmp_path: Path) -> None:
    write_table(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    said: dict[str, str] = {}
    for block in blocks():
        if block.page != "README.md" or block.language != "sh" or block.why_not_run:
            continue
        for words in commands_in(block.text):
            if words[0] == "make":
                continue
            assert words[0] == "plaudit", words
            command = [sys.executable, "-m", *words]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, (words, done.stderr)
            said[" ".join(words[1:3])] = done.stdout + done.stderr
    assert "What you could do next:" in said["run likes.csv"]
    assert len(said) == 8 and len(said["runtime score"].splitlines()) >= 4
    suggested = [line for text in said.values() for line in text.splitlines() if line.startswith("  plaudit ")]
    assert len(suggested) >= 8
    for line in suggested:
        for words in commands_in(line):
            check_command(words)
    for made in ("out/report.html", "out/catalogue/manifest.json", "mine/report.html", "mine/hits.html"):
        assert (tmp_path / made).stat().st_size
    assert "<img" in (tmp_path / "mine" / "report.html").read_text()
