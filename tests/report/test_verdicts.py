"""The verdict on models and defences: of each utterance the best attack, in words that claim no more than was tried."""

from dataclasses import replace

from audited_run import failed, record
from many_records import hearings

from overheard.report.verdicts import standings, verdict_headline, verdict_sentences


def test_the_best_attack_on_each_utterance_counts() -> None:
    wrong = {"feature_mae": 0.5, "frames_close": 10, "words_true": 4}
    records = [
        record(0, utterance="a", attack="matching", transcript_recovered="go", words_recovered=1, **wrong),
        record(0, utterance="a", attack="span", frames_close=51, words_true=4),
        record(1, utterance="b", attack="span", transcript_recovered="", words_recovered=0, **wrong),
    ]
    (found,) = standings(records)
    assert (found.rate.successes, found.rate.trials) == (1, 2)
    assert found.attacks == ("matching", "span")
    assert found.words is not None
    assert found.words.value == 1 / 8
    assert found.outcome == "recovered"


def test_a_speaker_is_named_by_any_attack_and_lost_where_nothing_came_back() -> None:
    first, second = hearings(0), hearings(6)
    records = [record(0, utterance="a", hearings=second), record(0, utterance="a", attack="other", hearings=first)]
    records += [record(1, utterance="b", hearings=second), record(2, utterance="not listened to")]
    (found,) = standings(records)
    assert found.speaker is not None
    assert (found.speaker.successes, found.speaker.trials) == (1, 2)


def test_parts_are_told_from_nothing() -> None:
    part = record(0, defence="noise", feature_mae=0.5, frames_close=1)
    nothing = record(0, defence="sign", feature_mae=0.5, frames_close=0)
    assert [each.outcome for each in standings([part, nothing, failed(1, "no")])] == ["in part", "failed", "failed"]
    unknown = record(0, feature_mae=0.5)
    assert standings([unknown])[0].outcome == "in part"


def test_the_headline_counts_defences_and_not_their_absence() -> None:
    clip = record(0, defence="clip")
    noise = replace(failed(1, "no solution"), defence="noise")
    found = standings([record(0), clip, noise])
    assert (
        verdict_headline(found).replace("\u00a0", " ")
        == "Speech came back without a defence, and under 1 of 2 defences"
    )
    assert verdict_headline(standings([clip, noise])).replace("\u00a0", " ") == "Speech came back under 1 of 2 defences"
    assert verdict_headline(standings([noise])) == "No utterance came back whole"
    said = verdict_sentences(found)
    assert said[0] == "Utterances of at least one model came back whole under clip."
    assert said[1] == "Nothing came back under noise: this holds for the attacks that were tried, and for no others."
