"""The command `hone plan`. It needs only the library, and a database where the options leave labels or model open."""

from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console

from hone.cli.context import current_settings, json_option, transaction
from hone.cli.output import show_json
from hone.cli.plan_view import plan_facts, show_plan
from hone.errors import ConfigError, NotEnoughData, Retryable
from hone.plan.decide import Override, Question, make_plan
from hone.plan.facts import Goal, Hardware, Labels, Lengths, Shape, read_shape, this_machine
from hone.plan.fit import SEQUENCES
from hone.plan.memory import Adapter
from hone.plan.spec_text import spec_paths, spec_texts
from hone.plan.tables import Tables, load_tables
from hone.store.label_counts import count_labels, mean_tokens
from hone.store.models import stable_model

COUNTS = ("pairs", "edits", "thumbs_up", "thumbs_down", "demonstrations")
count = click.IntRange(min=0)
NOT_DOABLE = 1
CPU, DEFAULT_GPU = "cpu", "h100"


@click.command()
@click.option(
    "--model", help="A size of the tables (0.5b, 8b, 70b …) or a model's directory; default: the stable model."
)
@click.option("--gpus", type=count, help="GPUs; 0: this machine's CPU. Default: 1 with --gpu, else 0.")
@click.option("--gpu", help="Which GPU, by its name in the tables; default: h100.")
@click.option("--memory-gb", type=float, help="Memory of one device, if not the table's (of a CPU: this machine's).")
@click.option(
    "--goal", type=click.Choice(get_args(Goal)), default="style", show_default=True, help="What is to be learned."
)
@click.option("--pairs", type=count, help="Preference pairs. Without any count the stored feedback is counted.")
@click.option("--edits", type=count, help="Those of them whose chosen side is a person's correction.")
@click.option("--thumbs-up", type=count, help="Lone thumbs up.")
@click.option("--thumbs-down", type=count, help="Lone thumbs down.")
@click.option("--demonstrations", type=count, help="Questions with a good answer.")
@click.option("--noise", type=click.FloatRange(0, 1), help="Share of flipped labels, where it was measured.")
@click.option("--prompt-tokens", type=click.IntRange(1), help="Mean tokens of a prompt.")
@click.option("--answer-tokens", type=click.IntRange(1), help="Mean tokens of an answer.")
@click.option(
    "--max-length", type=click.IntRange(8), default=1024, show_default=True, help="Longest sequence, in tokens."
)
@click.option("--max-hours", type=float, help="Time that the whole plan may take.")
@click.option("--max-usd", type=float, help="Money that it may cost.")
@click.option(
    "--method", "stages", multiple=True, type=click.Choice(list(SEQUENCES)), help="Override the methods, in order."
)
@click.option("--adapter", type=click.Choice(get_args(Adapter)), help="Override what is trained.")
@click.option("--rank", type=click.IntRange(1), help="Override the adapter's rank.")
@click.option("--target", "targets", multiple=True, help="Override the adapted linear maps, by name.")
@click.option("--reason", default="", help="Why the tables are overridden; kept in the plan.")
@click.option("--write", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan's specs (TOML) here.")
@click.option("--tables", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Another planner.toml.")
@json_option
def plan(as_json: bool, **options: Any) -> None:
    """Say what to train from these labels on this hardware, why, whether it fits, and what it costs.

    The memory of one device is added up term by term; what will not fit is refused, with what would. Exit code 1 then.
    """
    tables = load_tables(options["tables"])
    found = make_plan(question_of(options, tables), tables)
    if as_json:
        show_json(plan_facts(found))
    else:
        show_plan(found, Console(soft_wrap=False))
    if not found.ok:
        raise SystemExit(NOT_DOABLE)
    if options["write"]:
        for path, text in zip(spec_paths(found, options["write"]), spec_texts(found), strict=True):
            path.write_text(text, encoding="utf-8")
            click.echo(f"written: {path}", err=True)


def question_of(options: dict[str, Any], tables: Tables) -> Question:
    """Return the question; what the options leave open is read from the database."""
    stored = {} if is_told(options) else stored_facts(needs_model=options["model"] is None)
    labels = stored.get("labels", {}) | {
        name: options[name] for name in (*COUNTS, "noise") if options[name] is not None
    }
    lengths = stored.get("lengths") or {}
    asked = {name: options[f"{name}_tokens"] for name in ("prompt", "answer") if options[f"{name}_tokens"]}
    name = options["model"] or stored["model"]
    return Question(
        labels=Labels(**labels),
        shape=shape_named(name, tables),
        hardware=hardware_of(options, tables),
        goal=options["goal"],
        lengths=Lengths(**(lengths | asked), longest=options["max_length"]),
        model=name,
        max_hours=options["max_hours"],
        max_usd=options["max_usd"],
        override=Override(
            stages=options["stages"],
            adapter=options["adapter"],
            rank=options["rank"],
            targets=options["targets"],
            reason=options["reason"],
        ),
    )


def is_told(options: dict[str, Any]) -> bool:
    """Say whether the options hold all that the database would be asked for."""
    return options["model"] is not None and any(options[name] is not None for name in COUNTS)


def stored_facts(*, needs_model: bool) -> dict[str, Any]:
    """Return labels, mean lengths and the stable model's directory.

    Raises:
        ConfigError: no model is stable, and none was named.
        Retryable: the database does not answer.
    """
    settings = current_settings()
    try:
        with transaction(settings) as session:
            return {
                "labels": count_labels(session, settings.trigger.max_generations),
                "lengths": mean_tokens(session),
                "model": stable_model(session).directory if needs_model else None,
            }
    except NotEnoughData:
        raise ConfigError(
            "no model is stable yet: name a size or a directory, as in `hone plan --model 8b --gpus 1`"
        ) from None
    except Retryable as error:
        raise Retryable(f"{error}; without one: `hone plan --model 8b --gpus 1 --pairs 5000`") from None


def shape_named(name: str, tables: Tables) -> Shape:
    """Return the shape of a size in the tables, or of a model's directory. Raises ConfigError."""
    if name in tables.models:
        return tables.models[name]
    if not Path(name).is_dir():
        raise ConfigError(f"{name!r} is neither a directory nor a size in the tables: {', '.join(tables.models)}")
    return read_shape(Path(name))


def hardware_of(options: dict[str, Any], tables: Tables) -> Hardware:
    """Return the devices; of a CPU, this machine's cores and memory.

    Raises:
        ConfigError: the tables do not know the GPU, or one is named and none is to be used.
    """
    gpu, gpus = options["gpu"], options["gpus"]
    if gpu is not None and gpus == 0:
        raise ConfigError(f"--gpu {gpu} with --gpus 0: leave --gpu out to plan for this machine's CPU")
    if gpus is None:
        gpus = 0 if gpu is None else 1
    name = (gpu or DEFAULT_GPU) if gpus else CPU
    known = [key for key in tables.hardware if (key != CPU) is (gpus > 0)]
    if name not in known:
        raise ConfigError(f"--gpu {name!r} is not in the tables: {', '.join(known)}")
    device = tables.hardware[name] if gpus else this_machine(tables.hardware[name])
    if options["memory_gb"]:
        device = device.model_copy(update={"memory_gb": options["memory_gb"]})
    return Hardware(name=name, device=device, gpus=gpus)


commands = (plan,)
