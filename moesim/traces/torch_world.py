"""The processes that train together: one, or as many as torchrun started."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass

from moesim.traces.torch_door import Tensor, torch


@dataclass(frozen=True)
class World:
    """This process' `rank` among `size`, and the device it computes on. With one process every exchange is nothing."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that records and writes."""
        return self.rank == 0

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
                tensor.div_(self.size)

    def add(self, tensor: Tensor) -> None:
        """Replace the tensor by its sum over the processes."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)

    def mean(self, value: Tensor) -> float:
        """The mean of a number over the processes."""
        self.add(value)
        return float(value) / self.size

    def least(self, value: float) -> float:
        """The least of a number over the processes, the same on each."""
        return -self.most(-value)

    def most(self, value: float) -> float:
        """The greatest of a number over the processes, the same on each."""
        if self.size == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        return float(found)

    def synchronise(self) -> None:
        """Until this device has done what it was given, so that a clock tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()


def join() -> World:
    """The world that torchrun's environment names, or this process alone; a GPU where there is one."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if size > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(torch.distributed.destroy_process_group)
    return World(rank, size, device)
