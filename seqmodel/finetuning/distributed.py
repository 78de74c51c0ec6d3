"""Distributed training: the processes of one job, one alone or several started by torchrun.

Each process takes a part of the clips of a step; sums are over all processes.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class DistributedContext:
    """Rank of this process, number of processes, and device."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints messages (rank 0)."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of the tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait until all processes reach this call."""
        if self.size > 1:
            dist.barrier()


def join_distributed(device: str) -> DistributedContext:
    """Join the processes that torchrun started (WORLD_SIZE, RANK), or run alone; on CUDA each process uses
    one device."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return DistributedContext(device=device)
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device.startswith("cuda"):
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return DistributedContext(rank, size, device)


def leave_distributed() -> None:
    """Leave the process group, so that the other processes end without an error."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
