"""Make this example's table and pictures from the whole emoji set: the 736 emoji whose use has been counted.

    python examples/emoji/make_table.py --emoji FOLDER

FOLDER holds emoji.parquet (columns `image, name, keywords, category, subcategory, occurrences, negative, neutral,
positive`) and the pictures that it names. Written beside this file: emoji.parquet, where `occurrences` is called
`count` and `prompt` is the name with the keywords, in the order of the source, and images/. The same input gives the
same bytes.
"""

import argparse
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

HERE = Path(__file__).parent
COLUMNS = {
    "image": "image",
    "name": "name",
    "count": "occurrences",
    "category": "category",
    "subcategory": "subcategory",
    "negative": "negative",
    "neutral": "neutral",
    "positive": "positive",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the emoji example from the whole emoji set.")
    parser.add_argument("--emoji", type=Path, required=True, help="folder with emoji.parquet and images/")
    parser.add_argument("--out", type=Path, default=HERE, help="default: the folder of this script")
    args = parser.parse_args()

    table = pq.read_table(args.emoji / "emoji.parquet")
    table = table.filter(pc.is_valid(table["occurrences"]))
    prompts = [
        ", ".join([name, *keywords])
        for name, keywords in zip(table["name"].to_pylist(), table["keywords"].to_pylist(), strict=True)
    ]
    table = table.select(list(COLUMNS.values())).rename_columns(list(COLUMNS)).add_column(1, "prompt", [prompts])
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    for image in table["image"].to_pylist():
        shutil.copyfile(args.emoji / image, args.out / image)
    pq.write_table(table, args.out / "emoji.parquet")
    print(f"{table.num_rows} emoji, {table['count'].to_numpy().sum():,} uses counted")


if __name__ == "__main__":
    main()
