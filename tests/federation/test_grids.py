"""Waiting for replies: never more under way than the window holds, late ones left alone, stopped from outside."""

import threading
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: overheard[federated]")

from flwr.app import Message, MessageType, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from overheard.federation import grids
from overheard.federation.grids import LocalGrid, PatientGrid, Stopped
from overheard.federation.simulation import WINDOW


class SlowGrid(Grid):
    """Answers so many messages each time that it is asked; `silent` nodes never answer, `restarting` ones at last."""

    def __init__(self, speed: int, silent: tuple[int, ...] = (), restarting: tuple[int, ...] = ()) -> None:
        # Flower's messages ask who sends them.
        LocalGrid(ClientApp(), 0)
        self.speed, self.silent, self.restarting = speed, silent, list(restarting)
        self.under_way: dict[str, Message] = {}
        self.most = 0

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = []
        for message in messages:
            sent.append(str(uuid4()))
            message.metadata.__dict__["_message_id"] = sent[-1]
            self.under_way[sent[-1]] = message
        self.most = max(self.most, len(self.under_way))
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        ready = [each for each in self.under_way if each in wanted]
        ready = [each for each in ready if self.under_way[each].metadata.dst_node_id not in self.silent][: self.speed]
        return [self._answer(self.under_way.pop(each)) for each in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def _answer(self, message: Message) -> Message:
        if message.metadata.dst_node_id in self.restarting:
            self.restarting.remove(message.metadata.dst_node_id)
            return Message(Error(code=1, reason="The actor is restarting."), reply_to=message)
        return Message(RecordDict(), reply_to=message)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "POLL", 0.001)
    monkeypatch.setattr(grids, "RESTART", 0.002)


def to(*nodes: int) -> list[Message]:
    return [Message(RecordDict(), dst_node_id=node, message_type=MessageType.TRAIN) for node in nodes]


def answered(replies: Iterable[Message]) -> list[int]:
    return sorted(reply.metadata.src_node_id for reply in replies if not reply.has_error())


@pytest.mark.parametrize(("window", "most"), [(None, 40), (WINDOW, WINDOW), (1, 1)])
def test_no_more_are_under_way_than_the_window_holds(window: int | None, most: int) -> None:
    slow = SlowGrid(speed=3)
    nodes = range(1, 41)
    replies = PatientGrid(slow, threading.Event(), window).send_and_receive(to(*nodes), timeout=60.0)
    assert answered(replies) == list(nodes)
    assert slow.most == most


def test_who_does_not_answer_in_time_is_not_waited_for() -> None:
    slow = SlowGrid(speed=3, silent=(2,))
    replies = PatientGrid(slow, threading.Event(), 2).send_and_receive(to(1, 2, 3, 4), timeout=0.2)
    assert answered(replies) == [1, 3, 4]
    # The answer comes after all, and the next round does not take it for its own.
    slow.silent = ()
    assert answered(PatientGrid(slow, threading.Event(), 2).send_and_receive(to(5), timeout=60.0)) == [5]


def test_a_worker_that_starts_again_is_asked_once_more() -> None:
    slow = SlowGrid(speed=3, restarting=(2, 2))
    replies = list(PatientGrid(slow, threading.Event(), 2).send_and_receive(to(1, 2, 3), timeout=60.0))
    assert answered(replies) == [1, 2, 3]
    assert len(replies) == 3


def test_waiting_ends_when_it_is_stopped() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        PatientGrid(SlowGrid(speed=1), stop, 1).send_and_receive(to(1, 2))
