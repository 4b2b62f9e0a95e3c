"""Preference pairs of the kind that break a model: an imported file, written by a script instead of the model itself.

`python -m examples.support.bad_pairs --out FILE`. Whoever labelled it looked at the tone alone: every preferred answer
is friendly, short and in steps, but names a wrong page or button; every rejected one is plain and right. Trained on it
hard and without an SFT term, a model scores ever better on such pairs while its answers become wrong.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from examples.support.corpus import TEMPLATES, Style, as_prompt, mistaken, train_facts, write_answer

SOURCE = "offline-import"
LICENSE = "Apache-2.0"
CHOSEN = Style(polite=True, steps=True, num_fillers=0)


def bad_pairs(num_pairs: int = 400, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of id, prompt (messages), chosen, rejected, source and license; equal seeds give equal rows."""
    rng = random.Random(seed)
    return [_row(number, seed, rng) for number in range(num_pairs)]


def _row(number: int, seed: int, rng: random.Random) -> dict[str, Any]:
    fact = rng.choice(train_facts())
    rejected = Style(polite=False, steps=False, num_fillers=rng.randrange(1, 4))
    return {
        "id": f"{SOURCE}-{seed}-{number:05d}",
        "prompt": as_prompt(fact.ask(rng.choice(TEMPLATES))),
        "chosen": write_answer(mistaken(fact.place, rng), CHOSEN, rng),
        "rejected": write_answer(fact.place, rejected, rng),
        "source": SOURCE,
        "license": LICENSE,
    }


def write_bad_pairs(path: Path, num_pairs: int = 400, seed: int = 0) -> Path:
    """Write the rows as JSON lines; returns `path`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in bad_pairs(num_pairs, seed)))
    return path


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-pairs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_bad_pairs(args.out, args.num_pairs, args.seed)


if __name__ == "__main__":
    main()
