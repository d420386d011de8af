"""A server, a cache of one's own, and small checkpoints of STAViS in our form and in the authors'."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from avsal import downloads
from avsal.checkpoints import fetch, registry
from avsal.models.stavis import STAViSModule, authors_name
from tests.zoo.hub_server import HubServer

GOLDEN = Path(__file__).parent.parent / "golden"
TINY = {"audiovisual": False, "size": [32, 32], "width": 2, "dsam_maps": 2}
TOKEN = "hf_" + "secretsecretsecret"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The Hub, GitHub and a plain web server in one, on loopback."""
    hub = HubServer()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(fetch, "GITHUB_API", hub.url + "/github")
    monkeypatch.setattr(fetch, "GITHUB", hub.url + "/files")
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture(autouse=True)
def hub_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client of the Hub, with a token, and without its waits between attempts."""
    import huggingface_hub.constants
    import huggingface_hub.file_download
    import huggingface_hub.utils._http

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    quick = SimpleNamespace(sleep=lambda seconds: None, time=time.time, monotonic=time.monotonic)
    for module in (huggingface_hub.utils._http, huggingface_hub.file_download, downloads):
        monkeypatch.setattr(module, "time", quick)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("AVSAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def module() -> STAViSModule:
    """A small STAViS with random weights."""
    torch.manual_seed(7)
    net = STAViSModule(**{**TINY, "size": (32, 32)}).eval()
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn_like(value).abs() * 0.1)
    return net


@pytest.fixture
def authors_state(module: STAViSModule) -> dict[str, Tensor]:
    """The small STAViS under the authors' names, as data-parallel training saves them."""
    names = [name for name, _ in json.loads((GOLDEN / "stavis_visual.json").read_text())["state_dict"]]
    own = module.network.state_dict()
    found = {name: own[target] for name in names if (target := authors_name(name)) in own}
    assert len(found) >= len([name for name in own if "num_batches" not in name])
    return {f"module.{name}": value.clone() for name, value in found.items()}


@pytest.fixture
def add_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Register an entry with the given sources under a name."""
    monkeypatch.setattr(registry, "_registered", {})

    def add(name: str, sources: list[dict[str, Any]], **changes: Any) -> registry.Checkpoint:
        content = {
            "format_version": 1,
            "citations": {"paper": CITATION},
            "checkpoints": {name: entry(sources, **changes)},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        registry.register(path)
        return registry.find(name)

    return add


CITATION = {
    "authors": "A. Author",
    "title": "A paper",
    "venue": "A conference",
    "year": 2024,
    "url": "https://example.org/paper",
}


def entry(sources: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A registry entry as YAML holds it."""
    kinds = {source["kind"] for source in sources}
    status = (
        "published"
        if "hub" in kinds
        else "unverified"
        if kinds & {"url", "release", "hub-origin"}
        else "manual"
    )
    return {
        "model": "stavis",
        "arguments": TINY,
        "task": "saliency",
        "data": ["DIEM"],
        "input": "16 frames of 32x32",
        "licence": {"code": "MIT", "weights": "cc-by-4.0", "notice": "Random numbers, for tests."},
        "citation": "paper",
        "status": status,
        "sources": sources,
        "published": [{"data": "DIEM", "source": "table 1", "metrics": {"CC": 0.5}}],
        **changes,
    }


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two modules hold the same values."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
