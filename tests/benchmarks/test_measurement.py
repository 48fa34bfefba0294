import torch

from overheard.benchmarks.measurement import Measurement, best_of, best_of_each, thread_count


def test_target_in_words() -> None:
    assert Measurement("", 3.0, 2.0, "s", 2.0).target == "at most 2x"
    assert Measurement("", 3.0, 2.0, "s", 2.0).met
    assert Measurement("", 3.0, 9.0, "s", 0.2).target == "at least 5x less"
    assert not Measurement("", 3.0, 9.0, "s", 0.2).met


def test_runs_take_turns_and_the_first_is_not_timed() -> None:
    calls: list[str] = []
    assert len(best_of_each(lambda: calls.append("a"), lambda: calls.append("b"), repeats=2)) == 2
    assert calls == ["a", "b"] * 3
    assert best_of(lambda: None, 1) < 1


def test_thread_count_is_put_back() -> None:
    former = torch.get_num_threads()
    with thread_count(former + 1):
        assert torch.get_num_threads() == former + 1
    assert torch.get_num_threads() == former
