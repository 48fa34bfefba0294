"""Utterances -> batches: dynamic buckets, features on the fly, and whatever cannot be used left out by name."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float
from lhotse import CutSet, MonoCut
from lhotse.dataset import DynamicBucketingSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from overheard.errors import InputError
from overheard.recognition.loss import infeasible_reason
from overheard.recognition.recogniser import as_recogniser
from overheard.speech.alphabet import Alphabet
from overheard.speech.augmentation import AugmentationConfig, augment_features, augment_waveform, generator_for
from overheard.speech.batching import Batch, collate
from overheard.speech.corpus import Problem, load_utterance
from overheard.speech.features import FrontEnd, FrontEndConfig
from overheard.training.settings import TrainingSettings

LEAST_BUFFER = 20_000
"""Lhotse's default; it warns of less."""


@dataclass(frozen=True)
class Heard:
    """One batch on its way to the model.

    Attributes:
        utterances: ids in the batch's order.
        batch: None when not one of the utterances could be used.
        problems: those left out.
    """

    utterances: tuple[str, ...]
    batch: Batch | None
    problems: tuple[Problem, ...]


class FeatureDataset(Dataset[Heard]):
    """Cuts -> `Heard`; a file that cannot be read costs its own utterance and nothing else.

    Args:
        model: whose front end, alphabet and output lengths apply; only those are kept.
        augmentation: what to change, None in evaluation.
        seed: of the augmentation.
    """

    def __init__(self, model: nn.Module, augmentation: AugmentationConfig | None = None, seed: int = 0) -> None:
        self.front_end = FrontEnd(front_end_of(model))
        self.alphabet = alphabet_of(model)
        self.output_length = OutputLength(model)
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0

    def __getitem__(self, cuts: Iterable[MonoCut]) -> Heard:
        names: list[str] = []
        features: list[Tensor] = []
        labels: list[list[int]] = []
        problems: list[Problem] = []
        for cut in cuts:
            try:
                heard, said = self.hear(cut)
            except InputError as error:
                speaker = str(cut.supervisions[0].speaker)
                problems.append(Problem(cut.id, speaker, str(error.found), error.remedy))
                continue
            names.append(cut.id)
            features.append(heard)
            labels.append(said)
        return Heard(tuple(names), collate(features, labels) if names else None, tuple(problems))

    def hear(self, cut: MonoCut) -> tuple[Float[Tensor, "T F"], list[int]]:
        """Features and labels of one utterance, changed for the epoch where that leaves room for its transcript.

        Raises:
            InputError: the audio cannot be read, or the transcript has a symbol that the alphabet lacks.
        """
        utterance = load_utterance(cut)
        labels = self.alphabet.encode(utterance.transcript, cut.id)
        with torch.no_grad():
            plain = self.front_end(utterance.waveform)
            if self.augmentation is None:
                heard = plain
            else:
                generator = generator_for(self.seed, self.epoch, cut.id)
                heard = self.front_end(augment_waveform(utterance.waveform, self.augmentation, generator))
                heard = augment_features(heard, self.augmentation, generator)
                if infeasible_reason(len(heard), self.output_length(len(heard)), labels) is not None:
                    heard = plain
        if not bool(torch.isfinite(heard).all()):
            raise InputError(cut.id, "features hold NaN or infinity", "look at the samples of its file")
        reason = infeasible_reason(len(heard), self.output_length(len(heard)), labels)
        if reason is not None:
            raise InputError(cut.id, reason, "leave it out: CTC has no path for it")
        return heard, labels


