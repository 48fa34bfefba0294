"""Peak memory is what a block needed on top, whatever was freed before."""

import sys
import time

import pytest
import torch

from overheard.metering import metered


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the peak of a stretch of time")
@pytest.mark.parametrize("megabytes", [40, 160])
def test_the_peak_is_that_of_the_block(megabytes: int) -> None:
    del_me = torch.ones(100 * 2**18)
    del del_me
    with metered(torch.device("cpu")) as meter:
        kept = torch.ones(megabytes * 2**18)
    assert meter.peak_mb == pytest.approx(megabytes, rel=0.2)
    assert kept.numel()


def test_seconds_are_wall_time() -> None:
    with metered(torch.device("cpu")) as meter:
        time.sleep(0.05)
    assert meter.seconds >= 0.05
