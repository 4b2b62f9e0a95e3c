"""Log-probabilities under the reference, computed once for a pair and base and kept on disk.

Key: a digest of the weights and of what decides the rounding, and the token ids of the pair. So another learning rate,
a run that starts anew, or a larger dataset on the same base computes only what is new. A value from the disk is the
one that was computed first, in a batch of other shape maybe: equal to the last digits, not always to the last bit.
"""

import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from training.distributed import from_main, is_main, of_all, share_of
from training.pairs import TokenPair
from training.policy import pair_logps
from training.progress import Progress

REFERENCE_BATCH = 32
KEPT_BASES = 8
"""Files in the cache: the bases that were used last."""
KEY_BYTES = 16

Logps = tuple[float, float]
"""Of the chosen and of the rejected answer, nats."""


def reference_logps(
    model: Any,
    pairs: Sequence[TokenPair],
    wanted: set[int],
    pad: int,
    progress: Progress,
    *,
    shared: bool = False,
    cache: Path | None = None,
) -> dict[int, Logps]:
    """Return (chosen, rejected) log-probabilities under the model as it is, for the wanted pairs.

    Args:
        shared: compute each prompt once.
        cache: a folder to look them up in first, and to leave them in; None: neither.
    """
    progress.stage("reference")
    if cache is None:
        return compute(model, pairs, wanted, pad, progress, shared)
    path = cache / f"{fingerprint(model)}.safetensors"
    known = read(path) if is_main() else {}
    keys = {index: key_of(pairs[index]) for index in sorted(wanted)}
    found = from_main({index: known[key] for index, key in keys.items() if key in known})
    computed = compute(model, pairs, wanted - found.keys(), pad, progress, shared)
    if computed and is_main():
        add(path, {keys[index]: logps for index, logps in computed.items()})
    return found | computed


@torch.no_grad()
def compute(
    model: Any, pairs: Sequence[TokenPair], wanted: set[int], pad: int, progress: Progress, shared: bool
) -> dict[int, Logps]:
    """Return the log-probabilities of the wanted pairs, computed in batches of like length, by all processes."""
    order = sorted(wanted, key=lambda index: (pairs[index].length, index))
    found: dict[int, Logps] = {}
    chunks = share_of([order[at : at + REFERENCE_BATCH] for at in range(0, len(order), REFERENCE_BATCH)])
    for chunk in chunks:
        logps = torch.stack(pair_logps(model, [pairs[index] for index in chunk], pad, shared=shared), dim=1)
        found |= {index: (chosen, rejected) for index, (chosen, rejected) in zip(chunk, logps.tolist(), strict=True)}
        progress.step(len(found), sum(map(len, chunks)))
    return {index: logps for part in of_all(found) for index, logps in part.items()}


def fingerprint(model: Any) -> str:
    """Return 32 hex digits for the weights and for what decides how sums are rounded."""
    digest = hashlib.sha256(f"{torch.__version__} {torch.get_num_threads()} {model.device.type}".encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def key_of(pair: TokenPair) -> bytes:
    """Return the name of a pair: a hash of its three lists of token ids."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for ids in (pair.prompt, pair.chosen, pair.rejected):
        digest.update(struct.pack(f"<{len(ids) + 1}q", len(ids), *ids))
    return digest.digest()


def read(path: Path) -> dict[bytes, Logps]:
    """Return what a file of the cache holds; one that is missing or damaged holds nothing."""
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError):
        return {}
    keys = tensors["keys"].numpy().tobytes()
    rows = [keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES)]
    return {row: (chosen, rejected) for row, (chosen, rejected) in zip(rows, tensors["logps"].tolist(), strict=True)}


def add(path: Path, computed: dict[bytes, Logps]) -> None:
    """Add rows to a file of the cache, whole or not at all, and remove the files of bases that were not used lately."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path.parent / "lock"):
        rows = computed | read(path)
        keys = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8)
        scratch = path.with_suffix(".tmp")
        save_file({"keys": keys, "logps": torch.tensor(list(rows.values()))}, scratch)
        os.replace(scratch, path)
        newest_first = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in newest_first[KEPT_BASES:]:
            old.unlink()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock between processes; it ends with the process, however that ends."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
