"""CTC against torch's own loss (value and gradient) and against autograd through a scan (second derivatives)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional as F

from overheard.benchmarks.measurement import Measurement, best_of_each, thread_count
from overheard.recognition.ctc import ctc_loss
from overheard.recognition.ctc_scan import ctc_scan_loss

SYMBOLS = 29
LABELS = 28


def measure(
    threads: int = 1,
    *,
    repeats: int = 60,
    scan_repeats: int = 2,
    frames: int = 100,
    scan_frames: int = 500,
    rows: int = 64,
) -> list[Measurement]:
    """Times random utterances of 28 labels over 29 symbols, float32, on the CPU.

    Args:
        threads: torch's threads.
        repeats: timed runs of value and gradient.
        scan_repeats: timed runs of the Hessian-vector product; the scan takes seconds and gigabytes.
        frames: T for value and gradient.
        scan_frames: T for second derivatives.
        rows: N of the large batch; the small one has 8.

    Returns:
        Seconds of value and gradient against `F.ctc_loss`, of the Hessian-vector product (value and gradient included)
        against the scan, and the error of float32 input's second derivatives against float64.
    """
    with thread_count(threads):
        small, large = _against_torch(frames, 8, 2.0, repeats), _against_torch(frames, rows, 1.2, repeats)
        return [small, large, _against_scan(scan_frames, rows, scan_repeats), _error_of_float32(scan_frames, 8)]


def _against_torch(frames: int, rows: int, largest_ratio: float, repeats: int) -> Measurement:
    log_probs, lengths = _utterances(frames, rows)

    def gradient(loss: Callable[..., Tensor]) -> Tensor:
        return grad(loss(log_probs, *lengths), log_probs)[0]

    ours, reference = best_of_each(lambda: gradient(ctc_loss), lambda: gradient(F.ctc_loss), repeats=repeats)
    name = f"CTC forward + backward, T={frames} L={LABELS} N={rows}, against F.ctc_loss"
    return Measurement(name, ours, reference, "s", largest_ratio)


def _against_scan(frames: int, rows: int, repeats: int) -> Measurement:
    log_probs, lengths = _utterances(frames, rows)
    direction = _noise(log_probs.shape, seed=1)
    ours, reference = best_of_each(
        lambda: _hessian_product(ctc_loss(log_probs, *lengths, reduction="sum"), log_probs, direction),
        lambda: _hessian_product(ctc_scan_loss(log_probs, *lengths).sum(), log_probs, direction),
        repeats=repeats,
    )
    name = f"CTC Hessian-vector product, T={frames} L={LABELS} N={rows}, against autograd through a scan"
    return Measurement(name, ours, reference, "s", 1 / 5)


def _error_of_float32(frames: int, rows: int) -> Measurement:
    log_probs, lengths = _utterances(frames, rows)
    direction = _noise(log_probs.shape, seed=1)
    exact = log_probs.detach().double().requires_grad_()
    found = _hessian_product(ctc_loss(log_probs, *lengths, reduction="sum"), log_probs, direction)
    expected = _hessian_product(ctc_loss(exact, *lengths, reduction="sum"), exact, direction.double())
    error = float((found - expected).abs().max() / expected.abs().max())
    name = f"CTC second derivatives of float32 input, T={frames} L={LABELS} N={rows}, against an error of 1e-5"
    return Measurement(name, error, 1e-5, "relative error", 1.0)


def _utterances(frames: int, rows: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    log_probs = _noise((frames, rows, SYMBOLS), seed=0).log_softmax(2).requires_grad_()
    targets = torch.randint(1, SYMBOLS, (rows, LABELS), generator=torch.Generator().manual_seed(0))
    return log_probs, (targets, torch.full((rows,), frames), torch.full((rows,), LABELS))


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _hessian_product(loss: Tensor, log_probs: Tensor, direction: Tensor) -> Tensor:
    (gradient,) = grad(loss, log_probs, create_graph=True)
    return grad((gradient * direction).sum(), log_probs)[0]
