"""Turns a spec into a job on this machine: which base, which rows, where. No torch here."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from hone.canonical import sha256_file, sha256_hex
from hone.datasets import SPLITS, FreezePolicy
from hone.errors import ConfigError, NotEnoughData
from hone.settings import Settings
from hone.store.datasets import FEEDBACK, freeze_feedback, get_dataset, write_dataset
from hone.store.models import STABLE, get_alias, get_model, stable_model
from hone.store.runs import run_id_of
from hone.weights import model_version_of, weights_digest
from training.replay import find_sources, write_mix
from training.spec import KINDS, TABLES, Job, Method, RunSpec, load_spec

logger = logging.getLogger(__name__)

NOBODY_JUDGES = (
    "the model will be trained and then held back: the gates judge it by held-out pairs of what people said in the app "
    "(imported rows are only learnt from), and of those %s"
)


def spec_path(settings: Settings, method: Method) -> Path:
    """Return the file of a method: the configured one if it is that method's, else METHOD.toml beside it."""
    configured = settings.training.spec
    beside = configured.with_name(f"{method}.toml")
    return configured if method == "dpo" or not beside.exists() else beside


def spec_of(settings: Settings, method: Method, overrides: Mapping[str, Any]) -> RunSpec:
    """Return the method's spec with a request's overrides. Raises ConfigError like `load_spec`."""
    return load_spec(spec_path(settings, method), {"method": method, **overrides})


def check_complete(spec: RunSpec) -> None:
    """Raise ConfigError where the method needs something that the spec does not name, or that is not there."""
    if spec.method in TABLES["rewards"] and not (spec.rewards.models or spec.rewards.functions):
        raise ConfigError(
            f"method {spec.method} needs a reward: set rewards.models to {{directory of a reward_model run = weight}}, "
            "or rewards.functions to {module:function = weight}"
        )
    for directory in spec.rewards.models:
        if not Path(directory).is_dir():
            raise ConfigError(f"rewards.models names {directory}, which is no directory: train a reward model first")


def needs_database(spec: RunSpec) -> bool:
    """Say whether base or rows must be looked up."""
    return not all(place and Path(place).is_dir() for place in (spec.base, spec.dataset))


def is_stored(spec: RunSpec) -> bool:
    """Say whether the dataset is one of the database, so that the run gets a row there."""
    return spec.dataset is not None and not Path(spec.dataset).is_dir()


def is_judged(spec: RunSpec) -> bool:
    """Say whether gates judge what a run makes: a policy from stored rows, which is registered with their verdicts."""
    return is_stored(spec) and spec.method != "reward_model"


def make_job(session: Session | None, settings: Settings, spec: RunSpec) -> Job:
    """Write everything that a run needs into its directory, `job.json` too, and return the job; safe to repeat.

    Raises:
        ConfigError: base or dataset is not named, or not there, or of a kind that the method does not read.
        Conflict: the database does not know them.
    """
    check_complete(spec)
    base_version, base_directory = find_base(session, spec.base)
    if spec.dataset is None:
        raise ConfigError("the spec names no dataset: set dataset to the id of a frozen one, or to a directory")
    resolved = spec.model_dump(mode="json")
    sources = find_sources(session, spec, base_version)
    run_id = run_id_of(sources.named(data_key(session, spec)), base_version, resolved)
    directory = settings.var_dir.absolute() / "runs" / run_id
    write_data(session, spec.dataset, directory / "data")
    served = served_model(session)
    job = Job(
        run_id=run_id,
        spec=spec,
        base_version=base_version,
        base_directory=base_directory,
        served_version=served[0],
        served_directory=served[1],
        directory=directory,
        evaluation_data=evaluation_data(session, settings, spec, directory, is_mixed=sources.any),
        golden_tests=absolute(settings.training.golden_tests),
        general_prompts=absolute(settings.training.general_prompts),
    )
    job = job.model_copy(update={"replay": write_mix(session, sources, job)})
    (directory / "job.json").write_text(job.model_dump_json(indent=1))
    return job


