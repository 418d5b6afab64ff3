"""Engines here run on one thread: two of them on busy cores make tiny models 50 times slower."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
