"""The commands of `python -m export`."""

from collections.abc import Sequence

from embed.cli.app import run

ABOUT = "Write a head and its backbone as an ONNX bundle, and check that a bundle still gives the same scores."
COMMANDS = {
    "onnx": "export.cli.onnx:onnx",
    "check": "export.cli.check:check",
    "triton": "export.cli.triton:triton",
    "update": "export.cli.update:update",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run("export", ABOUT, COMMANDS, argv)
