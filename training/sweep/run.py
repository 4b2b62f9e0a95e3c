"""Does a sweep: trials one after the other, each an ordinary run; what is done is not done again."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hone.canonical import canonical_json, sha256_hex
from hone.cli.output import duration
from hone.datasets import SPLITS
from hone.errors import ConfigError, ProgramFailed
from hone.settings import Settings
from training.jobs import data_key, make_job, write_data
from training.launch.start import ROOT
from training.pairs import read_rows
from training.spec import TABLES, Job, RunSpec, load_spec, merged, parse
from training.start import optional_transaction
from training.sweep import study as studies
from training.sweep.ablation import Trial
from training.sweep.bar import TrialBar
from training.sweep.objective import OBJECTIVES, Objective, objective_of, value_of
from training.sweep.report import write_report
from training.sweep.table import Params, Sweep, check_levels, describe, spec_of_trial
from training.sweep.trial import Place, Pruned, run_once

STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
LEAST_EXAM = {"num_prompts": 1, "num_samples": 1, "max_new_tokens": 1}
"""Of trials whose objective is measured on dev rows: their answers are not looked at."""


@dataclass(frozen=True)
class Ground:
    """What all trials share."""

    settings: Settings
    sweep: Sweep
    objective: Objective
    person: RunSpec
    "The spec that a person would run: on the dataset and the base that they named."
    job: Job
    "Of that spec: its rows are those of the trials."
    folder: Path

    @property
    def data(self) -> Path:
        """The rows of all trials."""
        return self.folder / "data"

    @property
    def base(self) -> dict[str, Any]:
        """The spec of all trials, which need no database: nothing of theirs is registered."""
        values = self.person.model_dump(mode="json", exclude_defaults=True)
        values |= {"base": str(self.job.base_directory), "dataset": str(self.data), "report_to": []}
        exam = LEAST_EXAM if self.objective.name in OBJECTIVES else {}
        # What is mixed in is among the rows already.
        still = {"replay": {"general_share": 0, "older_share": 0}} if "replay" in values else {}
        return merged(values, {"evaluation": exam, **still})


def prepare(settings: Settings, sweep: Sweep) -> Ground:
    """Return what all trials share; the sweep's folder then holds their rows.

    Raises:
        HoneError: spec, base or rows do not allow the sweep, or a level is none that the spec takes.
    """
    person = load_spec(ROOT / "configs" / f"{sweep.method}.toml", {"method": sweep.method, **sweep.spec})
    check_prunable(sweep, person)
    objective = objective_of(sweep, person)
    if person.launcher != "local" or person.launch.world > 1:
        raise ConfigError('the trials of a sweep are local runs, one after the other: set launcher = "local"')
    check_levels(sweep, person.model_dump(mode="json", exclude_defaults=True))
    with optional_transaction(settings, person) as session:
        job = make_job(session, settings, person)
        key = data_key(session, person)
    identity = sweep.model_dump(mode="json", exclude={"trials", "max_hours"})
    name = sha256_hex(canonical_json([identity, person.model_dump(mode="json"), key, job.base_version]))[:12]
    ground = Ground(settings, sweep, objective, person, job, settings.var_dir.absolute() / "sweeps" / f"s-{name}")
    ground.folder.mkdir(parents=True, exist_ok=True)
    write_data(None, str(job.directory / "data"), ground.data)
    if objective.needs_dev and not read_rows(ground.data / "dev.jsonl"):
        raise ConfigError(f"objective {objective.name} is measured on dev rows, and the dataset has none: name another")
    return ground


def check_prunable(sweep: Sweep, person: RunSpec) -> None:
    """Raise ConfigError where trials are to be pruned by a loss that nobody measures."""
    if sweep.prune and sweep.method in TABLES["rewards"]:
        raise ConfigError(f"prune looks at the loss on dev rows, and {sweep.method} has none: take prune out")
    if sweep.prune and person.stop.patience is None:
        raise ConfigError(
            "prune looks at the loss on dev rows, which only stop.patience measures: set spec.stop.patience"
        )


def run_sweep(settings: Settings, sweep: Sweep) -> dict[str, Any]:
    """Do the trials that are left and return the report, whose files then lie in the sweep's folder.

    Raises:
        HoneError: the sweep cannot start, a trial's run could not, or no trial came to an end.
    """
    from training.run import alone

    ground = prepare(settings, sweep)
    with alone(ground.folder):
        study = studies.open_study(ground.folder, sweep, ground.objective.direction)
        with TrialBar(sweep.num_trials) as bar:
            do_trials(ground, study, bar)
        return report(ground, study)


def do_trials(ground: Ground, study: optuna.Study, bar: TrialBar) -> None:
    """Do what is left, one trial after the other."""

    def has_time() -> bool:
        return not is_over(ground.sweep, [read_trial(trial) for trial in finished(study)])

    for trial, params in studies.next_trials(study, ground.sweep, has_time):
        taken = [trial.seconds for trial in map(read_trial, finished(study)) if trial.seconds is not None]
        bar.begin(describe(params), len(finished(study)), statistics.mean(taken) if taken else None)
        do_trial(ground, study, trial, params, bar)
        say(ground, study, trial.number, bar)


def is_over(sweep: Sweep, so_far: list[Trial]) -> bool:
    """Say whether another trial of the usual length would go beyond the sweep's time."""
    taken = [trial.seconds for trial in so_far if trial.seconds is not None]
    if sweep.max_hours is None or not taken:
        return False
    return sum(taken) + statistics.mean(taken) > sweep.max_hours * 3600


