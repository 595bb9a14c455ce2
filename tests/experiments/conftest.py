"""One thread: networks this small only wait for others."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """torch's threads spin where a machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
