"""Find out at once that the hub of models cannot be reached. huggingface_hub tries each file six times, for 27 s."""

from collections.abc import Iterator
from contextlib import contextmanager

from embed.spec import InputError
from embed.wording import first_line

ANSWER_S = 10.0


def why_unreachable() -> str | None:
    """Return why the hub does not answer, or None if it does."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_S)
    except Exception as error:  # of the HTTP library, which differs between versions of huggingface_hub
        return first_line(error)
    return None


@contextmanager
def local_if_unreachable() -> Iterator[None]:
    """While the block runs, use only files that are already on this machine if the hub cannot be reached.

    Raise ConnectionError, which says why it cannot be reached, in the place of an error of the block.
    """
    from huggingface_hub import constants

    if (reason := why_unreachable()) is None:
        yield
        return
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError):
        raise ConnectionError(f"the hub cannot be reached: {reason}") from None
    finally:
        constants.HF_HUB_OFFLINE = before