def do_trial(ground: Ground, study: optuna.Study, trial: optuna.Trial, params: Params, bar: TrialBar) -> None:
    """Run a trial's repeats and tell the study. Raises ConfigError where a run could not start: it can be mended."""
    started = time.monotonic()
    values: list[float] = []
    runs: list[str] = []
    place = Place(ground.settings, ground.folder / "trials" / f"{trial.number:03d}")
    repeats = ground.sweep.repeats

    def said(done: int, total: int) -> None:
        bar.move((len(values) + (done / total if total else 0.0)) / repeats)

    reported = set(study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def look(step: int, loss: float) -> bool:
        if not values and step not in reported:  # a run that goes on looks again at what it has seen
            trial.report(-loss if ground.objective.direction == "maximize" else loss, step)
        return ground.sweep.prune and not values and trial.should_prune()

    state, value, reason = TrialState.COMPLETE, None, None
    try:
        for repeat in range(repeats):
            spec = spec_of_trial(ground.sweep, ground.base, params, repeat)
            directory, found = run_once(place, spec, "spec" if repeats == 1 else f"spec-{repeat}", look, said)
            values.append(value_of(found, ground.objective))
            runs.append(str(directory))
        value = statistics.mean(values)
    except Pruned:
        state = TrialState.PRUNED
    except ProgramFailed as error:
        state, reason = TrialState.FAIL, str(error)
    kept = {"seconds": time.monotonic() - started, "values": values, "runs": runs, "reason": reason}
    for name, found_value in kept.items():
        trial.set_user_attr(name, found_value)
    study.tell(trial, value, state=state)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that have ended, however."""
    return [trial for trial in studies.trials(study) if trial.state.is_finished()]


def read_trial(trial: FrozenTrial) -> Trial:
    """Return a trial as the tables have it."""
    attributes: Mapping[str, Any] = trial.user_attrs
    return Trial(
        number=trial.number,
        params=trial.params,
        state=STATES[trial.state],
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        values=tuple(attributes.get("values", ())),
        seconds=attributes.get("seconds"),
        runs=tuple(attributes.get("runs", ())),
        reason=attributes.get("reason"),
    )


def say(ground: Ground, study: optuna.Study, number: int, bar: TrialBar) -> None:
    """Print a line on the trial that has just ended: what came out, what is best, how long it still takes."""
    ended = [read_trial(trial) for trial in finished(study)]
    trial = next(one for one in ended if one.number == number)
    outcome = f"{ground.objective.name} {trial.value:.4g}" if trial.value is not None else trial.state
    best = best_of(ended, ground.objective)
    left = (ground.sweep.num_trials - len(ended)) * statistics.mean(one.seconds or 0.0 for one in ended)
    parts = [f"trial {len(ended)}/{ground.sweep.num_trials}: {describe(trial.params)}: {outcome}"]
    parts += [f"best {best.value:.4g}"] if best and best.value is not None else []
    parts += [f"about {duration(left)} to go"] if left else []
    bar.say(" · ".join(parts))


def best_of(trials: list[Trial], objective: Objective) -> Trial | None:
    """Return the best trial that is done, of equal ones the first; None without any."""
    best: Trial | None = None
    for trial in trials:
        if trial.value is not None and (best is None or objective.better(trial.value, best.value or 0.0)):
            best = trial
    return best


def report(ground: Ground, study: optuna.Study) -> dict[str, Any]:
    """Write table, picture and `best.toml`, and return the table. Raises ProgramFailed where no trial is done."""
    trials = [read_trial(trial) for trial in studies.trials(study)]
    best = best_of(trials, ground.objective)
    if best is None:
        reasons = "; ".join(sorted({trial.reason or trial.state for trial in trials}))
        raise ProgramFailed(f"none of {len(trials)} trials came to an end ({reasons}): {ground.folder / 'trials'}")
    done = [trial for trial in studies.trials(study) if trial.state == TrialState.COMPLETE]
    importance = studies.importances(study, done, ground.sweep.seed)
    return write_report(
        ground.folder, ground.sweep, ground.objective, trials, best, importance, best_spec(ground, best)
    )


def best_spec(ground: Ground, best: Trial) -> RunSpec:
    """Return the spec that a person can run: the best levels, on the dataset that they named, judged by test rows."""
    values = ground.person.model_dump(mode="json", exclude_defaults=True)
    is_named = ground.person.base is not None and Path(ground.person.base).is_dir()
    values["base"] = str(ground.job.base_directory) if is_named else ground.job.base_version
    values = merged(merged(values, {"evaluation": {"test_only": True}}), ground.sweep.values_of(best.params))
    return parse(RunSpec, values, "the best trial")


def describe_sweep(settings: Settings, sweep: Sweep) -> dict[str, Any]:
    """Return what a sweep would do, without training: trials, levels, rows and about how long.

    Raises:
        HoneError: the sweep could not start.
    """
    from training.preflight import inspect

    ground = prepare(settings, sweep)
    found = inspect(ground.job)
    each = found["estimate"]["seconds"] * sweep.repeats if found["estimate"] else None
    path = ground.folder / studies.JOURNAL
    done = len(finished(studies.open_study(ground.folder, sweep, ground.objective.direction))) if path.exists() else 0
    return {
        "folder": str(ground.folder),
        "method": sweep.method,
        "objective": {"name": ground.objective.name, "direction": ground.objective.direction},
        "space": {name: factor.model_dump(exclude_defaults=True) for name, factor in sweep.space.items()},
        "sampler": "grid" if sweep.is_grid else "tpe" if sweep.sampler == "auto" else sweep.sampler,
        "grid_size": sweep.grid_size,
        "trials": sweep.num_trials,
        "done": done,
        "repeats": sweep.repeats,
        "rows": {split: len(read_rows(ground.data / f"{split}.jsonl")) for split in SPLITS},
        "steps": found["steps"],
        "seconds_each": each,
        "seconds": each * (sweep.num_trials - done) if each is not None else None,
    }
