"""Modes by name, and what is none."""

import pytest

from embed.modes import parse_mode
from embed.spec import InputError


def test_unknown_modes_say_which_are_known() -> None:
    for bad in ("blocks=3", "blocks=0,0", "blocks=-1,2", "fix_rate=1", "fix_rate=x"):
        with pytest.raises(InputError, match=r"wanted blocks=3,2 or fix_rate=0\.7"):
            parse_mode(bad)
    with pytest.raises(InputError, match="near names: visual_last_layer"):
        parse_mode("visual_last_layers")
