"""Contact sheets: the pictures that are there, what stands below them, and nothing that a name could do."""

from pathlib import Path

import fsspec
import pytest
from PIL import Image

from embed.inputs.thumbnails import SIZE
from embed.spec import InputError
from runtime.catalogue.sheet import Tile, shortened, write_sheet

NAMES = ["red.png", "broken.png", "<b>&.png", "3.png", "4.png", "5.png", "6.png"]


@pytest.fixture
def tiles(tmp_path: Path) -> list[Tile]:
    """Seven, of which the first is a red picture, the second is broken and the others are not there."""
    Image.new("RGB", (300, 100), (255, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return [Tile(name, [str(tmp_path / name)], {"similarity": f"0.{i}"}) for i, name in enumerate(NAMES)]


def test_as_png(tiles: list[Tile], tmp_path: Path) -> None:
    assert write_sheet(tmp_path / "sheet.png", tiles, "red") == 6
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.getpixel((SIZE // 2, SIZE // 2)) == (255, 0, 0)
        assert sheet.getpixel((SIZE + 8 + SIZE // 2, SIZE // 2)) == (200, 200, 200)
        assert sheet.width == 5 * (SIZE + 8)
        caption = sheet.crop((0, SIZE + 4, SIZE + 8, sheet.height // 2))
        assert min(caption.convert("L").getextrema()) < 128, "nothing is written below the picture"


def test_as_a_page(tiles: list[Tile], tmp_path: Path) -> None:
    asked = Tile("asked.png", tiles[0].addresses, note="asked with")
    assert write_sheet(tmp_path / "sheet.html", [asked, *tiles], "<red & co>") == 6
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("data:image/webp;base64,") == 8
    assert "<h1>&lt;red &amp; co&gt;</h1>" in page and "6 of 8 pictures could not be read" in page
    assert "<small>&lt;b&gt;&amp;.png</small>" in page and "<b>" not in page
    assert "<dt>similarity</dt><dd>0.6</dd>" in page
    assert page.count('class="marked"') == page.count("<strong>asked with</strong>") == 1


def test_the_first_place_where_a_picture_is_counts(tiles: list[Tile], tmp_path: Path) -> None:
    write_sheet(tmp_path / "sheet.png", tiles, "red")
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/red.png", (tmp_path / "red.png").read_bytes())
    remote = [
        Tile(tile.name, ["/nowhere.png", f"memory://{tmp_path.name}/{tile.name}"], tile.figures) for tile in tiles
    ]
    assert write_sheet(tmp_path / "remote.png", remote, "red") == 6
    assert (tmp_path / "remote.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()


def test_other_kinds_of_files_are_refused(tiles: list[Tile], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither .png nor .html"):
        write_sheet(tmp_path / "sheet.gif", tiles, "")


def test_long_names_are_cut_in_front_and_say_so() -> None:
    assert shortened("a" * 30) == "a" * 30
    path = "folder/" * 9 + "cat.png"
    assert shortened(path) == "..." + path[-27:]
