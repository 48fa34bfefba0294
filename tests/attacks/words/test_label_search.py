"""Unknown labels: guessed from the output layer's update, improved one edit at a time."""

from dataclasses import replace

import pytest
import torch
from listener import listened

from overheard.attacks.words.label_search import guess_labels, improve_labels
from overheard.errors import InputError
from overheard.federation.update import ClientUpdate


@pytest.mark.parametrize("wrong", [[1, 9, 3], [1, 2, 3, 3], [2, 3], [2, 1, 3]])
def test_one_edit_is_undone_at_the_true_features(wrong: list[int]) -> None:
    observation, batch = listened(10)
    features = [batch.utterance_features(0)]
    assert improve_labels(observation.model, observation.update, features, [wrong]) == [[1, 2, 3]]


def test_utterances_of_a_batch_are_improved_in_turn() -> None:
    observation, batch = listened(8, 9)
    features = [batch.utterance_features(index) for index in range(2)]
    found = improve_labels(observation.model, observation.update, features, [[1, 2, 9], [4, 8, 6]])
    found = improve_labels(observation.model, observation.update, features, found)
    assert found == [[1, 2, 3], [4, 5, 6]]


def test_a_guess_is_feasible_and_made_of_symbols() -> None:
    observation, _ = listened(10)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        (text,) = guess_labels(observation.model, observation.update, [torch.randn(10, 12)], generator)
        assert 1 <= len(text) <= 10
        assert all(1 <= label < 29 for label in text)


def test_an_output_layer_that_was_not_shared_is_told() -> None:
    observation, batch = listened(10)
    tensors = {name: each for name, each in observation.update.tensors.items() if not name.startswith("output")}
    update = ClientUpdate(tensors, observation.update.protocol)
    with pytest.raises(InputError, match="declare them"):
        improve_labels(replace(observation, update=update).model, update, [batch.utterance_features(0)], [[1]])
