"""Whether a training waits for its device: "meta" has no numbers, so whatever asks for one there fails."""

import pytest

from heads.training.loop import Loop


def require_no_waiting(loop: Loop) -> None:
    """Take three steps of a training on "meta"."""
    loop.together = 64
    for _ in range(3):
        loop._advance()
    assert [told.device.type for _, told in loop._unread] == ["meta"] * 3
    with pytest.raises((NotImplementedError, RuntimeError)):  # as a step that waited would have ended
        loop._read_losses()