def find_base(session: Session | None, base: str | None) -> tuple[str, Path]:
    """Return version and directory of the base: a directory, a registered version, or the stable model."""
    if base is not None and Path(base).is_dir():
        return model_version_of(weights_digest(Path(base))), Path(base).absolute()
    if session is None:
        raise ConfigError(f"base {base!r} is no directory, and there is no database to look it up in")
    row = get_model(session, base) if base else stable_model(session)
    return row.model_version, Path(row.directory)


def served_model(session: Session | None) -> tuple[str | None, Path | None]:
    """Return version and directory of the stable model, or nothing: there is none."""
    alias = get_alias(session, STABLE) if session is not None else None
    if session is None or alias is None:
        return None, None
    return alias.model_version, Path(get_model(session, alias.model_version).directory)


def data_key(session: Session | None, spec: RunSpec) -> str:
    """Return what names the rows by their content. Raises ConfigError where the method does not read their kind."""
    assert spec.dataset is not None
    if Path(spec.dataset).is_dir():
        files = {split: Path(spec.dataset) / f"{split}.jsonl" for split in SPLITS}
        if not files["train"].exists():
            raise ConfigError(f"{files['train']} is missing: a dataset directory holds train.jsonl")
        hashes = {split: sha256_file(path) for split, path in files.items() if path.exists()}
        return sha256_hex(json.dumps(hashes, sort_keys=True))
    if session is None:
        raise ConfigError(f"dataset {spec.dataset!r} is no directory, and there is no database to look it up in")
    kind = get_dataset(session, spec.dataset).kind
    if kind not in KINDS[spec.method]:
        raise ConfigError(f"method {spec.method} reads {' or '.join(KINDS[spec.method])}, the dataset holds {kind}")
    return spec.dataset


def write_data(session: Session | None, dataset: str, directory: Path) -> None:
    """Write the rows of each split."""
    if not Path(dataset).is_dir():
        assert session is not None
        return write_dataset(session, dataset, directory)
    directory.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        source = Path(dataset) / f"{split}.jsonl"
        if source.exists():
            shutil.copyfile(source, directory / source.name)
        else:
            (directory / source.name).write_text("")


def evaluation_data(
    session: Session | None, settings: Settings, spec: RunSpec, directory: Path, *, is_mixed: bool = False
) -> Path | None:
    """Return the directory of people's pairs that judge the challenger, or None.

    It is the dataset itself where people made it and it holds pairs; a copy where other rows are mixed into those that
    are trained on. Another challenger is judged by what people say when its run begins.
    """
    if session is None or spec.dataset is None:
        return None
    if is_stored(spec):
        row = get_dataset(session, spec.dataset)
        if row.source == FEEDBACK and row.kind == "pairs" and not is_mixed:
            return directory / "data"
        if row.source == FEEDBACK and row.kind == "pairs":
            write_dataset(session, spec.dataset, directory / "evaluation")
            return directory / "evaluation"
    if (directory / "evaluation").exists():
        return directory / "evaluation"
    try:
        judging = freeze_feedback(session, watermark=None, policy=freeze_policy(settings))
    except NotEnoughData as error:
        if is_judged(spec):
            logger.warning(NOBODY_JUDGES, error)
        return None
    write_dataset(session, judging, directory / "evaluation")
    return directory / "evaluation"


def freeze_policy(settings: Settings) -> FreezePolicy:
    """Return the settings' limits of a dataset."""
    trigger = settings.trigger
    return FreezePolicy(
        dev_share=trigger.dev_share,
        test_share=trigger.test_share,
        max_user_pairs=trigger.max_user_pairs,
        max_user_share=trigger.max_user_share,
        off_policy=trigger.off_policy,
        off_policy_weight=trigger.off_policy_weight,
        max_generations=trigger.max_generations,
    )


def absolute(path: Path | None) -> Path | None:
    """Return the path as a subprocess will find it."""
    return path.absolute() if path else None
