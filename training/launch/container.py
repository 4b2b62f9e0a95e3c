"""Entry of a container that a cloud's training service starts: `python -m training.launch.container JOB.json`.

SageMaker tells hosts by SM_HOSTS, SM_CURRENT_HOST and SM_NUM_GPUS; Vertex AI by CLUSTER_SPEC. Both become one torchrun
a machine, of the same module that runs everywhere.
"""

import json
import os
import sys
from collections.abc import Mapping

from hone.errors import ConfigError

PORT = "29500"


def entry_command(job_path: str, environ: Mapping[str, str], num_gpus: int) -> list[str]:
    """Return torchrun's command of this machine. Raises ConfigError where the service's variables make no sense."""
    try:
        machines, index, master = place_of(environ)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ConfigError(
            f"the training service's variables make no sense ({error!r}): see docs/launchers.md"
        ) from None
    processes = str(max(1, int(environ.get("SM_NUM_GPUS", num_gpus))))
    where = ["--nnodes", str(machines), "--node-rank", str(index), "--nproc-per-node", processes]
    return ["torchrun", *where, "--master-addr", master, "--master-port", PORT, "-m", "training", "run", job_path]


def place_of(environ: Mapping[str, str]) -> tuple[int, int, str]:
    """Return (machines, the number of this one, the first one's address)."""
    if "SM_HOSTS" in environ:
        hosts = sorted(json.loads(environ["SM_HOSTS"]))
        return len(hosts), hosts.index(environ["SM_CURRENT_HOST"]), hosts[0]
    if "CLUSTER_SPEC" in environ:
        spec = json.loads(environ["CLUSTER_SPEC"])
        pools = [(pool, address) for pool in sorted(spec["cluster"]) for address in spec["cluster"][pool]]
        task = spec["task"]
        mine = spec["cluster"][task["type"]][task["index"]]
        return len(pools), pools.index((task["type"], mine)), pools[0][1].split(":")[0]
    return 1, 0, "127.0.0.1"


def main() -> None:
    """Become torchrun."""
    import torch

    command = entry_command(sys.argv[1], os.environ, torch.cuda.device_count())
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
