"""from_pretrained against a real server, through the real client of the Hub."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import avsal
from avsal.errors import WeightsError
from avsal.zoo import from_pretrained, list_checkpoints, save_pretrained
from tests.zoo.conftest import TOKEN, same
from tests.zoo.hub_server import HubServer, sha256


@pytest.fixture
def files(module, tmp_path: Path) -> dict[str, bytes]:
    folder = save_pretrained(module, tmp_path / "saved")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def hub_source(server: HubServer, repo: str, commit: str, weights: bytes) -> dict:
    return {"kind": "hub", "repo": repo, "revision": commit, "sha256": sha256(weights), "size": len(weights)}


def test_a_repository_loads_and_the_second_time_sends_no_weights(server, cache, module, files):
    server.repo("user/model", files)
    loaded = from_pretrained("user/model")
    assert same(loaded, module)
    assert not loaded.training
    assert server.count("GET", "model.safetensors") == 1
    from_pretrained("user/model")
    assert server.count("GET", "model.safetensors") == 1


def test_a_registry_name_is_fetched_once_and_then_needs_no_server(server, cache, module, files, add_entry):
    commit = server.repo("user/model", files)
    add_entry("tiny", [hub_source(server, "user/model", commit, files["model.safetensors"])])
    assert same(from_pretrained("tiny"), module)
    requests = len(server.requests)
    assert same(from_pretrained("tiny"), module)
    # A commit never changes, so the client asks nothing; the checksum is compared again all the same.
    assert len(server.requests) == requests
    assert same(from_pretrained("tiny", local_files_only=True), module)


def test_a_revision_is_pinned(server, cache, module, files):
    first = server.repo("user/model", files)
    with torch.no_grad():
        next(module.parameters()).add_(1.0)
    folder = save_pretrained(module, cache / "later")
    server.repos["user/model"].commit({"model.safetensors": (folder / "model.safetensors").read_bytes()})
    assert same(from_pretrained("user/model"), module)
    assert not same(from_pretrained("user/model", revision=first), module)
    with pytest.raises(WeightsError, match="no such revision"):
        from_pretrained("user/model", revision="nothing")


def test_a_cut_transfer_goes_on_where_it_stopped(server, cache, module, files, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    server.repo("user/model", files)
    server.misbehave("GET", "model.safetensors", ("cut", 20000))
    assert same(from_pretrained("user/model"), module)
    ranges = [h.get("Range") for m, p, h in server.requests if m == "GET" and p.endswith("model.safetensors")]
    assert ranges == [None, "bytes=16384-"]


def test_a_wrong_checksum_is_refused_and_leaves_nothing(server, cache, files, add_entry):
    commit = server.repo("user/model", files)
    source = hub_source(server, "user/model", commit, b"something else")
    add_entry("tiny", [source])
    with pytest.raises(WeightsError, match="expected " + source["sha256"][:16]):
        from_pretrained("tiny")
    assert not list((cache / "hub").rglob("model.safetensors"))


def test_a_file_that_is_not_what_the_hub_lists_is_refused(server, cache, files):
    # The client accepts it in silence.
    server.repo("user/model", files)
    server.false_sha256["model.safetensors"] = "0" * 64
    with pytest.raises(WeightsError, match=r"sha256 .* expected 0000"):
        from_pretrained("user/model")


def test_a_damaged_cache_is_said_and_fetched_again(server, cache, module, files, caplog):
    server.repo("user/model", files)
    from_pretrained("user/model")
    (snapshot,) = (cache / "hub").rglob("model.safetensors")
    content = bytearray(snapshot.read_bytes())
    content[-3] ^= 1
    snapshot.resolve().write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert same(from_pretrained("user/model"), module)
    assert "damaged" in caplog.text
    assert server.count("GET", "model.safetensors") == 2
    # Without the server the damage cannot be repaired, and is not loaded either.
    (snapshot,) = (cache / "hub").rglob("model.safetensors")
    snapshot.resolve().write_bytes(content)
    with pytest.raises(WeightsError, match=r"damaged .* switched off"):
        from_pretrained("user/model", local_files_only=True)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda server: None, "no such repository, or a private one"),
        (lambda server: server.repo("user/model", {}), "no such file"),
        (
            lambda server: server.misbehave("HEAD", "resolve", *[("status", 500)] * 9),
            "the server answered 500",
        ),
    ],
    ids=["repository", "file", "server"],
)
def test_each_failure_has_its_reason(server, cache, files, prepare, words):
    if words.endswith("500"):
        server.repo("user/model", files)
    prepare(server)
    with pytest.raises(WeightsError, match=words):
        from_pretrained("user/model")


def test_a_gated_repository_says_how_to_get_in(server, cache, files, monkeypatch):
    server.repo("user/model", files)
    server.repos["user/model"].gated = True
    with pytest.raises(WeightsError, match=r"accept the terms .* `hf auth login`"):
        from_pretrained("user/model", token=False)
    from_pretrained("user/model")  # the token of the environment opens it


def test_an_error_of_the_server_is_tried_again(server, cache, module, files):
    server.repo("user/model", files)
    server.misbehave("HEAD", "resolve", ("status", 500), ("status", 503))
    assert same(from_pretrained("user/model"), module)


def test_a_silent_server_is_given_up_and_asked_again(server, cache, module, files, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    server.repo("user/model", files)
    server.misbehave("GET", "model.safetensors", ("wait", 1.5))
    begun = time.monotonic()
    assert same(from_pretrained("user/model"), module)
    assert time.monotonic() - begun < 1.4
    assert server.count("GET", "model.safetensors") == 2


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_sends_no_request(server, cache, files, add_entry, monkeypatch, how):
    commit = server.repo("user/model", files)
    add_entry("tiny", [hub_source(server, "user/model", commit, files["model.safetensors"])])
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("tiny", "user/model"):
        with pytest.raises(WeightsError, match="not in the cache, and fetching is switched off"):
            from_pretrained(name, local_files_only=how == "argument")
    assert server.requests == []


def test_the_error_lists_every_source_with_its_reason(server, cache, files, add_entry):
    commit = server.repo("user/model", files)
    add_entry(
        "tiny",
        [
            hub_source(server, "user/model", commit, b"another"),
            {"kind": "url", "url": server.url + "/files/gone.pth", "page": "https://example.org/weights"},
            {"kind": "page", "url": "https://example.org/form", "how": "sign the form and take weights.pth"},
        ],
    )
    with pytest.raises(WeightsError) as raised:
        from_pretrained("tiny")
    text = str(raised.value)
    for words in (
        "1. hub: user/model@",
        "2. authors' file",
        "404",
        "3. page",
        "sign the form",
        "avsal convert stavis FILE --name tiny",
    ):
        assert words in text
    assert len(text.splitlines()) < 25
    assert max(map(len, text.splitlines())) < 200


def test_no_token_is_printed_or_written(server, cache, files, add_entry, capfd, caplog):
    commit = server.repo("user/model", files)
    server.misbehave("HEAD", "resolve", *[("status", 500)] * 20)
    add_entry(
        "tiny",
        [
            hub_source(server, "user/model", commit, files["model.safetensors"]),
            {"kind": "url", "url": server.url + f"/files/gone.pth?token={TOKEN}"},
        ],
    )
    with caplog.at_level(logging.DEBUG), pytest.raises(WeightsError) as raised:
        from_pretrained("tiny")
    server.behave()
    from_pretrained("tiny")
    out, err = capfd.readouterr()
    ours = "".join(record.getMessage() for record in caplog.records if record.name.startswith("avsal"))
    assert TOKEN not in str(raised.value) + out + err + ours
    sent = [
        value
        for _, _, headers in server.requests
        for key, value in headers.items()
        if key.lower() == "authorization"
    ]
    assert f"Bearer {TOKEN}" in sent
    for path in cache.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


_LOAD = """
import sys
import huggingface_hub.constants as constants
constants.HF_HUB_DISABLE_XET = True
from avsal.zoo import load_state
assert load_state(sys.argv[1])
print("loaded")
"""


def start(server: HubServer, name: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_ENDPOINT": server.url, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", _LOAD, name],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_share_one_download(server, cache, files):
    server.repo("user/model", files)
    server.misbehave("GET", "model.safetensors", ("wait", 2.0))
    both = [start(server, "user/model") for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert "loaded" in out, err
    assert server.count("GET", "model.safetensors") == 1


@pytest.mark.slow
def test_a_killed_process_leaves_no_orphan(server, cache, module, files):
    server.repo("user/model", files)
    server.misbehave("GET", "model.safetensors", ("wait", 60.0))
    process = start(server, "user/model")
    deadline = time.monotonic() + 60
    while not list(cache.rglob("*.incomplete")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stderr.close()
    assert list(cache.rglob("*.incomplete"))
    assert same(from_pretrained("user/model"), module)
    assert not list(cache.rglob("*.incomplete"))


def test_the_table_shows_what_is_cached(server, cache, files, add_entry):
    commit = server.repo("user/model", files)
    add_entry("tiny", [hub_source(server, "user/model", commit, files["model.safetensors"])])
    line = next(row for row in repr(list_checkpoints(model="stavis")).splitlines() if row.startswith("tiny "))
    assert "published" in line
    avsal.from_pretrained("tiny")
    line = next(row for row in repr(list_checkpoints(model="stavis")).splitlines() if row.startswith("tiny "))
    assert "cached" in line
    assert "CC: DIEM 0.5" in line
