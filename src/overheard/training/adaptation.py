"""A recogniser gets used to speakers whose transcripts nobody wrote: it learns from what it hears them say.

Self-training (Scudder 1965; for end-to-end recognisers Kahn, Lee and Hannun 2020, arXiv 1909.09116), after the norms'
statistics were taken anew from the new speech (Li et al. 2016, arXiv 1603.04779).
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from lhotse import MonoCut
from lhotse.utils import fastcopy
from rich.console import Console
from torch import nn

from overheard.recognition.beam import BeamDecoder
from overheard.recognition.normalisation import MaskedBatchNorm
from overheard.training.data import FeatureDataset, alphabet_of, in_order, usable
from overheard.training.evaluation import recognised
from overheard.training.loop import Corpora, Run
from overheard.training.plan import to_go_on_from
from overheard.training.settings import settings_to_json

EPOCHS = 3
"""Of each round."""

LEARNING_RATE = 0.5
"""Where each round begins, relative to the highest that the recogniser was trained with."""


def adapt(
    run: Run, speech: Sequence[MonoCut], rounds: int, search: BeamDecoder | None, console: Console | None = None
) -> Run:
    """Rounds of hearing the new speech and learning from what was heard, beside as much of the speech learnt before.

    Each round is a run in a folder of its own, `adapted/1` and so on in that of the run, and is taken up like one.

    Args:
        run: a finished one; its model is adapted in place.
        speech: of the new speakers. Their transcripts are not read.
        rounds: how many, one at least.
        search: what hears them; None for greedy decoding.
        console: where progress goes.

    Returns:
        The last round; `run` itself where nothing was heard.

    Raises:
        InputError: a round's folder holds another one.
    """
    model, settings = run.model, run.settings
    console = console or Console(quiet=True)
    # A text that CTC can align stands where the transcript was: nothing is learnt from this one.
    unheard = [_with_text(cut, alphabet_of(model).decode([1])) for cut in speech]
    learnt = sorted(run.corpora.train, key=lambda cut: cut.id)
    retake_statistics(model, unheard, settings.batch_seconds)
    last = run
    for index in range(1, rounds + 1):
        heard = {name: text for name, _, text, _ in recognised(model, unheard, settings.batch_seconds, search=search)}
        labelled, _ = usable(model, [_with_text(cut, heard[cut.id]) for cut in unheard if heard.get(cut.id)])
        if not labelled:
            console.print(f"adaptation ends in round {index}: nothing was heard that could be learnt", highlight=False)
            return last
        known = random.Random(settings.seed + index).sample(learnt, min(len(labelled), len(learnt)))
        own = replace(
            settings, epochs=EPOCHS, learning_rate=settings.learning_rate * LEARNING_RATE, schedule="cosine",
            warmup=0.0, keep=1, seed=settings.seed + index,
        )  # fmt: skip
        texts = "\n".join(f"{cut.id} {cut.supervisions[0].text}" for cut in labelled)
        sha256 = hashlib.sha256(texts.encode()).hexdigest()
        adaptation = {"round": index, "heard": {"utterances": len(labelled), "sha256": sha256}}
        configuration = {**run.configuration, "settings": settings_to_json(own), "adaptation": adaptation}
        folder = run.folder / "adapted" / str(index)
        checkpoint = to_go_on_from(folder, configuration, console)
        corpora = Corpora([*labelled, *known], ())
        last = Run(run.fabric, model, corpora, own, configuration, folder, run.workers, checkpoint)
        last.train(console)
        retake_statistics(model, unheard, settings.batch_seconds)
        last.save(None)
    return last


def retake_statistics(model: nn.Module, cuts: Sequence[MonoCut], batch_seconds: float) -> None:
    """Take the running statistics of the model's batch norms anew, from this speech alone.

    Args:
        model: changed in place; one without batch norms is left as it is.
        cuts: utterances; those that cannot be read are left out.
        batch_seconds: audio in one batch, s.
    """
    norms = [module for module in model.modules() if isinstance(module, MaskedBatchNorm)]
    momenta = [norm.momentum for norm in norms]
    training = model.training
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    dataset, device = FeatureDataset(model), next(model.parameters()).device
    for batch_cuts in in_order(cuts, batch_seconds) if norms else ():
        heard = dataset[batch_cuts]
        if heard.batch is not None:
            batch = heard.batch.to(device)
            with torch.no_grad():
                model(batch.features, batch.num_frames)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)


def _with_text(cut: MonoCut, text: str) -> MonoCut:
    return fastcopy(cut, supervisions=[fastcopy(each, text=text) for each in cut.supervisions])
