"""Words for messages: names, lists of names, and the errors of other libraries in one line."""

from collections.abc import Iterable, Sequence

from embed.spec import InputError

NOUN = {"images": "pictures", "prompts": "prompts"}  # the words for a cache's two sides in texts for people


def one_line(error: Exception) -> str:
    """Return the error's message without line breaks. The message of an OSError includes its file."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error)
    return " ".join(text.split())


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, because torch and the hubs write many."""
    return str(error).partition("\n")[0].strip()


def few(names: Iterable[str]) -> str:
    """Return the first four names, and how many more there are."""
    first, rest = list(names)[:4], list(names)[4:]
    return ", ".join(first) + (f" and {len(rest)} more" if rest else "")


def near_names(got: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return up to five names that resemble what was typed, in words, or an empty string."""
    import difflib

    near = difflib.get_close_matches(got, list(known), n=5, cutoff=cutoff)
    return f"near names: {', '.join(near)}" if near else ""


def unknown_name(what: str, got: str, known: Iterable[str]) -> InputError:
    """Return an error that lists the names that resemble what was typed."""
    names = sorted(known)
    hint = near_names(got, names, 0.4) or f"known: {', '.join(names[:20])}"
    return InputError(f"unknown {what} {got!r}; {hint}")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return aligned lines, with the first column aligned left and the others right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return [line(row) for row in cells]
