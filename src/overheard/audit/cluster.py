"""joblib on a Ray cluster."""

import logging
import socket
from contextlib import ExitStack

import joblib

from overheard.errors import InputError
from overheard.federation.quiet import ask_nothing

BACKEND = "overheard-ray"
SECONDS_TO_ANSWER = 10
REMEDY = "give host:port of a running head; to start one: ray start --head"


def enter_ray(address: str | None, number: int, stack: ExitStack) -> tuple[type[Exception], ...]:
    """Connect to a cluster, or start one here, and make it joblib's own until the stack unwinds.

    Args:
        address: host:port of the head, "auto" for one that runs on this machine; None to start one.
        number: CPUs of one that is started here.
        stack: what to undo at the end.

    Returns:
        What is raised when a worker is lost.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """
    ask_nothing()
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]
        from ray.util.joblib.ray_backend import RayBackend  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("backend", "Ray is not installed", "pip install 'overheard[cluster]'") from error

    class StreamingRay(RayBackend):
        """Results one by one, as they come: what is done is written before the next is there."""

        supports_return_generator = True

    if address not in (None, "auto"):
        _refuse_silence(address)
    try:
        own = {"num_cpus": max(2, number), "include_dashboard": False} if address is None else {"address": address}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)  # pyright: ignore[reportArgumentType]
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError("address", f"no Ray cluster at {address} ({error})", REMEDY) from error
    stack.callback(ray.shutdown)
    joblib.register_parallel_backend(BACKEND, StreamingRay)
    stack.enter_context(joblib.parallel_config(backend=BACKEND))
    return (RayError,)


def _refuse_silence(address: str) -> None:
    """Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError("address", f"no Ray cluster at {address} ({error})", REMEDY) from error
