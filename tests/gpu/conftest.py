"""Tests that need a CUDA card: each says that it was skipped where there is none. `make gpu` runs them, and nothing else does."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")  # before anything is started
def a_card() -> None:
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} finds no CUDA card here")
