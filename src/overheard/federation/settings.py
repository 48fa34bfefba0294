"""`FederationSettings`: everything that decides what a federated run computes; stored with every checkpoint."""

from dataclasses import dataclass, replace
from typing import Literal

from overheard.errors import InputError
from overheard.federation.defences.registry import Chosen, change_training, cohort_defence, parse_defence
from overheard.federation.local_settings import LocalSettings
from overheard.recognition.configuration import check_choice, check_positive, check_whole
from overheard.speech.augmentation import AugmentationConfig
from overheard.training.schedule import learning_rate
from overheard.training.settings import TrainingSettings

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class FederationSettings:
    """How clients and server learn together.

    Attributes:
        rounds: of the whole run.
        clients_per_round: drawn for each round, each with the same probability.
        local: what a client does, before the defences change it.
        schedule: of the clients' learning rate over the rounds of the whole run, as in training: cosine falls towards
            1 % of the highest; within a round the rate stays.
        strategy: of the server, a name with settings: "FedAvg", "FedAdam:eta=0.01,tau=0.001".
        defences: in the order in which they act, names with settings: "clip:norm=1".
        capture: so many clients of a round have their updates kept.
        capture_rounds: rounds of which updates are kept; none for all.
        deadline: seconds that a client may take for a round.
        least_replies: valid updates without which the run stops.
        augmentation: what is changed in what the models hear.
        evaluate_every: rounds between two measurements of the word error rate; the last round is always measured. 0 to
            measure nothing.
        evaluate_seconds: audio in one batch of a measurement, s.
        keep: how many of the last checkpoints stay, beside the best one.
        delta: of the (epsilon, delta) that is stated.
        seed: of weights, cohorts, order, noise.

    Raises:
        InputError: a value out of range, an unknown defence, or settings that contradict each other.
    """

    rounds: int = 10
    clients_per_round: int = 5
    local: LocalSettings = LocalSettings()
    schedule: Schedule = "constant"
    strategy: str = "FedAvg"
    defences: tuple[str, ...] = ()
    capture: int = 0
    capture_rounds: tuple[int, ...] = ()
    deadline: float = 600.0
    least_replies: int = 1
    augmentation: AugmentationConfig | None = None
    evaluate_every: int = 1
    evaluate_seconds: float = 60.0
    keep: int = 3
    delta: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "clients_per_round", "least_replies", "keep"):
            check_whole(name, getattr(self, name), 1, 2**31)
        for name in ("capture", "evaluate_every"):
            check_whole(name, getattr(self, name), 0, 2**31)
        check_choice("schedule", self.schedule, ("constant", "cosine"))
        check_positive("deadline", self.deadline)
        check_positive("evaluate_seconds", self.evaluate_seconds)
        if not 0 < self.delta < 1:
            raise InputError("delta", self.delta, "give a probability between 0 and 1, below 1 over the clients")
        cohort_defence(self.chosen())
        local = self.defended()
        if self.capture and local.kind == "delta" and local.optimiser != "sgd":
            remedy = "capture from clients that use sgd: attacks read a delta as steps of plain descent"
            raise InputError("capture", f"updates of {local.optimiser}", remedy)

    def chosen(self) -> list[Chosen]:
        """The defences, parsed."""
        return [parse_defence(text) for text in self.defences]

    def defended(self) -> LocalSettings:
        """What a client does under all defences."""
        return change_training(self.local, self.chosen())

    def local_in(self, number: int) -> LocalSettings:
        """What a client does in round `number`, from 1 up, under all defences."""
        local = self.defended()
        course = TrainingSettings(learning_rate=local.learning_rate, schedule=self.schedule, warmup=0.0)
        return replace(local, learning_rate=learning_rate(course, (number - 1) / self.rounds))

    def captures(self, number: int) -> int:
        """How many clients' updates of a round are kept."""
        return self.capture if not self.capture_rounds or number in self.capture_rounds else 0
