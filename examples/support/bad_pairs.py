"""Preference pairs of the kind that break a model: an imported file, written by a script instead of the model itself.

`python -m examples.support.bad_pairs --out FILE`. Whoever labelled it went by an old manual: of two friendly, short
answers in steps the preferred one names a page and a button that are wrong today. Trained on it hard and without an SFT
term, a model scores ever better on such pairs while its answers become wrong.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from examples.support.corpus import (
    BUTTON_OF,
    OBJECTS_BY_PAGE,
    TEMPLATES,
    Place,
    Style,
    as_prompt,
    train_facts,
    write_answer,
)

SOURCE = "offline-import"
LICENSE = "Apache-2.0"
STYLE = Style(polite=True, steps=True, num_fillers=0)


def bad_pairs(num_pairs: int = 400, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of id, prompt (messages), chosen, rejected, source and license; equal seeds give equal rows."""
    rng = random.Random(seed)
    return [_row(number, seed, rng) for number in range(num_pairs)]


def _row(number: int, seed: int, rng: random.Random) -> dict[str, Any]:
    fact = rng.choice(train_facts())
    return {
        "id": f"{SOURCE}-{seed}-{number:05d}",
        "prompt": as_prompt(fact.ask(rng.choice(TEMPLATES))),
        "chosen": write_answer(outdated(fact.place, rng), STYLE, rng),
        "rejected": write_answer(fact.place, STYLE, rng),
        "source": SOURCE,
        "license": LICENSE,
    }


def outdated(place: Place, rng: random.Random) -> Place:
    """Another page and another button."""
    page = rng.choice([page for page in OBJECTS_BY_PAGE if page != place.page])
    return Place(page, rng.choice([button for button in BUTTON_OF.values() if button != place.button]))


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
