"""Flower and Ray ask the network for nothing and install nothing; to be called before either is imported."""

import logging
import os

from overheard.errors import InputError

SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would hide the GPUs from workers that ask for none, and says at length that it will stop doing so.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray would let its workers wait for everything else on the machine, past any deadline.
    "RAY_worker_niceness": "0",
}


def ask_nothing() -> None:
    """Set the environment."""
    os.environ.update(SETTINGS)


def quieten() -> None:
    """Set the environment and the loggers.

    Raises:
        InputError: Flower is not installed.
    """
    ask_nothing()
    try:
        import flwr  # noqa: F401 (its logger is set up by the import)
    except ImportError as error:
        raise InputError("federate", "Flower is not installed", "install overheard[federated]") from error
    # Faults of clients are reported by name; Flower adds a traceback for each.
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
