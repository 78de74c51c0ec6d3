"""The processes of one training job: alone, or started together by torchrun.

Each takes its share of the clips of a step; sums go over all of them.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class DistributedContext:
    """This process's place among those of the job."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and talks."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The tensor's sum over all processes, in each of them."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


def join_distributed(device: str) -> DistributedContext:
    """The team that torchrun's environment names, or a team of one; on CUDA each process takes one device."""
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
    """Say goodbye, so that the other processes end in peace."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
