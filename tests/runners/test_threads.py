"""How many threads torch has: one for work that is less than waiting for another."""

import pytest

from lyapunov.implementations._torch import LITTLE, threads_worth


torch = pytest.importorskip("torch")


@pytest.fixture
def two():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("numbers", "threads"), [(1, 1), (LITTLE - 1, 1), (LITTLE, 2)])
def test_little_work_has_one_thread_and_gives_the_others_back(two, numbers, threads):
    """Assert it inside and behind, also where the work fails."""
    with threads_worth(torch, numbers):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), threads_worth(torch, numbers):
        _ = 1 / 0
    assert torch.get_num_threads() == 2
