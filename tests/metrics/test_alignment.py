"""Half recovered is seen to be half: frame by frame, word by word."""

import pytest
import torch

from overheard.metrics.alignment import align_words, count_hits, frame_errors, frames_close


def test_missing_frames_count_as_zeros() -> None:
    true = torch.tensor([[1.0, -1.0], [2.0, 2.0], [0.0, 4.0]])
    errors = frame_errors(torch.tensor([[1.0, -1.0], [2.0, 1.0]]), true)
    assert errors.tolist() == [0.0, 0.5, 2.0]


def test_frames_too_many_have_no_error_of_their_own() -> None:
    true = torch.ones(2, 3)
    assert frames_close(torch.ones(4, 3), true) == 2
    assert frames_close(torch.ones(0, 3), true) == 0
    assert frame_errors(torch.ones(1, 3), torch.ones(0, 3)).shape == (0,)


@pytest.mark.parametrize(
    ("true", "read", "fates", "hits"),
    [
        ("GO DO YOU HEAR", "go to you hear it", "hit substituted hit hit inserted", 3),
        ("GO DO", "", "missed missed", 0),
        ("", "GO", "inserted", 0),
        ("", "", "", 0),
        ("A B C D", "B C D", "missed hit hit hit", 3),
        ("ONE  TWO", "TWO ONE TWO", "inserted hit hit", 2),
    ],
)
def test_words(true: str, read: str, fates: str, hits: int) -> None:
    words = align_words(true, read)
    assert [word.fate for word in words] == fates.split()
    assert count_hits(words) == hits
    assert [word.said for word in words if word.said] == true.split()
    assert [word.read for word in words if word.read] == read.split()
