"""Device and threads, set once, before anything is computed."""

import torch
from threadpoolctl import threadpool_limits

from overheard.errors import InputError


def set_up(device: str, threads: int) -> torch.device:
    """Fix torch's thread count and return the device.

    Raises:
        InputError: no such device here, or no sensible number of threads.
    """
    if threads < 1:
        raise InputError("threads", threads, "give a whole number from 1 up")
    torch.set_num_threads(threads)
    # numpy's and scipy's own pools.
    threadpool_limits(threads)
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        # torch built without CUDA asserts; with it, an absent device is a RuntimeError.
        raise InputError("device", repr(device), "choose cpu, or cuda where a GPU is there") from error
    return chosen
