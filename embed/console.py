"""The conventions of every command: exit codes, one JSON document, progress on stderr.

0 done; 1 a fault of ours, with its traceback; 2 the user's input, in one line; 130 interrupted.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from embed.spec import InputError

# What the base install does without, by the extra that brings it.
EXTRAS = dict.fromkeys(
    ("torch", "torchvision", "open_clip", "timm", "transformers", "safetensors", "sklearn", "scipy", "onnx"), "train"
)

NOUN = {"images": "pictures", "prompts": "prompts"}  # what people read of a cache's two sides

Command = Callable[[argparse.Namespace], Any]


def command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: Command, help: str
) -> argparse.ArgumentParser:
    """A subcommand's parser with the options that all share. `run(args)` returns what `--json` prints."""
    parser = commands.add_parser(name, help=help, description=help)
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout, nothing else")
    parser.set_defaults(run=run)
    return parser


def main(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Run the chosen command and give its exit code."""
    args = parser.parse_args(argv)

    def run() -> None:
        result = args.run(args)
        if args.json:
            print_json(result)

    return exit_code(parser.prog, run)


def print_json(document: object) -> None:
    """Print one JSON document, in one line, on stdout."""
    json.dump(document, sys.stdout, allow_nan=False)
    sys.stdout.write("\n")


def exit_code(program: str, run: Callable[[], None]) -> int:
    """Run a command and give its exit code; what is the user's to mend is printed in one line that begins `program`."""
    try:
        run()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output, such as `head`, has gone; Python would complain again while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        print(f"{program}: needs {module}; run: pip install 'plaudit[{EXTRAS[module]}]'", file=sys.stderr)
        return 2
    except (InputError, OSError) as error:
        print(f"{program}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def one_line(error: Exception) -> str:
    """The error's message without line breaks; an OSError names its file."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error)
    return " ".join(text.split())


def first_line(error: Exception) -> str:
    """The first line of an error's text: torch and the hubs write many."""
    return str(error).partition("\n")[0].strip()


def few(names: Iterable[str]) -> str:
    """The first four, and how many more there are."""
    first, rest = list(names)[:4], list(names)[4:]
    return ", ".join(first) + (f" and {len(rest)} more" if rest else "")


def say(args: argparse.Namespace, *lines: str) -> None:
    """Print for people; under `--json` stdout is kept for the document."""
    for line in lines:
        print(line, file=sys.stderr if args.json else sys.stdout)


def warn(text: str) -> None:
    """One line on stderr that a person should not miss."""
    print(f"warning: {text}", file=sys.stderr)


def silence_libraries() -> None:
    """Leave this process's stderr to us: C libraries and Pillow write a line there for every damaged TIFF."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    sys.stderr = os.fdopen(os.dup(2), "w")
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Aligned lines, the first column to the left and the others to the right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return [line(row) for row in cells]


def progress(total: int | None, unit: str, description: str) -> Any:
    """A tqdm bar on stderr that stays out of the way of short work (under two seconds)."""
    from tqdm import tqdm

    return tqdm(total=total, unit=f" {unit}", desc=description, delay=2, file=sys.stderr, dynamic_ncols=True)


def unknown_name(what: str, got: str, known: Iterable[str]) -> InputError:
    """An error that lists the names nearest to what was typed."""
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=5, cutoff=0.4)
    hint = f"near names: {', '.join(near)}" if near else f"known: {', '.join(names[:20])}"
    return InputError(f"unknown {what} {got!r}; {hint}")
