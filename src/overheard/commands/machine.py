"""Device and threads, set once, before anything is computed."""

import torch
from threadpoolctl import threadpool_limits

from overheard.errors import InputError
from overheard.metering import leave_imports_alone


def set_up(device: str, threads: int) -> torch.device:
    """Fix torch's thread count and return the device; what the command imports has been imported.

    Raises:
        InputError: no such device here, or no sensible number of threads.
    """
    if threads < 1:
        raise InputError("threads", threads, "give a whole number from 1 up")
    leave_imports_alone()
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
