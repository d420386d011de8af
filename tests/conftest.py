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


def recordings() -> Path | None:
    """The folder of real recordings that AVSAL_TEST_DATA names; None where it is not set."""
    folder = os.environ.get("AVSAL_TEST_DATA", "")
    if folder and not Path(folder).is_dir():
        raise pytest.UsageError(
            f"AVSAL_TEST_DATA={folder}: no such folder; unset it to run without recordings."
        )
    return Path(folder) if folder else None


def pytest_report_header() -> str:
    return f"real recordings: {recordings() or 'none, AVSAL_TEST_DATA is not set: tests that want them are deselected'}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests that use the loopback server or want recordings; the latter are left out where there are none."""
    for item in items:
        if "server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.network)
    wanting = [item for item in items if "real_data" in getattr(item, "fixturenames", ())]
    for item in wanting:
        item.add_marker(pytest.mark.recordings)
    if recordings() is None and wanting:
        config.hook.pytest_deselected(items=wanting)
        items[:] = [item for item in items if item not in wanting]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips and gaze recordings named by AVSAL_TEST_DATA."""
    folder = recordings()
    assert folder is not None, "tests that want recordings name them by the argument real_data"
    return folder


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tests away from the user's cache and from the network."""
    monkeypatch.setenv("AVSAL_CACHE", str(tmp_path_factory.getbasetemp() / "avsal-cache"))
