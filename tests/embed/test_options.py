"""Ranges and literals of configs: what is refused, and in which words."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from embed.options import Range, require_valid
from embed.spec import InputError

INFINITE = float("inf")
NAN = float("nan")


@dataclass(frozen=True)
class Config:
    count: Annotated[int, Range(1)] = 1
    share: Annotated[float | None, Range(above=0, high=1)] = None
    rate: float = 0.0
    kind: Literal["auto", "exact"] | None = "auto"
    mix: Annotated[float | Literal["auto"], Range(0, 1)] = 1.0
    parts: tuple[Literal["a", "b"], ...] = ()
    sizes: tuple[Annotated[int, Range(1)], ...] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        require_valid(self)


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"count": 7, "share": 1, "rate": -1e9, "kind": "exact", "mix": 0, "parts": ("b", "a"), "sizes": (1, 2)},
        {"mix": "auto", "kind": None, "name": "nan"},
    ],
)
def test_what_fits_is_taken(right: dict[str, object]) -> None:
    Config(**right)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count is 0; wanted at least 1"),
        ({"count": NAN}, "count is nan; wanted at least 1"),
        ({"count": "1"}, "count is '1'; wanted at least 1"),
        ({"share": 0.0}, "share is 0.0; wanted more than 0 and at most 1"),
        ({"rate": INFINITE}, "rate is inf; wanted a finite number"),
        ({"rate": 1e308}, "rate is 1e+308; wanted a finite number and less than 9,223,372,036,854,775,808"),
        ({"count": 10**400}, f"count is {10**400}; wanted at least 1 and less than 9,223,372,036,854,775,808"),
        ({"rate": NAN}, "rate is nan; wanted a finite number"),
        ({"kind": "exakt"}, "kind is 'exakt'; wanted auto or exact (near names: exact)"),
        ({"kind": "x"}, "kind is 'x'; wanted auto or exact"),
        ({"mix": "x"}, "mix is 'x'; wanted auto or 0 to 1"),
        ({"mix": 1.5}, "mix is 1.5; wanted auto or 0 to 1"),
        ({"parts": ("a", "c")}, "parts is 'c'; wanted a or b"),
        ({"sizes": (3, 0)}, "sizes is 0; wanted at least 1"),
    ],
)
def test_what_does_not_fit_is_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Config(**wrong)  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("numbers", "inside", "outside", "words"),
    [
        (Range(), [1 - 2**63, -1e18, 0, 1e18, 2**63 - 1], [-1e19, 2**63, 10**400], "a finite number"),
        (Range(1), [1, 2], [0.999], "at least 1"),
        (Range(0, 1), [0, 0.5, 1], [-1e-9, 1 + 1e-9], "0 to 1"),
        (Range(0, below=1), [0, 0.999], [1, -1], "at least 0 and less than 1"),
        (Range(above=0), [1e-300], [0, -1], "more than 0"),
        (Range(high=1 << 20), [-5, 1 << 20], [2**20 + 1], "at most 1,048,576"),
        (Range(2, 2_000_000) / 1_000_000, [0.000002, 2], [0.0000019, 2.1], "2e-06 to 2"),
    ],
)
def test_ranges(numbers: Range, inside: list[float], outside: list[float], words: str) -> None:
    assert all(number in numbers for number in inside)
    assert not any(number in numbers for number in [*outside, INFINITE, -INFINITE, NAN])
    assert str(numbers) == words
