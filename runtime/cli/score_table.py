"""`python -m runtime score-table`."""

from pathlib import Path

from embed.cli.console import progress, warn
from embed.files import require_out
from runtime.config import SessionConfig, TableConfig


def score_table(
    bundle: Path, /, *, session: SessionConfig, data: Path, out: Path, table: TableConfig
) -> dict[str, object]:
    """Score every row of a table, and continue an earlier run that was stopped.

    Example:
        plaudit runtime score-table bundle --data new.csv --out scores

    Args:
        bundle: A folder made by `python -m export onnx`.
        data: The table with pictures and prompts: a file of any kind, a pattern of shards, or a folder of them.
        out: The folder to write the scores to.
    """
    require_out(out, "job of scores", overwrite=True)
    from runtime.scoring import tables
    from runtime.scoring.scorer import Scorer

    summary = tables.score_table(Scorer.load(bundle, session), data, out, table, progress)
    if summary["errors"]:
        warn(f"{summary['errors']:,} of {summary['rows']:,} rows have no score; their column `error` says why")
    print(f"{summary['rows'] - summary['errors']:,} rows scored; written to {out}")
    return {"out": str(out), **summary}
