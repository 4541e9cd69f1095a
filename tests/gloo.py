"""Some processes that train together, without Ray."""

import os
import tempfile
from collections.abc import Callable


def run(workers: int, function: Callable, *arguments) -> None:
    """Call a function in each of these processes, in one group of torch.distributed on this machine's CPUs."""
    from torch.multiprocessing import spawn

    with tempfile.TemporaryDirectory() as scratch:
        spawn(_process, (workers, f"file://{scratch}/group", function, arguments), workers)


def _process(rank: int, workers: int, group: str, function: Callable, arguments: tuple) -> None:
    import torch

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
    # accelerate asks for them, although the group is there
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=group, rank=rank, world_size=workers)
    try:
        function(*arguments)
    finally:
        torch.distributed.destroy_process_group()
