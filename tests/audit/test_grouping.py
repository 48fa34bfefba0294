"""Batches hold as many utterances as asked for, within the audio allowed, the same ones for the same seed."""

import pytest
from lhotse import MonoCut

from overheard.audit.grouping import group
from overheard.errors import InputError


def cuts(*seconds: float) -> list[MonoCut]:
    return [MonoCut(str(index), 0.0, float(each), 0) for index, each in enumerate(seconds)]


def test_single_utterances_keep_their_order() -> None:
    some = cuts(3, 1, 2)
    assert group(some, 1, None, 0) == [[each] for each in some]


@pytest.mark.parametrize("seed", range(5))
def test_batches_are_full_and_within_the_limit(seed: int) -> None:
    some = cuts(1, 5, 2, 4, 3, 9, 2)
    found = group(some, 2, 6.0, seed)
    assert found == group(some, 2, 6.0, seed)
    assert all(len(batch) == 2 and sum(each.duration for each in batch) <= 6 for batch in found)
    used = [each.id for batch in found for each in batch]
    assert len(used) == len(set(used))
    assert "5" not in used
    assert len(found) >= 2


def test_another_seed_draws_other_batches() -> None:
    some = cuts(*range(1, 13))
    drawn = {str([[each.id for each in batch] for batch in group(some, 3, None, seed)]) for seed in range(4)}
    assert len(drawn) == 4


def test_what_fills_no_batch_is_refused() -> None:
    with pytest.raises(InputError, match="no batch of 3 within 2 s"):
        group(cuts(1, 1, 1), 3, 2.0, 0)
    with pytest.raises(InputError, match="batch"):
        group(cuts(1), 0, None, 0)
    assert group([], 2, None, 0) == []
