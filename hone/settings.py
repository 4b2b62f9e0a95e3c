"""Settings: addresses and secrets from the environment (`HONE_*`), behaviour from a TOML file; unknown keys are errors.

A program builds `Settings` once in its `__main__` and passes values on; nothing else reads the environment.
"""

import difflib
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from hone.errors import ConfigError
from hone.off_policy import MAX_GENERATIONS, Action

CONFIG_VARIABLE = "HONE_CONFIG"
OTHER_VARIABLES = frozenset({CONFIG_VARIABLE, "HONE_REQUIRE"})


def null_where_empty(model: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """Return None for an empty text of an optional key: a variable has no other way to take back what a file sets."""
    assert info.field_name
    is_optional = type(None) in get_args(model.model_fields[info.field_name].annotation)
    return None if value == "" and is_optional else value


class Section(BaseModel):
    """A table of the TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def read_empty(cls, value: Any, info: ValidationInfo) -> Any:
        """Read an empty text as null, where null is allowed."""
        return null_where_empty(cls, value, info)


class Ingest(Section):
    """How feedback is read from Kafka."""

    max_rows: int = Field(2000, ge=1, le=50_000)
    poll_timeout_s: float = Field(0.2, gt=0, le=5)
    consumer_group: str = "hone-ingest"
    on_retention_gap: Literal["stop", "continue"] = "stop"
    rebalancing: Literal["eager", "cooperative"] = "eager"
    "How a consumer group moves partitions; the same in all members. Cooperative needs a real broker."
    max_invalid_share: float = Field(0.5, gt=0, le=1)
    "Share of invalid messages in 1,000 above which ingest stops instead of filling the dead letters."
    max_invalid_run: int = Field(200, ge=1)
    "Invalid messages one after the other in a partition at which it stops."
    streams: Path | None = None
    "How topics of another shape are read; see docs/streams.md."


class Pairs(Section):
    """How signals become preference pairs; weights between 0 and 1.5, sources in docs/pairs.md."""

    batch_turns: int = Field(500, ge=1)
    edit_min_distance: float = Field(0.02, ge=0, le=1)
    edit_max_distance: float = Field(0.90, ge=0, le=1)
    weight_choice: float = 1.0
    weight_edit: float = 1.0
    weight_thumbs: float = 0.8
    weight_regenerate: float = 0.3
    weight_regenerate_then_up: float = 0.9
    unsigned_factor: float = Field(0.25, ge=0, le=1)
    "Weight of unsigned feedback relative to signed feedback."


class Trigger(Section):
    """When a retraining is asked for."""

    method: Literal["auto", "sft", "dpo", "sft+dpo", "kto", "ppo", "rloo", "grpo"] = "dpo"
    min_pairs: int = Field(3000, ge=1)
    max_user_share: float = Field(0.02, gt=0, le=1)
    "Largest share of a dataset that one person's feedback may make up."
    max_user_pairs: int = Field(200, ge=1)
    test_share: float = Field(0.2, gt=0, lt=1)
    dev_share: float = Field(0.1, gt=0, lt=1)
    off_policy: Action = "weight"
    "What becomes of training rows whose answers are of another base, or older than `max_generations`."
    off_policy_weight: float = Field(0.5, gt=0, le=1)
    "Factor of their weight, with `off_policy` `weight`."
    max_generations: int = Field(MAX_GENERATIONS, ge=0)
    "Models before the one that is trained whose answers count as its own."


class Training(Section):
    """What a run gets when the request says nothing else; see docs/training.md."""

    spec: Path = Path("configs/dpo.toml")
    golden_tests: Path | None = None
    "Prompts with strings that a right answer contains; supplied by the operator, never trained on."
    general_prompts: Path | None = None
    "Prompts that measure forgetting, in the same form."
    timeout_s: int = Field(6 * 3600, ge=1)


class Gateway(Section):
    """Limits of the HTTP gateway."""

    max_chat_bytes: int = Field(262_144, ge=1024)
    max_feedback_bytes: int = Field(65_536, ge=1024)
    max_in_flight: int = Field(256, ge=1)
    upstream_timeout_s: float = Field(120, gt=0)
    body_timeout_s: float = Field(10, gt=0)
    "How long a client may take to send the body of a request."
    key_requests_per_minute: int = Field(0, ge=0)
    "Requests that one key may make (the admin key: any number); 0: any number."
    produce_timeout_s: float = Field(10, gt=0)
    token_ttl_s: int = Field(30 * 86_400, ge=1)
    response_hook_url: str | None = Field(None, pattern=r"^https?://[^/?#]+")
    "Asked about every answer before it leaves; null: nobody is."
    response_hook_timeout_s: float = Field(2.0, gt=0)
    response_hook_on_failure: Literal["pass", "block"] = "block"
    "What becomes of an answer when the hook is slow, away or answers nonsense."
    response_hook_breaker_failures: int = Field(5, ge=0)
    "After so many failures in a row the hook is not asked; 0: it always is."
    response_hook_breaker_open_s: float = Field(10.0, gt=0)
    "How long, before one answer tries it again."
    cors_origins: tuple[str, ...] = ()

    @field_validator("cors_origins")
    @classmethod
    def are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse what no browser sends as its origin: it would match nothing, and nobody would know why."""
        for origin in origins:
            if not re.fullmatch(r"https?://[^/?#*\s]+", origin):
                raise ValueError(f"{origin} is no origin: write scheme, host and port alone, like https://app.example")
        return origins


class Upstream(Section):
    """An OpenAI-compatible server of somebody else, under the name that plans and `stable_model` give it."""

    url: str = Field(pattern=r"^https?://[^/?#]+/?$")
    "Without path, as `runtime_url`."
    model: str
    "The model's name there."
    api_key: SecretStr = SecretStr("")


class Rollout(Section):
    """Where the rollout policy is, and how often the controller looks."""

    policy: Path = Path("configs/rollout.toml")
    interval_s: float = Field(5.0, gt=0)
    plan_ttl_s: float = Field(900.0, gt=0)


class Seldon(Section):
    """Where Seldon Core is, for `traffic_backend` `seldon_v1` and `seldon_v2`."""

    kubernetes_url: str = "https://kubernetes.default.svc"
    "Address of the Kubernetes API; outside of the cluster, that of `kubectl proxy`."
    token_file: Path | None = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
    ca_file: Path | None = Path("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
    namespace: str = "hone"
    name: str = Field("hone-chat", pattern="^[a-z]([a-z0-9-]{0,16}[a-z0-9])?$")
    "Of the SeldonDeployment or Experiment."
    image: str = "hone-seldon-v1"
    "Of the predictors of v1."
    storage_uri: str = "{directory}"
    "Where Seldon v2 finds a model's folder; `{directory}` and `{version}` are replaced."
    arm_url: str | None = None
    "Where the gateways reach an arm; `{service}` and `{namespace}` are replaced. Null: Seldon's own names."
    prometheus_url: str | None = None
    "Prometheus that counts the requests which come past the gateways; null: nobody does."


class Settings(BaseSettings):
    """All settings of all programs. Secrets are never printed."""

    model_config = SettingsConfigDict(env_prefix="HONE_", extra="forbid", frozen=True, env_nested_delimiter="__")

    mode: Literal["observe", "active"] = "observe"
    database_url: str = "postgresql+psycopg2:///hone"
    kafka_bootstrap_servers: str | None = None
    schema_registry_url: str | None = None
    schema_registry_auth: SecretStr = SecretStr("")
    "`user:password`, where the registry asks for one."
    kafka_incarnation: str | None = None
    "Names this life of the broker in stored offsets; null: the cluster's own id."
    var_dir: Path = Path("var")
    gateway_url: str = "http://127.0.0.1:8700"
    runtime_url: str = "http://127.0.0.1:8710"
    "OpenAI-compatible upstream that serves the models by name."
    runtime_kind: Literal["hone", "vllm"] = "hone"
    "How the controller has versions loaded there: over our runtime's routes, or as adapters of a vLLM engine."
    upstreams: dict[str, Upstream] = {}
    "Versions that others serve, by name; every other version is asked of `runtime_url`."
    router_urls: tuple[str, ...] = ()
    "Every gateway that must hear of a traffic plan; empty: `gateway_url`."
    traffic_backend: Literal["local", "seldon_v1", "seldon_v2"] = "local"
    stable_model: str | None = None
    "What a gateway serves until a controller tells it."
    token_keys: SecretStr = SecretStr("")
    "`kid:hex` pairs separated by commas; the first signs, all verify."
    identity_key: SecretStr = SecretStr("")
    "Hex key of the pseudonyms of users, conversations and turns; changing it starts them anew."
    admin_key: SecretStr = SecretStr("")
    "API key with every scope, for the command line and the controller."
    training_python: Path = Path(sys.executable)
    "Interpreter of `python -m training`: another environment without a change of code."
    airflow_url: str | None = None

    ingest: Ingest = Ingest()
    pairs: Pairs = Pairs()
    trigger: Trigger = Trigger()
    training: Training = Training()
    gateway: Gateway = Gateway()
    rollout: Rollout = Rollout()
    seldon: Seldon = Seldon()

    @field_validator("*", mode="before")
    @classmethod
    def read_empty(cls, value: Any, info: ValidationInfo) -> Any:
        """Read an empty text as null, where null is allowed."""
        return null_where_empty(cls, value, info)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the TOML file, which arrives as keyword arguments."""
        return env_settings, init_settings


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of this process.

    Raises:
        ConfigError: the file is missing or not TOML, or a key is unknown or out of range; names key, value and remedy.
    """
    environ = os.environ if environ is None else environ
    reject_unknown_variables(environ)
    path = environ.get(CONFIG_VARIABLE)
    values = read_toml(Path(path)) if path else {}
    try:
        return Settings(**values)
    except ValidationError as error:
        raise ConfigError(explain(error, path or "the environment", environ)) from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return the file's tables."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}): fix {CONFIG_VARIABLE} or create the file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML ({error}): correct that line") from None


def reject_unknown_variables(environ: Mapping[str, str]) -> None:
    """Raise ConfigError on the first `HONE_*` variable that no setting has, naming the nearest one."""
    known = {f"HONE_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    for name in sorted(environ):
        if name.startswith("HONE_") and name.split("__")[0] not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see docs/settings.md for the list"
            raise ConfigError(f"environment variable {name}={environ[name]!r} is not a setting of hone: {hint}")


def explain(
    error: ValidationError,
    origin: str,
    environ: Mapping[str, str] | None = None,
    *,
    known: Iterable[str] | None = None,
    page: str = "docs/settings.md",
) -> str:
    """Return one line for each wrong key: where, the value, what is wrong, and the nearest of the `known` keys."""
    lines = []
    known = list(all_keys() if known is None else known)
    for item in error.errors():
        key = named(item["loc"], environ)
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key.split(".")[-1], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"remove it, or see {page}"
            lines.append(f"{key} = {item['input']!r} is not a setting: {hint}")
        elif item["type"] == "missing":
            lines.append(f"{key} is missing: set it, see {page}")
        else:
            lines.append(f"{key} = {item['input']!r}: {item['msg']}")
    return f"configuration from {origin}: " + "; ".join(lines)


def named(place: tuple[int | str, ...], environ: Mapping[str, str] | None) -> str:
    """Return the key as the file writes it, with the environment variable that overrides it where there is one."""
    variable = "HONE_" + "__".join(str(part).upper() for part in place)
    key = ".".join(str(part) for part in place)
    return f"{key} (set by {variable})" if variable in (environ or {}) else key


def all_keys() -> list[str]:
    """Return every key of every table, for suggestions."""
    keys = list(Settings.model_fields)
    for field in Settings.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += field.annotation.model_fields
    return keys
