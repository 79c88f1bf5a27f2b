"""Where things lie that tests read or give to other processes."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
DATA = ROOT.parent / "shared" / "data"  # real data, which is no part of the project: tests that want it skip without
