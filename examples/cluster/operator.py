"""Seldon's operators: they start arms, report their readiness in `status`, and bring splits to the data plane."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from examples.cluster.faults import Faults
from examples.cluster.rules import EXPERIMENTS, MODELS, V1, v2_refusal
from examples.cluster.store import Key, Manifest

VERSION = "hone/model-version"


@dataclass(frozen=True)
class Arm:
    """One version that shall be served, as the manifests say it. `parameters` are its `version` and `directory`."""

    name: str
    version: str
    parameters: tuple[tuple[str, str], ...]


class Arms(Protocol):
    """What runs the arms."""

    def keep(self, arms: dict[str, Arm]) -> None:
        """Run exactly these, by name; those that run already go on."""
        ...

    def is_ready(self, name: str) -> bool:
        """Say whether the arm answers."""
        ...


@dataclass
class SimulatedArms:
    """Arms that are nothing but a name: ready some time after they were asked for, unless they fail."""

    clock: Callable[[], float]
    ready_after_s: float = 0.0
    failing: set[str] = field(default_factory=set)
    "Versions that never become ready, or no longer are."
    since: dict[str, float] = field(default_factory=dict)
    arms: dict[str, Arm] = field(default_factory=dict)

    def keep(self, arms: dict[str, Arm]) -> None:
        """Run exactly these."""
        self.arms = dict(arms)
        self.since = {name: self.since.get(name, self.clock()) for name in arms}

    def is_ready(self, name: str) -> bool:
        """Say whether the arm has been there for long enough."""
        arm = self.arms.get(name)
        waited = self.clock() - self.since.get(name, self.clock())
        return arm is not None and arm.version not in self.failing and waited >= self.ready_after_s


class Objects(Protocol):
    """Where the operators read objects and report: the stand-in's store, or a real API server."""

    def all(self, plural: str, namespace: str | None = None) -> Iterator[Manifest]:
        """Yield the objects of a kind."""
        ...

    def set_status(self, key: Key, status: Manifest) -> None:
        """Change an object's status, and nothing else of it."""
        ...


@dataclass(frozen=True)
class Split:
    """Shares by arm name as the data plane has them; `default` is the model whose own endpoint is split too (v2)."""

    shares: tuple[tuple[str, int], ...]
    default: str | None = None
    mirror: str | None = None


@dataclass
class Operator:
    """Reconciles every object; call it as often as you like."""

    store: Objects
    arms: Arms
    faults: Faults
    in_effect: dict[tuple[str, str], Split] = field(default_factory=dict)
    "What the data plane does, by namespace and name of the split."

    def reconcile(self) -> None:
        """Start and stop arms, write statuses, and move traffic."""
        self.arms.keep(dict(self.wanted_arms()))
        for model in list(self.store.all(MODELS)):
            self._model(model)
        for deployment in list(self.store.all(V1)):
            self._deployment(deployment)
        for experiment in list(self.store.all(EXPERIMENTS)):
            self._experiment(experiment)
        known = {place(manifest) for kind in (V1, EXPERIMENTS) for manifest in self.store.all(kind)}
        self.in_effect = {key: split for key, split in self.in_effect.items() if key in known}

    def wanted_arms(self) -> list[tuple[str, Arm]]:
        """Return every arm that some object asks for."""
        arms = [arm_of_model(model) for model in self.store.all(MODELS)]
        for deployment in self.store.all(V1):
            arms += [arm_of_predictor(deployment, predictor) for predictor in deployment["spec"]["predictors"]]
        return [(arm.name, arm) for arm in arms]

    def _model(self, model: Manifest) -> None:
        ready = self.arms.is_ready(model["metadata"]["name"])
        self._report(MODELS, model, {"ModelReady": ready, "Ready": ready})

    def _experiment(self, experiment: Manifest) -> None:
        spec, key = experiment["spec"], place(experiment)
        others = [other["spec"] for other in self.store.all(EXPERIMENTS) if place(other) != key]
        valid = v2_refusal(spec, others) is None
        candidates = valid and all(self.arms.is_ready(arm["name"]) for arm in spec["candidates"])
        mirror = "mirror" not in spec or self.arms.is_ready(spec["mirror"]["name"])
        ready = candidates and mirror
        if ready:
            shares = tuple((arm["name"], arm["weight"]) for arm in spec["candidates"])
            self._route(key, Split(shares, spec.get("default"), spec.get("mirror", {}).get("name")))
        found = {"ExperimentReady": ready, "CandidatesReady": candidates, "MirrorReady": mirror, "Ready": ready}
        self._report(EXPERIMENTS, experiment, found)

    def _deployment(self, deployment: Manifest) -> None:
        name, predictors = deployment["metadata"]["name"], deployment["spec"]["predictors"]
        ready = {one["name"]: self.arms.is_ready(f"{name}-{one['name']}") for one in predictors}
        if all(ready.values()):
            shares = {one["name"]: one.get("traffic", 0) for one in predictors if not one.get("shadow")}
            if len(shares) == 1:
                shares = dict.fromkeys(shares, 100)
            mirror = next((f"{name}-{one['name']}" for one in predictors if one.get("shadow")), None)
            arms = tuple((f"{name}-{arm}", share) for arm, share in shares.items())
            self._route(place(deployment), Split(arms, None, mirror))
        status = {
            "state": "Available" if all(ready.values()) else "Creating",
            "deploymentStatus": {
                f"{name}-{one['name']}-0-chat": {
                    "replicas": one.get("replicas", 1),
                    "availableReplicas": one.get("replicas", 1) if ready[one["name"]] else 0,
                }
                for one in predictors
            },
        }
        self.store.set_status(key_of(V1, deployment), status)

    def _route(self, key: tuple[str, str], split: Split) -> None:
        """Bring a split to the data plane, unless edits do not take and it has one already."""
        if key not in self.in_effect or not self.faults.ineffective:
            self.in_effect[key] = split

    def _report(self, plural: str, manifest: Manifest, found: dict[str, bool]) -> None:
        conditions = [{"type": kind, "status": "True" if value else "False"} for kind, value in found.items()]
        status: dict[str, Any] = {"conditions": conditions, "observedGeneration": manifest["metadata"]["generation"]}
        self.store.set_status(key_of(plural, manifest), status)


def place(manifest: Manifest) -> tuple[str, str]:
    """Return namespace and name."""
    return manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def key_of(plural: str, manifest: Manifest) -> tuple[str, str, str]:
    """Return the key of an object in the store."""
    return plural, manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def arm_of_model(model: Manifest) -> Arm:
    """Return the arm of a Model (v2)."""
    name = model["metadata"]["name"]
    version = str((model["metadata"].get("annotations") or {}).get(VERSION, name))
    return Arm(name, version, (("version", version), ("directory", str(model["spec"]["storageUri"]))))


def arm_of_predictor(deployment: Manifest, predictor: Manifest) -> Arm:
    """Return the arm of a predictor (v1)."""
    version = str((predictor.get("annotations") or {}).get(VERSION, predictor["name"]))
    parameters = tuple((one["name"], one["value"]) for one in predictor["graph"].get("parameters", []))
    return Arm(f"{deployment['metadata']['name']}-{predictor['name']}", version, parameters)
