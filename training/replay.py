"""Where the rows of a replay mix come from: the datasets that the base has learnt from, and general instructions.

Which datasets these are is part of the run's name, so that a run that is started again mixes the same rows.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hone.canonical import canonical_json, sha256_file, sha256_hex
from hone.datasets import SPLITS, Kind
from hone.errors import ConfigError
from hone.store.datasets import FEEDBACK, get_dataset, read_bodies
from hone.store.lineage import ancestors
from hone.store.tables import DatasetRow, ModelVersionRow
from training.method_tables import Replay
from training.mix import Ingredients, Pool, identity, mix
from training.pairs import Row, read_rows
from training.spec import KINDS, TABLES, Job, RunSpec

DEFAULT_GENERAL = Replay().general


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The datasets that a run mixes rows from; empty ones say why."""

    general: str | None = None
    "Id, or directory."
    why_general: str | None = None
    older: tuple[str, ...] = ()
    why_older: str | None = None

    @property
    def any(self) -> bool:
        """Whether there is something to mix in."""
        return bool(self.general or self.older)

    def named(self, data_key: str) -> str:
        """Return what names the rows by their content, mixed ones included."""
        if not self.any:
            return data_key
        is_directory = self.general is not None and Path(self.general).is_dir()
        general = sha256_file(Path(str(self.general)) / "train.jsonl") if is_directory else self.general
        return sha256_hex(canonical_json([data_key, general, list(self.older)]))


def find_sources(session: Session | None, spec: RunSpec, base_version: str) -> Sources:
    """Return the datasets of the run's mix.

    Raises:
        ConfigError: the spec names a general set that is not there. (Without one of the default's name there is none.)
    """
    if spec.method not in TABLES["replay"]:
        why = f"method {spec.method} mixes nothing in"
        return Sources(why_general=why, why_older=why)
    general, why_general = find_general(session, spec)
    older = tuple(earlier_datasets(session, spec, base_version)) if session is not None else ()
    why_older = None if older else "the base was trained on no earlier snapshot that this method reads"
    return Sources(general=general, why_general=why_general, older=older, why_older=why_older)


def find_general(session: Session | None, spec: RunSpec) -> tuple[str | None, str | None]:
    """Return id or directory of the general instructions, or None and why."""
    name = spec.replay.general
    if not spec.replay.general_share:
        return None, "no general instructions are asked for"
    if Path(name).is_dir():
        rows = read_rows(Path(name) / "train.jsonl")
        if not rows:
            raise ConfigError(f"replay.general names {name}, which holds no train.jsonl with rows")
        why = unfit(spec, kind_of(rows[0]))
        return (None, why) if why else (name, None)
    found = newest_dataset(session, name) if session is not None else None
    if found is None:
        if name != DEFAULT_GENERAL and session is not None:
            raise ConfigError(f"replay.general = {name!r} is no dataset, import or directory: see `hone import`")
        return None, f"no import is named {name!r}"
    if found.dataset_id == spec.dataset:
        return None, "the run is on the general instructions themselves"
    why = unfit(spec, found.kind)
    return (None, why) if why else (found.dataset_id, None)


def newest_dataset(session: Session, name: str) -> DatasetRow | None:
    """Return the dataset of this id, or the newest import of this label."""
    if (found := session.get(DatasetRow, name)) is not None:
        return found
    imports = select(DatasetRow).where(DatasetRow.source == name, DatasetRow.source != FEEDBACK)
    return session.scalars(imports.order_by(DatasetRow.created_at.desc(), DatasetRow.dataset_id).limit(1)).first()


def unfit(spec: RunSpec, kind: str) -> str | None:
    """Return why the method learns nothing from general rows of this kind, or None.

    DPO imitates demonstrations through its SFT term, and KTO takes them for good answers.
    """
    if kind in KINDS[spec.method] or (kind == "demonstrations" and spec.method == "kto"):
        return None
    if kind != "demonstrations" or spec.method != "dpo":
        return f"method {spec.method} learns nothing from general {kind}"
    if spec.engine == "trl":
        return "TRL's DPO learns nothing from answers without a rival"
    return None if spec.sft_weight else "with sft_weight = 0 DPO learns nothing from answers without a rival"


def kind_of(row: Row) -> Kind:
    """Return which kind of dataset a row belongs to."""
    if "chosen" in row:
        return "pairs"
    if "completion" in row:
        return "labels" if "label" in row else "demonstrations"
    return "prompts"


def earlier_datasets(session: Session, spec: RunSpec, base_version: str) -> Iterator[str]:
    """Yield the datasets, of kinds that the method reads, that the base and its ancestors were trained on."""
    model = session.get(ModelVersionRow, base_version)
    if model is None:
        return
    lineage = [model.dataset_id, *(found["dataset_id"] for found in ancestors(session, model))]
    for dataset_id in dict.fromkeys(filter(None, lineage)):
        if get_dataset(session, dataset_id).kind in KINDS[spec.method]:
            yield dataset_id


def write_mix(session: Session | None, sources: Sources, job: Job) -> dict[str, Any]:
    """Write the mixed training rows over those of the run's dataset, and return what was mixed."""
    data = job.directory / "data"
    rows = {split: read_rows(data / f"{split}.jsonl") for split in SPLITS}
    older = {key: train_rows(session, key) for key in sources.older}
    imported = [key for key in older if session is not None and get_dataset(session, key).source != FEEDBACK]
    found = Ingredients(
        rows=rows["train"],
        learnt=frozenset(identity(row) for learnt in older.values() for row in learnt),
        older=Pool(
            rows=[row for key in imported if key != job.spec.dataset for row in older[key]],
            datasets=sources.older,
            why=sources.why_older,
        ),
        general=Pool(
            rows=train_rows(session, sources.general) if sources.general else (),
            datasets=(sources.general,) if sources.general else (),
            why=sources.why_general,
        ),
        held_out=[*rows["dev"], *rows["test"], *checks(job)],
        max_user_share=user_share(session, job.spec),
    )
    mixed, facts = mix(found, job.spec.replay, job.spec.seed)
    if sources.any:
        text = "".join(f"{canonical_json(row)}\n" for row in mixed)
        (data / "train.jsonl").write_text(text, encoding="utf-8")
    return facts


def train_rows(session: Session | None, place: str) -> list[Row]:
    """Return the training rows of a dataset or directory."""
    if Path(place).is_dir():
        return read_rows(Path(place) / "train.jsonl")
    assert session is not None
    return [json.loads(body) for body in read_bodies(session, place, "train")]


def checks(job: Job) -> list[Row]:
    """Return the prompts of the operator's files as rows: they measure, so they are never trained on."""
    files = (job.golden_tests, job.general_prompts)
    prompts = [row["prompt"] for path in files if path is not None for row in read_rows(path) if "prompt" in row]
    return [{"prompt": [{"role": "user", "content": p}] if isinstance(p, str) else p} for p in prompts]


def user_share(session: Session | None, spec: RunSpec) -> float:
    """Return the largest share of one person that the run's dataset was frozen with."""
    if session is None or spec.dataset is None or Path(spec.dataset).is_dir():
        return 1.0
    return float(get_dataset(session, spec.dataset).manifest["policy"]["max_user_share"])
