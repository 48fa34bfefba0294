"""Where training runs: one CPU, one GPU, several, or several hosts; Lightning Fabric by flags alone."""

import logging
import os
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric

from overheard.errors import InputError
from overheard.training.settings import Precision

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass(frozen=True)
class Devices:
    """What to train on.

    Attributes:
        device: "cpu", "cuda", or one of several, "cuda:1".
        count: processes on this host, one GPU each with cuda.
        hosts: how many hosts run this command. Under torchrun both come from there.
    """

    device: str = "cpu"
    count: int = 1
    hosts: int = 1


def launch(devices: Devices, precision: Precision) -> Fabric:
    """A launched Fabric: in every process after this, `global_rank` says which one it is.

    Raises:
        InputError: counts that make no sense, or GPUs that are not here.
    """
    kind, _, index = devices.device.partition(":")
    count, hosts = devices.count, devices.hosts
    if count < 1 or hosts < 1:
        raise InputError("devices, hosts", f"{count}, {hosts}", "give whole numbers from 1 up")
    if _under_torchrun():
        count = int(os.environ["LOCAL_WORLD_SIZE"])
        hosts = int(os.environ["WORLD_SIZE"]) // count
    elif hosts > 1:
        raise InputError("hosts", hosts, "start the command with torchrun on each host: it tells them of each other")
    if kind == "cuda" and torch.cuda.device_count() < count:
        raise InputError("devices", f"{count} GPUs, {torch.cuda.device_count()} here", "ask for no more than there are")
    chosen: list[int] | int = [int(index)] if kind == "cuda" and index else count
    # Fabric greets at length what the command line already says.
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=kind,
        devices=chosen,
        num_nodes=hosts,
        strategy="ddp" if count * hosts > 1 else "auto",
        precision=PRECISIONS[precision],  # pyright: ignore[reportArgumentType]
    )
    fabric.launch()
    return fabric


def total(fabric: Fabric, *values: float | int) -> list[float]:
    """Each number summed over all processes."""
    if fabric.world_size == 1:
        return [float(value) for value in values]
    summed = fabric.all_reduce(torch.tensor(values, dtype=torch.float64, device=fabric.device), reduce_op="sum")
    assert isinstance(summed, torch.Tensor)
    return summed.tolist()


def any_of(fabric: Fabric, here: bool) -> bool:
    """Whether it holds in some process."""
    return total(fabric, float(here))[0] > 0


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and "LOCAL_WORLD_SIZE" in os.environ
