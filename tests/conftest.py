"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Small tensors gain nothing from more threads, and on a busy machine waiting threads cost a lot.
torch.set_num_threads(1)

# The same examples in every run.
settings.register_profile("avsal", derandomize=True)
settings.load_profile("avsal")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips and gaze recordings named by AVSAL_TEST_DATA."""
    folder = os.environ.get("AVSAL_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("AVSAL_TEST_DATA does not name a folder with the real recordings")
    return Path(folder)


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tests away from the user's cache and from the network."""
    monkeypatch.setenv("AVSAL_CACHE", str(tmp_path_factory.getbasetemp() / "avsal-cache"))
