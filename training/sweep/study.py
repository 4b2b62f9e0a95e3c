"""A sweep's memory: an Optuna study in a journal file of its folder, so that a killed sweep goes on.

Every change is a line that is on the disk before it counts. A trial that was killed stands as running, and is taken up
first; what it trained already its run finds by itself.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from training.sweep.objective import Direction
from training.sweep.table import Factor, Level, Params, Sweep

JOURNAL = "study.log"
NAME = "sweep"
MAX_REPEATED = 50
"""Proposals in a row that were there already: then a space is taken as searched through."""
STARTUP = 5
"""Trials before anything is pruned, and steps of looking before one is."""
SAME_AS = "same_as"


def open_study(folder: Path, sweep: Sweep, direction: Direction) -> optuna.Study:
    """Return the sweep's study as it stands on the disk. The caller holds the folder's lock."""
    optuna.logging.set_verbosity(logging.WARNING)
    mend(folder / JOURNAL)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP) if sweep.prune else optuna.pruners.NopPruner()
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        study_name=NAME,
        direction=direction,
        pruner=pruner,
        load_if_exists=True,
    )
    if sweep.is_grid:
        for point in sweep.grid()[: sweep.num_trials]:
            study.enqueue_trial(point, skip_if_exists=True)
    return study


def mend(journal: Path) -> None:
    """Take away what a killed process left: the lock, and a line that it had begun."""
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if journal.exists() and not (text := journal.read_bytes()).endswith(b"\n"):
        journal.write_bytes(text[: text.rfind(b"\n") + 1])


def trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count, those that were begun included: no waiting ones, none that only repeats another."""
    found = study.get_trials(deepcopy=False)
    return [trial for trial in found if trial.state != TrialState.WAITING and SAME_AS not in trial.user_attrs]


def next_trials(study: optuna.Study, sweep: Sweep, has_time: Callable[[], bool]) -> Iterator[tuple[Trial, Params]]:
    """Yield trials to be done: first those that a killed sweep had begun, then new ones, each with other levels."""
    for begun in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trial = Trial(study, begun._trial_id)
        yield trial, suggest(trial, sweep)
    repeated = 0
    while len(trials(study)) < sweep.num_trials and repeated < MAX_REPEATED and has_time():
        study.sampler = sampler_for(sweep, len(study.get_trials(deepcopy=False)))
        trial = study.ask()
        params = suggest(trial, sweep)
        twin = next((t for t in trials(study) if t.number != trial.number and t.params == params), None)
        if twin is None:
            repeated = 0
            yield trial, params
        else:
            repeated += 1
            trial.set_user_attr(SAME_AS, twin.number)
            study.tell(trial, state=TrialState.FAIL)


def sampler_for(sweep: Sweep, number: int) -> optuna.samplers.BaseSampler:
    """Return a trial's sampler. The seed follows from the trial's number: a sweep that goes on draws the same."""
    seed = sweep.seed * 1_000_003 + number
    if sweep.sampler == "random" or sweep.is_grid:
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def suggest(trial: Trial, sweep: Sweep) -> Params:
    """Return the trial's levels; those that it has already stay."""
    return {name: level_of(trial, name, factor) for name, factor in sweep.space.items()}


def level_of(trial: Trial, name: str, factor: Factor) -> Level:
    """Return one level."""
    if factor.values:
        found: Any = trial.suggest_categorical(name, factor.levels)
        return found  # type: ignore[no-any-return]
    assert factor.low is not None
    assert factor.high is not None
    if factor.is_whole:
        return trial.suggest_int(name, int(factor.low), int(factor.high), log=factor.log)
    return trial.suggest_float(name, factor.low, factor.high, log=factor.log)


def importances(study: optuna.Study, finished: Sequence[FrozenTrial], seed: int) -> dict[str, float]:
    """Return each factor's share of the objective's variance (fANOVA, Hutter et al. 2014); empty where none varies."""
    varied = len({trial.value for trial in finished}) > 1
    if len(finished) < 4 or not varied:
        return {}
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
