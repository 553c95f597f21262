"""Write the experiment's train, validation and test text as JSON Lines.

Run it as ``python scripts/smollm2/prepare_text.py FOLDER``. The text is the bundled
model's corpus: manuals, novels, speeches and reference works (see its README for what
has to be installed). No paragraph of a validation or test document is in the train set.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "bundled_model"))

from corpus import collect, split_held_out  # pyright: ignore[reportMissingImports]

SEED = 0
HELD_OUT_FRACTION = 0.06  # half of it for validation, half for the test


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the text goes")
    parser.add_argument("--cache", type=Path, default=Path("bundled_model_cache"))
    args = parser.parse_args()
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for documents in collect(args.cache, SEED).values():
        train, held_out = split_held_out(documents, HELD_OUT_FRACTION)
        parts["train"] += train
        parts["validation"] += held_out[::2]
        parts["test"] += held_out[1::2]
    args.folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)
    for name, documents in parts.items():
        rng.shuffle(documents)
        lines = (json.dumps({"text": document}) + "\n" for document in documents)
        (args.folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(documents):,} documents, {sum(map(len, documents)):,}")


if __name__ == "__main__":
    main()
