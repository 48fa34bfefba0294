"""What was said in a round, for those who measure; no attack and no server reads it."""

from torch import nn

from overheard.federation.clients import ClientSpeech
from overheard.federation.local_training import LocalOutcome
from overheard.metrics.truth import TrueUtterance, Truth
from overheard.speech.corpus import load_utterance
from overheard.training.data import alphabet_of, front_end_of


def truth_of(model: nn.Module, speech: ClientSpeech, outcome: LocalOutcome) -> Truth:
    """Every different utterance that an update was made from, as the model was given it."""
    alphabet, cuts = alphabet_of(model), {cut.id: cut for cut in speech.cuts}
    said: dict[str, TrueUtterance] = {}
    for heard in outcome.heard:
        for index, name in enumerate(heard.utterances):
            if name not in said and heard.batch is not None:
                text = alphabet.decode(heard.batch.utterance_labels(index))
                features = heard.batch.utterance_features(index).clone()
                spoken = load_utterance(cuts[name])
                said[name] = TrueUtterance(name, spoken.speaker, text, features, spoken.waveform)
    return Truth(tuple(said.values()), front_end_of(model))
