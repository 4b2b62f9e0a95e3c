"""The base model's place in a cache: pretrained in a process of its own when it is not there, else found at once.

This file never imports torch, so that the demo's own process stays small.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

MANIFEST = "manifest.json"
CODE = ("corpus.py", "chat_model.py", "pretrain.py")
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the weights, beside the code and the seed."""

    num_rows: int = 8000
    num_steps: int = 650
    batch_size: int = 16
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    adam_lr: float = 3e-3
    """For embeddings and norms."""
    muon_lr: float = 0.02
    """For the matrices between them."""
    warmup_steps: int = 50
    num_threads: int = 1


class PretrainingFailed(RuntimeError):
    """The pretraining process ended with an error; the message carries the end of what it wrote."""


def cache_key(recipe: Recipe, seed: int) -> str:
    """A hash of everything that decides the weights: code, recipe, seed, library versions."""
    digest = hashlib.blake2b(digest_size=8)
    for name in CODE:
        digest.update(Path(__file__).with_name(name).read_bytes())
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    digest.update(json.dumps([asdict(recipe), seed, versions], sort_keys=True).encode())
    return digest.hexdigest()


def write_manifest(directory: Path, recipe: Recipe, seed: int, figures: dict[str, float]) -> str:
    """Record the hash of every file in `directory` beside recipe and figures; returns the hash over all of them."""
    files = {path.name: _sha256(path) for path in sorted(directory.iterdir()) if path.name != MANIFEST}
    content = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    manifest = {"content_hash": content, "files": files, "recipe": asdict(recipe), "seed": seed, "figures": figures}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return content


def is_whole(directory: Path) -> bool:
    """True when every file named in the manifest is there with its hash."""
    manifest = directory / MANIFEST
    if not manifest.is_file():
        return False
    files: dict[str, str] = json.loads(manifest.read_text())["files"]
    return all((directory / name).is_file() and _sha256(directory / name) == known for name, known in files.items())


def ensure_base(
    cache_dir: Path,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The base model's directory under `cache_dir`, pretrained first if it is missing or damaged.

    `on_progress(step, num_steps)` is called while it trains; without it a bar goes to stderr. The directory appears
    at its place only when it is complete, so a killed call leaves nothing that a later one would take for a model.

    Raises:
        PretrainingFailed: the training process failed.
    """
    recipe = recipe or Recipe()
    target = cache_dir / f"base-{cache_key(recipe, seed)}"
    if is_whole(target):
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".base-", dir=cache_dir) as scratch:
        _pretrain(Path(scratch) / "model", recipe, seed, on_progress)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(Path(scratch) / "model", target)
    return target


def _pretrain(out: Path, recipe: Recipe, seed: int, on_progress: Callable[[int, int], None] | None) -> None:
    command = [sys.executable, "-m", "examples.support.pretrain", "--out", str(out), "--seed", str(seed)]
    command += ["--recipe", json.dumps(asdict(recipe)), "--progress", "lines" if on_progress else "bar"]
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | dict(os.environ)
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors if on_progress else None,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if on_progress:
                step, num_steps = line.split()
                on_progress(int(step), int(num_steps))
        if process.wait() != 0:
            errors.seek(0)
            raise PretrainingFailed(f"pretraining ended with code {process.returncode}: {errors.read()[-2000:]}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
