"""Ways to the clients: Flower's own grid with an end to waiting, and one that runs clients in this very process."""

import threading
import time
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from overheard.errors import InputError

POLL = 0.05
"""Seconds between two looks for replies, at least."""
RESTART = 1.0
"""Seconds until a worker that starts again is asked once more."""
APP_ERROR = 1


class Stopped(Exception):
    """Somebody asked the run to end."""


class PatientGrid(Grid):
    """A grid whose waiting ends when `stop` is set.

    Args:
        inner: that carries the messages.
        stop: set from another thread.
        window: messages that may be under way at a time; None for all. Flower's simulation engine looks through all of
            them for each of its nodes, over and over: with all under way, that is quadratic in the clients.
    """

    def __init__(self, inner: Grid, stop: threading.Event, window: int | None = None) -> None:
        self.inner = inner
        self.stop = stop
        self.window = window

    def set_run(self, run: Any) -> None:
        """The inner grid's."""
        self.inner.set_run(run)

    @property
    def run(self) -> Any:
        """The inner grid's."""
        return self.inner.run

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        """The inner grid's."""
        return self.inner.create_message(*arguments, **named)

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are there."""
        return self.inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """The inner grid's."""
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The inner grid's."""
        return self.inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies until all are there or the time is over; a worker that is just starting again is asked once more.

        Raises:
            Stopped: `stop` was set.
        """
        told = {message.metadata.dst_node_id: message for message in messages}
        left = list(told.values())
        waiting: set[str] = set()
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while (waiting or left) and (end is None or time.monotonic() < end):
            room = len(left) if self.window is None else max(0, self.window - len(waiting))
            waiting |= set(self.push_messages(left[:room]))
            left = left[room:]
            asked = time.monotonic()
            arrived = list(self.pull_messages(waiting))
            # To ask after hundreds of replies takes long by itself: it may have a tenth of the time.
            pause = max(POLL, 9 * (time.monotonic() - asked))
            waiting -= {message.metadata.reply_to_message_id for message in arrived}
            again = [message for message in arrived if _was_restarting(message)]
            replies += [message for message in arrived if not _was_restarting(message)]
            left = [_copy(told[each.metadata.src_node_id]) for each in again] + left
            if (waiting or left) and self.stop.wait(max(RESTART, pause) if again else pause):
                raise Stopped
        return replies


def _was_restarting(reply: Message) -> bool:
    """Whether Ray refused to hand a message to a worker that had ended and was not back yet."""
    return reply.has_error() and "The actor is restarting" in (reply.error.reason or "")


def _copy(message: Message) -> Message:
    """The same to the same node, as a message of its own."""
    metadata = message.metadata
    return Message(message.content, dst_node_id=metadata.dst_node_id, message_type=metadata.message_type)


class Cohort(PatientGrid):
    """The nodes drawn for a round, for a strategy that would otherwise draw its own."""

    def __init__(self, inner: Grid, nodes: list[int]) -> None:
        super().__init__(inner, threading.Event())
        self.nodes = nodes

    def get_node_ids(self) -> Iterable[int]:
        """The cohort alone."""
        return self.nodes


class LocalGrid(Grid):
    """Clients one after another in this process: no engine, no other process, and no deadline.

    Args:
        app: of every client.
        number: of clients.
    """

    def __init__(self, app: ClientApp, number: int) -> None:
        self.app = app
        self.contexts = {
            node: Context(0, node, {"partition-id": node - 1, "num-partitions": number}, RecordDict(), {})
            for node in range(1, number + 1)
        }
        self.replies: dict[str, Message] = {}
        # Flower's messages ask who sends them.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, 0

    def set_run(self, run: Any) -> None:
        """There is no other run."""

    @property
    def run(self) -> Any:
        """None to speak of."""
        raise NotImplementedError("clients in this process belong to no run of Flower's")

    def create_message(self, *_: Any, **__: Any) -> Message:
        """Superseded by Flower's own `Message`."""
        raise NotImplementedError("call flwr.app.Message")

    def get_node_ids(self) -> Iterable[int]:
        """Every client."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have each message answered at once."""
        sent = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            try:
                reply = self.app(message, self.contexts[message.metadata.dst_node_id])
            except (InputError, RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
                reply = Message(Error(code=APP_ERROR, reason=f"{type(error).__name__}: {error}"), reply_to=message)
            self.replies[message.metadata.message_id] = reply
            sent.append(message.metadata.message_id)
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Answers that have not been fetched."""
        return [self.replies.pop(each) for each in list(message_ids) if each in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """All answers."""
        return self.pull_messages(self.push_messages(messages))
