"""Names and errors as people read them."""

import pytest

from embed.wording import few, first_line, one_line, unknown_name


def test_unknown_names_list_near_ones_or_all() -> None:
    near = unknown_name("model", "startr", ["starter", "other"])
    assert str(near) == "unknown model 'startr'; near names: starter"
    assert str(unknown_name("model", "zzz", "ba")) == "unknown model 'zzz'; known: a, b"


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("two\n   lines"), "two lines"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), "a.csv: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("odd"), "odd"),
    ],
)
def test_errors_in_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line


def test_the_beginning_of_long_texts() -> None:
    assert first_line(RuntimeError(" it broke \nhere\nand here")) == "it broke"
    assert few("abcd") == "a, b, c, d" and few("abcdef") == "a, b, c, d and 2 more"