class OutputLength:
    """Output frames of so many input frames, without the weights of the model that says so."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.known: dict[int, int] = {}

    def __call__(self, num_frames: int) -> int:
        if num_frames not in self.known:
            lengths = as_recogniser(self.model).output_lengths(torch.tensor([num_frames]))
            self.known[num_frames] = int(lengths[0])
        return self.known[num_frames]


def usable(model: nn.Module, cuts: Sequence[MonoCut]) -> tuple[list[MonoCut], list[Problem]]:
    """Cuts that CTC can align, by their durations and transcripts alone, and the others with the reason."""
    front_end, alphabet, output_length = front_end_of(model), alphabet_of(model), OutputLength(model)
    fine: list[MonoCut] = []
    problems: list[Problem] = []
    for cut in cuts:
        try:
            labels = alphabet.encode(cut.supervisions[0].text or "", cut.id)
        except InputError as error:
            problems.append(Problem(cut.id, str(cut.supervisions[0].speaker), str(error.found), error.remedy))
            continue
        frames = front_end.num_frames(cut.num_samples or 0)
        reason = infeasible_reason(frames, output_length(frames), labels)
        if reason is None:
            fine.append(cut)
        else:
            speaker = str(cut.supervisions[0].speaker)
            problems.append(Problem(cut.id, speaker, reason, "leave it out: CTC has no path for it"))
    return fine, problems


def bucketing(
    cuts: Sequence[MonoCut], settings: TrainingSettings, epoch: int, *, rank: int = 0, world_size: int = 1
) -> DynamicBucketingSampler:
    """Batches of like durations in an order of this epoch's own, as many for every process.

    Together, the processes draw the batches that one process would draw in their order.
    """
    durations = sorted(cut.duration for cut in cuts)
    # Equally many utterances in each; a corpus of equal durations has one bucket.
    places = [len(durations) * number // settings.buckets for number in range(1, settings.buckets)]
    edges = sorted({durations[place] for place in places if durations[place] > durations[0]})
    sampler = DynamicBucketingSampler(
        tuple(cuts),
        max_duration=max(settings.batch_seconds_in(epoch), durations[-1]),
        duration_bins=edges,
        shuffle=True,
        # All of them: a smaller buffer would shuffle within a stretch of the corpus alone.
        buffer_size=max(LEAST_BUFFER, len(cuts)),
        seed=settings.seed,
        rank=rank,
        world_size=world_size,
    )
    sampler.set_epoch(epoch)
    return sampler


class From(Sampler[CutSet]):
    """A sampler's batches without the first few, which an interrupted run has already learnt from."""

    def __init__(self, sampler: DynamicBucketingSampler, skipped: int) -> None:
        self.sampler = sampler
        self.skipped = skipped

    def __iter__(self) -> Iterator[CutSet]:
        return islice(iter(self.sampler), self.skipped, None)


def training_loader(
    dataset: FeatureDataset, sampler: DynamicBucketingSampler, *, epoch: int, skipped: int, workers: int
) -> DataLoader[Heard]:
    """The sampler's batches in their order, prepared by so many processes beside the training."""
    dataset.epoch = epoch
    return DataLoader(
        dataset,
        sampler=From(sampler, skipped),
        batch_size=None,
        num_workers=workers,
        # Its own: from the global one it would draw once more in an epoch that was interrupted.
        generator=torch.Generator(),
        worker_init_fn=_one_thread if workers else None,
    )


def in_order(cuts: Sequence[MonoCut], batch_seconds: float) -> list[list[MonoCut]]:
    """Batches of like durations for evaluation: longest first, so that what does not fit memory shows at once."""
    batches: list[list[MonoCut]] = []
    for cut in sorted(cuts, key=lambda cut: (-cut.duration, cut.id)):
        if not batches or (len(batches[-1]) + 1) * batches[-1][0].duration > batch_seconds:
            batches.append([])
        batches[-1].append(cut)
    return batches


def front_end_of(model: nn.Module) -> FrontEndConfig:
    """The model's front end, as `Recogniser` describes it."""
    front_end = model.front_end
    assert isinstance(front_end, FrontEndConfig)
    return front_end


def alphabet_of(model: nn.Module) -> Alphabet:
    """The model's alphabet, as `Recogniser` describes it."""
    alphabet = model.alphabet
    assert isinstance(alphabet, Alphabet)
    return alphabet


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
