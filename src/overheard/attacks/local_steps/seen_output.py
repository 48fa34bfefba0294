"""What an update says about all utterances' output frames, after one step or along several."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from overheard.attacks.local_steps.path import Steps, Weights, revisit
from overheard.attacks.output_layer import FrameEvidence, OutputRun, frame_evidence, run_output_layer
from overheard.attacks.rank import layer_matrix
from overheard.attacks.words.scored_texts import mean_occupancies
from overheard.attacks.words.text_lattice import Text
from overheard.federation.update import ClientUpdate


@dataclass(frozen=True)
class SeenOutput:
    """The output layer's update beside what the layer was shown.

    Attributes:
        run: of the output layer; along several steps the mean of its inputs and of its probabilities.
        gradient: (V, C) of that layer, a sum over utterances and a mean over steps.
        precision: relative rounding of the update's numbers.
        chains: of each utterance, as in `FrameEvidence`; empty for one step.
    """

    run: OutputRun
    gradient: Float[Tensor, "V C"]
    precision: float
    chains: tuple[Sequence[tuple[float, Float[Tensor, "_ V"]]], ...] = ()

    def evidence(self, known: dict[int, Float[Tensor, "_ V"]]) -> dict[int, FrameEvidence]:
        """Of the utterances whose shares are not known yet; see `frame_evidence`."""
        found = frame_evidence(self.run, self.gradient, known, self.precision)
        if not self.chains:
            return found
        return {index: replace(each, chains=tuple(self.chains[index])) for index, each in found.items()}

    def share(self, index: int, text: Text) -> Float[Tensor, "T V"]:
        """p - gamma of an utterance with a text."""
        log_probs = self.run.logits[index].log_softmax(dim=-1)
        chains = self.chains[index] if self.chains else ((1.0, log_probs),)
        return log_probs.exp() - mean_occupancies(chains, [text])[:, 0]


def seen_along_steps(
    model: nn.Module,
    update: ClientUpdate,
    features: Sequence[Float[Tensor, "_ F"]],
    texts: Sequence[Text],
    layer: str,
    precision: float,
    taken: Steps,
) -> tuple[SeenOutput, list[Weights] | None]:
    """What a delta of several steps says, given about what was said: what the layer's moving inputs did is subtracted.

    The update is sum_k c_k sum_t r_tk h_tk'. With texts that are about right, sum_k c_k sum_t r_tk (h_tk - h_t)' is
    computed, h_t the mean of the inputs, and least squares on h_t then gives sum_k c_k r_tk.

    Args:
        model: the public model, with the weights that the client started from.
        update: what the client shared.
        features: (T_i, F) of each utterance.
        texts: labels of each.
        layer: the output layer's name.
        precision: relative rounding of the update's numbers.
        taken: steps of these, emptied on the way.

    Returns:
        that, and the path that was passed; None where there is no room to keep it.
    """
    steps: list[tuple[float, OutputRun]] = []

    def look(share: float) -> None:
        run = run_output_layer(model, features, update.protocol.mode)
        assert run is not None  # as at the start, where this layer was found
        steps.append((share, run))

    path = revisit(model, update, features, texts, taken, look)
    total = sum(share for share, _ in steps)
    steps = [(share / total, run) for share, run in steps]
    gradient = layer_matrix(update, layer, model.get_submodule(layer))
    assert gradient is not None  # the observed update has this layer
    gradient = gradient * (update.protocol.num_utterances / total)
    inputs, logits, chains = [], [], []
    for index, text in enumerate(texts):
        mean = torch.stack([share * run.inputs[index] for share, run in steps]).sum(dim=0)
        chain = [(share, run.logits[index].log_softmax(dim=-1)) for share, run in steps]
        for (share, run), (_, log_probs) in zip(steps, chain, strict=True):
            misfit = log_probs.exp() - mean_occupancies(((1.0, log_probs),), [text])[:, 0]
            drift = share * misfit.T @ (run.inputs[index] - mean)
            gradient = gradient - functional.pad(drift, (0, gradient.shape[1] - drift.shape[1]))
        inputs.append(mean)
        logits.append(torch.stack([share * log_probs.exp() for share, log_probs in chain]).sum(dim=0).log())
        chains.append(tuple(chain))
    run = OutputRun(layer, tuple(inputs), tuple(logits), True)
    return SeenOutput(run, gradient, precision, tuple(chains)), path
