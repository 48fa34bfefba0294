"""One round after another: a cohort is drawn, bad replies are named and left out, the strategy gets the rest.

`Rounds` is a Flower strategy around another. Clients send updates; strategies average weights, so each update is added
to the server's weights first. Statistics of norms are averaged apart from the weights: optimisers and noise of a server
would corrupt them.
"""

import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError, InconsistentMessageReplies
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from overheard.errors import InputError
from overheard.federation.defences.cohort import weighted_mean
from overheard.federation.defences.registry import cohort_defence, cohort_mean
from overheard.federation.grids import POLL, Cohort
from overheard.federation.local_training import trainable
from overheard.federation.messages import (
    ARRAYS,
    BUFFERS,
    CLIENT,
    CONFIG,
    LOSS,
    METRICS,
    TASK,
    WEIGHT,
    Task,
    from_record,
    read_answer,
    short,
    to_record,
)
from overheard.federation.randomness import noise_generator
from overheard.federation.round_report import Answer, RoundReport
from overheard.federation.settings import FederationSettings
from overheard.federation.strategies import COMPARING

ASKING = 300.0
"""Seconds that nodes may take to appear and to say who they are."""


class Rounds(Strategy):
    """A strategy that watches over another.

    Args:
        inner: averages weights.
        model: the server's; it holds the weights of the round that is going on.
        settings: of the run.
        first: rounds that an earlier sitting has behind it.
        population: clients to wait for before the first round.
        task: says what a round asks of the clients, given its number and the cohort's names.
        report: is told of every round.
        secret: noise comes from the system and not from the seed.
    """

    def __init__(
        self,
        inner: Strategy,
        model: nn.Module,
        settings: FederationSettings,
        first: int,
        population: int,
        task: Callable[[int, tuple[str, ...]], Task],
        report: Callable[[RoundReport], None],
        secret: bool = False,
    ) -> None:
        self.inner = inner
        self.model = model
        self.settings = settings
        self.local = settings.defended()
        self.first = first
        self.population = population
        self.task = task
        self.report = report
        self.secret = secret
        self.names: dict[int, str] = {}
        self.cohort: dict[int, str] = {}
        self.sent_at = 0.0
        self.sent_bytes = 0
        self.summing = cohort_defence(settings.chosen())
        if self.summing is not None and type(inner).__name__ in COMPARING:
            found = f"{type(inner).__name__} with {self.summing.name}"
            raise InputError("strategy", found, "choose one that needs only the mean, such as FedAvg or FedAdam")
        self.sends_buffers = self.local.buffers == "average"
        if self.summing is not None and self.summing.name == "user-dp" and self.sends_buffers and self.buffers():
            remedy = 'give a model with norm "group", or keep the statistics local'
            raise InputError("defence", "user-dp with statistics of batch norms, which no noise covers", remedy)
        self.trained = tuple(trainable(model, self.local))

    def parameters(self) -> dict[str, Tensor]:
        """Of the server."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def buffers(self) -> dict[str, Tensor]:
        """Of the server."""
        return dict(self.model.named_buffers())

    def summary(self) -> None:
        """Nothing is printed."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the cohort and tell it what to do.

        Raises:
            InputError: fewer clients there than a round needs.
        """
        number = self.first + server_round
        wanted = self.settings.clients_per_round
        # Later rounds do not wait for clients that have gone.
        present, silent = self._ask_names(grid, self.population if server_round == 1 else wanted)
        if len(present) < wanted:
            found = f"{len(present)} of the {wanted} clients that a round needs said who they are{silent}"
            raise InputError("clients", found, "ask for fewer with clients-per-round, or mend them")
        drawn = sorted(random.Random(f"{self.settings.seed} {number}").sample(sorted(present), wanted))
        self.cohort = {present[name]: name for name in drawn}
        config[TASK] = self.task(number, tuple(drawn)).record()
        messages = list(self.inner.configure_train(number, arrays, config, Cohort(grid, list(self.cohort))))
        buffers = self.buffers()
        for message in messages:
            if buffers:
                message.content[BUFFERS] = to_record(buffers)
        self.sent_at = time.perf_counter()
        size = arrays.count_bytes() + sum(each.numel() * each.element_size() for each in buffers.values())
        self.sent_bytes = size * len(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """New weights from the valid replies.

        Raises:
            InputError: too few valid replies, or a mean that is not finite.
        """
        number = self.first + server_round
        parameters, buffers = self.parameters(), self.buffers()
        expected = {name: parameters[name] for name in self.trained}
        left_out = dict.fromkeys(self.cohort.values(), f"no answer within {self.settings.deadline:g} s")
        valid: dict[str, tuple[Answer, Message]] = {}
        for message in replies:
            name = self.cohort.get(message.metadata.src_node_id)
            if name is None:
                continue
            found = read_answer(message, name, expected, buffers if self.sends_buffers else {})
            if isinstance(found, str):
                left_out[name] = found
            else:
                valid[name] = (found, message)
                del left_out[name]
        answers = tuple(valid[name][0] for name in sorted(valid))
        if len(answers) < self.settings.least_replies:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(left_out.items()))
            found = (
                f"{len(answers)} valid replies of {len(self.cohort)}, {self.settings.least_replies} needed ({reasons})"
            )
            raise InputError(f"round {number}", found, "mend those clients; the run goes on from its last round")
        mean = self._mean(answers, number)
        self._average(number, parameters, answers, mean, [valid[each.client][1] for each in answers])
        if self.sends_buffers and buffers:
            weights = [each.weight for each in answers]
            averaged = weighted_mean([each.buffers for each in answers], weights)
            self.model.load_state_dict(averaged, strict=False)
        seconds = time.perf_counter() - self.sent_at
        self.report(RoundReport(number, tuple(self.cohort.values()), answers, left_out, mean, seconds, self.sent_bytes))
        return to_record(self.parameters()), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The server measures; nobody is asked."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nobody was asked."""
        return None

    def _ask_names(self, grid: Grid, wanted: int) -> tuple[dict[str, int], str]:
        """Wait for so many nodes with a name; the nodes by name, and why one has none."""
        end = time.monotonic() + ASKING
        asked: set[int] = set()
        silent = ""
        while True:
            new = [node for node in grid.get_node_ids() if node not in self.names and node not in asked]
            asked |= set(new)
            messages = [Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY) for node in new]
            for reply in grid.send_and_receive(messages, timeout=ASKING) if messages else []:
                node = reply.metadata.src_node_id
                if reply.has_error():
                    silent = silent or f"; one said: {short(reply.error.reason or 'nothing')}"
                    continue
                name = reply.content.config_records.get(CONFIG, ConfigRecord()).get(CLIENT)
                if isinstance(name, str):
                    # A client that came back is a new node under its old name.
                    self.names = {each: known for each, known in self.names.items() if known != name}
                    self.names[node] = name
            present = {self.names[node]: node for node in grid.get_node_ids() if node in self.names}
            if len(present) >= wanted or time.monotonic() > end:
                return present, silent
            time.sleep(POLL)

    def _mean(self, answers: tuple[Answer, ...], number: int) -> dict[str, Tensor] | None:
        if self.summing is None:
            return None
        generator = noise_generator(self.settings.seed, number, "the cohort's mean", self.secret)
        updates = [each.tensors for each in answers]
        weights = [each.weight for each in answers]
        return cohort_mean(self.summing, updates, weights, self.settings.clients_per_round, generator)

    def _average(
        self,
        number: int,
        parameters: dict[str, Tensor],
        answers: tuple[Answer, ...],
        mean: dict[str, Tensor] | None,
        messages: list[Message],
    ) -> None:
        """Have the strategy average weights, and take the result up."""
        if mean is None:
            parts = [(each.tensors, each.weight, each.loss) for each in answers]
        else:
            parts = [(mean, sum(each.weight for each in answers), 0.0)]
        local = self.settings.local_in(number)
        step = -local.learning_rate if local.kind == "gradient" else 1.0
        told = messages[: len(parts)]
        for message, (update, weight, loss) in zip(told, parts, strict=True):
            moved = {
                name: each + step * update[name].to(each.dtype) if name in update else each
                for name, each in parameters.items()
            }
            records: dict[str, Any] = {ARRAYS: to_record(moved), METRICS: MetricRecord({WEIGHT: weight, LOSS: loss})}
            message.content = RecordDict(records)
        try:
            arrays, _ = self.inner.aggregate_train(number, told)
        except (AggregationError, InconsistentMessageReplies, ValueError, IndexError) as error:
            found = f"{type(self.inner).__name__} cannot average {len(told)} updates ({error})"
            raise InputError("strategy", found, "draw more clients, or change its settings") from error
        if arrays is None:
            raise InputError(
                f"round {number}", f"{type(self.inner).__name__} gave no weights", "choose another strategy"
            )
        averaged = from_record(arrays)
        broken = [name for name, each in averaged.items() if not bool(torch.isfinite(each).all())]
        if broken:
            remedy = "lower the learning rates; the run goes on from its last round"
            raise InputError(f"round {number}", f"the mean of {broken[0]!r} holds NaN or infinity", remedy)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(averaged[name].to(parameter.dtype))
