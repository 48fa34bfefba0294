"""Points of the frontier and classes of duration: every utterance once, whatever attacks were tried on it."""

import itertools

from audited_run import failed, record

from overheard.report.leakage import by_duration, frontier


def test_one_success_of_several_attacks_is_a_recovery() -> None:
    priced = {"utility_wer": 0.1, "utterance": "same", "seconds_audio": 1.0}
    records = [record(0, **priced, attack="matching", feature_mae=0.5), record(0, **priced, attack="span")]
    records += [record(1, utility_wer=0.1, utterance="other", feature_mae=0.5)]
    (point,) = frontier(records)
    assert (point.leakage.successes, point.leakage.trials) == (1, 2)
    assert point.utility.value == 0.1


def test_each_defence_and_guarantee_has_its_point() -> None:
    records = [record(index, utility_wer=0.1 * index, defence="noise", epsilon=float(index)) for index in (1, 2)]
    assert [(point.epsilon, point.utility.value) for point in frontier([*records, record(3)])] == [
        (1.0, 0.1),
        (2.0, 0.2),
    ]


def test_classes_hold_every_utterance_once() -> None:
    records = [record(index) for index in range(20)] + [failed(index, "too long") for index in range(20, 30)]
    bins = by_duration(records)
    assert sum(each.rate.trials for each in bins) == 30
    assert sum(each.rate.successes for each in bins) == 20
    assert len({each.end - each.start for each in bins}) == 1
    assert len(bins) <= 9
    assert all(each.start < other.start for each, other in itertools.pairwise(bins))


def test_one_length_is_no_distribution() -> None:
    assert by_duration([record(0, utterance=name) for name in "ab"]) == []
    assert by_duration([]) == []
    assert frontier([record(0)]) == []
