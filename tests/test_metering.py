"""Peak memory is what a block needed on top, whatever was freed before."""

import gc
import sys
import time
import weakref

import pytest
import torch

from overheard.metering import leave_imports_alone, metered


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


def test_a_collection_passes_over_what_was_imported() -> None:
    """Frozen once, before the first test; what is made later is garbage like any other."""
    frozen = gc.get_freeze_count()
    assert frozen > 10_000
    leave_imports_alone()
    assert gc.get_freeze_count() <= frozen
    ring: list[object] = [torch.ones(1)]
    ring.append(ring)
    gone = weakref.ref(ring[0])
    del ring
    with metered(torch.device("cpu")):
        assert gone() is None
