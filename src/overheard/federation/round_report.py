"""What came of one round, without a word of the engine that ran it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """One client's valid reply.

    Attributes:
        client: its name.
        tensors: of its update, as sent.
        buffers: statistics of its norms; none where they stay local.
        weight: in the mean.
        utterances: heard, counted each time.
        distinct: different ones among them.
        frames: input frames of those.
        steps: taken.
        loss: mean, nats.
        rate: sampling rate of DP-SGD, 0 without it.
        seconds: of its own computing.
        cpu: seconds of its process's CPU in that time.
        size: of what it sent, in bytes.
    """

    client: str
    tensors: dict[str, Tensor]
    buffers: dict[str, Tensor]
    weight: float
    utterances: int
    distinct: int
    frames: int
    steps: int
    loss: float
    rate: float
    seconds: float
    cpu: float
    size: int


@dataclass(frozen=True)
class RoundReport:
    """What happened in a round.

    Attributes:
        number: of the round.
        cohort: names drawn.
        answers: valid replies in the order of the clients' names.
        left_out: reason by name.
        mean: what a cohort defence made of the updates; None without one.
        seconds: from sending to the new weights.
        received: bytes that the server sent to the cohort.
    """

    number: int
    cohort: tuple[str, ...]
    answers: tuple[Answer, ...]
    left_out: dict[str, str]
    mean: dict[str, Tensor] | None
    seconds: float
    received: int
