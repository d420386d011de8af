"""`lightning fit` and its relatives, run as a user runs them."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import avsal
from avsal import cli
from avsal.errors import ConfigError
from avsal.evaluation.provenance import checkpoint_of, weights_hash
from avsal.evaluation.results import Results
from avsal.models import model_class
from avsal.training import AtomicCheckpointIO, check_config_file, deciding_arguments, main, new_run_folder

ROOT = Path(avsal.__file__).parents[1]
MODEL = """
model:
  class_path: avsal.STAViSModule
  init_args:
    audiovisual: {audiovisual}
    size: [24, 32]
    via: null
    width: 8
    blocks: [1, 1, 1]
    dsam_maps: 2
    hidden: 8
    audio_width: 4
    optimizer: adamw
trainer:
  accelerator: cpu
  max_epochs: 3
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
"""
DATA = """
data:
  class_path: avsal.SynthAVDataModule
  init_args:
    clips: 12
    seconds: 1.2
    batch_size: 2
    val_stride: 8
    num_workers: 0
    root: {root}
"""


@pytest.fixture(scope="module")
def synthav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from avsal.data.synthetic import generate

    root = tmp_path_factory.mktemp("data") / "synthav"
    generate(root, clips=12, seed=0, seconds=1.2)
    return root


@pytest.fixture
def files(tmp_path: Path, synthav: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Configuration files in an empty working directory: what stands after `-c`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").write_text(MODEL.format(audiovisual="true"))
    (tmp_path / "visual.yaml").write_text(MODEL.format(audiovisual="false"))
    (tmp_path / "data.yaml").write_text(DATA.format(root=synthav))
    return ["-c", "model.yaml", "-c", "data.yaml"]


def lightning(
    *words: str, processes: bool = False, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "avsal.cli", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    (path,) = folder.glob(f"runs/*/version_*/checkpoints/{name}")
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def test_fit_logs_and_keeps_the_best_and_the_last_then_test_writes_results(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fit", *files, "--trainer.max_epochs=1"]) == 0
    (run,) = (tmp_path / "runs").glob("*/version_0")
    names = {p.name for p in run.iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best-epoch=000.ckpt", "last.ckpt"}
    assert "val/cc" in (run / "metrics.csv").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.yaml", "model.yaml", "runs", "visual.yaml"]
    assert cli.main(["test", *files, "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]) == 0
    (result,) = (tmp_path / "results").glob("*.json")
    assert "sauc" in result.read_text()
    module = avsal.from_pretrained(run / "checkpoints" / "last.ckpt")
    assert module.hparams["width"] == 8


def test_a_recipe_without_its_data_says_how_to_get_them_and_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [
        "--model.init_args.width=0.1",
        "--model.init_args.channels=8",
        "--model.init_args.audio_encoder=small",
    ]
    words = ["-c", str(ROOT / "examples" / "casp.yaml"), *small, "--model.init_args.audio_backbone=null"]
    assert cli.main(["fit", *words]) == 2
    said = capsys.readouterr().err
    assert "avsal data info av6" in said
    assert "-c examples/data/synthetic.yaml" in said
    tiny = [str(ROOT / "examples" / "csts-tiny.yaml"), str(ROOT / "examples" / "data" / "ego4d.yaml")]
    assert cli.main(["fit", "-c", tiny[0], "-c", tiny[1]]) == 2
    assert "-c examples/data/synthetic-ego.yaml" in capsys.readouterr().err


def test_a_gaze_model_trains_and_keeps_the_checkpoint_of_the_best_f1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = ROOT / "examples"
    small = {
        "model.init_args.size": "[32,32]", "model.init_args.embed_dim": "4", "model.init_args.spectrogram": "[128,32]",
        "data.init_args.clips": "6", "data.init_args.seconds": "5", "data.init_args.num_workers": "0",
        "trainer.max_epochs": "1", "trainer.check_val_every_n_epoch": "1", "trainer.limit_train_batches": "2",
        "trainer.limit_val_batches": "2", "trainer.enable_model_summary": "false",
    }  # fmt: skip
    words = [f"--{key}={value}" for key, value in small.items()]
    files = ["-c", str(examples / "csts-tiny.yaml"), "-c", str(examples / "data" / "synthetic-ego.yaml")]
    assert cli.main(["fit", *files, *words, "--data.init_args.batch_size=2"]) == 0
    (best,) = tmp_path.glob("runs/*/version_0/checkpoints/best-*.ckpt")
    assert avsal.from_pretrained(best).monitor == "val/f1"
    assert "val/f1" in (best.parents[1] / "metrics.csv").read_text()


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_as_the_uninterrupted_one(
    files: list[str], tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        for name in ("model.yaml", "data.yaml"):
            (folder / name).write_text((tmp_path / name).read_text())
    os.chdir(whole)
    assert cli.main(["fit", *files]) == 0
    os.chdir(killed)
    words = [sys.executable, "-m", "avsal.cli", "fit", *files]
    process = subprocess.Popen(
        words,
        # As many threads as here: sums in another order would not be equal to the last bit.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not list(killed.glob("runs/*/version_0/checkpoints/last.ckpt")):
        assert process.poll() is None, "the run ended before it wrote a checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = torch.load(next(killed.glob("runs/*/version_0/checkpoints/last.ckpt")), weights_only=True)
    assert first["epoch"] < 2
    assert cli.main(["fit", *files, "--ckpt_path", "last"]) == 0
    (resumed,) = killed.glob("runs/*/version_1/checkpoints/last.ckpt")
    state = torch.load(resumed, weights_only=True)["state_dict"]
    expected = weights(whole)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def test_a_kill_while_a_checkpoint_is_written_leaves_the_previous_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    script = (
        "import os, torch\n"
        "from pathlib import Path\n"
        "from avsal.training import AtomicCheckpointIO\n"
        "def half(content, stream):\n"
        "    stream.write(b'half of a checkpoint'); stream.flush(); os.kill(os.getpid(), 9)\n"
        "torch.save = half\n"
        f"AtomicCheckpointIO().save_checkpoint({{'step': 2}}, Path({str(path)!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_the_second_stage_starts_from_the_first(
    files: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert cli.main(["fit", "-c", "visual.yaml", "-c", "data.yaml", "--trainer.max_epochs=1"]) == 0
    (first,) = tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt")
    init = f"--model.init_args.init_from={first}"
    assert cli.main(["fit", *files, "--trainer.max_epochs=1", "--trainer.limit_train_batches=0", init]) == 0
    first_state = torch.load(first, weights_only=True)["state_dict"]
    from avsal.models import create_model

    second = create_model(
        "stavis", size=(24, 32), via=None, width=8, blocks=[1, 1, 1], dsam_maps=2, hidden=8, audio_width=4
    )
    second.initialise_from(str(first))
    state = second.state_dict()
    assert torch.equal(state["network.trunk.conv1.weight"], first_state["network.trunk.conv1.weight"])


def _claim(base: Path, found: Any) -> None:
    for _ in range(20):
        found.put(str(new_run_folder(base)))


def test_runs_that_start_at_the_same_moment_get_folders_of_their_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    workers = [context.Process(target=_claim, args=(tmp_path / "runs" / "x", found)) for _ in range(6)]
    for worker in workers:
        worker.start()
    folders = [found.get(timeout=60) for _ in range(6 * 20)]
    for worker in workers:
        worker.join()
    assert len(set(folders)) == len(folders)
    assert all(Path(folder).is_dir() for folder in folders)


@pytest.mark.slow
def test_two_fits_at_once_keep_their_own_checkpoints(files: list[str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "avsal.cli", "fit", *files, "--trainer.max_epochs=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    assert len(list(tmp_path.glob("runs/*/version_*/checkpoints/last.ckpt"))) == 2
    assert len(list(tmp_path.glob("runs/*/version_*/metrics.csv"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_by_a_signal_does_not_pass_for_finished(
    files: list[str], tmp_path: Path, number: int, status: int
) -> None:
    # A shell starts its background jobs with SIGINT ignored, which children inherit.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from avsal.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "fit", *files, "--trainer.max_epochs=500"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 240
        while not list(tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt")):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(number)
        _, said = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == status
    assert said.strip().splitlines()[-1] in ("interrupted", "terminated")
    assert not list(tmp_path.rglob("*.part"))


def test_a_run_that_is_refused_leaves_no_folder(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.ckpt").write_bytes(b"x")
    assert cli.main(["fit", *files, "--ckpt_path", "bad.ckpt"]) == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_processes_train_and_validate_together(files: list[str], tmp_path: Path) -> None:
    done = lightning(
        "fit", *files, "--trainer.max_epochs=1", "--trainer.devices=2", "--trainer.strategy=ddp",
        "--trainer.limit_train_batches=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = (tmp_path / "runs").glob("*/version_*")
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_mixed_precision_runs(files: list[str]) -> None:
    assert (
        cli.main(
            [
                "fit",
                *files,
                "--trainer.max_epochs=1",
                "--trainer.precision=bf16-mixed",
                "--trainer.limit_train_batches=2",
            ]
        )
        == 0
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modle:\n  a: 1\n", "'modle'. Did you mean 'model'"),
        ("modle: {}\n", "'modle'. Did you mean 'model'"),
        ("model: {}\n", "'model' is empty"),
        ("trainer:\n  max_epochs: 1\n  max_epochs: 2\n", "'max_epochs' is given twice"),
        ("trainer: [\n", "not valid YAML"),
        ("- 1\n", "holds keys"),
    ],
)
def test_a_wrong_configuration_file_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        check_config_file(path)
    assert "typo.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("--model.init_args.widht=1", "STAViSModule takes no argument 'widht'. Did you mean 'width'?"),
        ("--data.init_args.clps=1", "SynthAVDataModule takes no argument 'clps'. Did you mean 'clips'?"),
        ("--data.init_args.bacth_size=1", "no argument 'bacth_size'. Did you mean 'batch_size'?"),
        ("--trainer.max_epoch=1", "no option 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?"),
        ("--ckptpath=x", "no option 'ckptpath'. Did you mean 'ckpt_path'?"),
        ("trainer: {max_epoch: 1}", "no option 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?"),
        ("model: {class_path: avsal.STAViSModul}", "avsal has no 'STAViSModul'. Did you mean 'STAViSModule'?"),
        ("model: {class_path: avsal.STAViSModule, init_arg: {width: 8}}", "Did you mean 'init_args'?"),
        ("trainer: {callbacks: [{class_path: EarlyStoppin}]}", "'EarlyStoppin'. Did you mean 'EarlyStopping'?"),
        ("trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitr: a}}]}", "Did you mean 'monitor'?"),
        ("--model.init_args.fusion=1", "expected Literal["),
        ("--data.init_args.clips=x", "data clips: expected <class 'int'>, got 'x'."),
    ],
)  # fmt: skip
def test_a_misspelt_key_is_told_in_one_line_with_the_right_one(
    files: list[str], tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [text]
    if not text.startswith("--"):
        (tmp_path / "typo.yaml").write_text(text)
        words = ["-c", "typo.yaml"]
    assert cli.main(["fit", *files, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_run_that_ends_before_its_first_validation_needs_no_value_to_stop_by(
    files: list[str], tmp_path: Path
) -> None:
    stop = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 1}}
    (tmp_path / "stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stop]}}))
    assert cli.main(["fit", *files, "-c", "stop.yaml", "--trainer.max_steps=1"]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-c", "model.yaml"], "No data set is configured"),
        (["-c", "nowhere.yaml"], "no such configuration file"),
        (["-c", "model.yaml", "-c", "data.yaml", "--trainer.max_epoch=1"], "max_epoch"),
        (["-c", "model.yaml", "-c", "data.yaml", "--model.init_args.widht=1"], "widht"),
        (["-c", "model.yaml", "-c", "data.yaml", "--data.init_args.root=nowhere"], "nowhere"),
        (["-c", "model.yaml", "-c", "data.yaml", "--ckpt_path=last"], "no last.ckpt"),
        (["-c", "model.yaml", "-c", "data.yaml", "--ckpt_path=model.yaml"], "cannot be loaded"),
    ],
)
def test_mistakes_are_told_on_one_screen_and_leave_nothing_behind(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["fit", *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) <= 24
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_configuration_does_not_override_the_command_line(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fit", *files, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]) == 0
    (path,) = tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt")
    capsys.readouterr()
    assert cli.main(["fit", *files, "--ckpt_path", str(path), "--model.init_args.hidden=12"]) == 2
    assert "hidden: 8 in the checkpoint, 12 configured" in capsys.readouterr().err


def test_a_fine_tuned_network_is_tested_without_its_training_settings(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = ["--model.init_args.lr=0.0003", "--model.init_args.weight_decay=0.1", "--trainer.max_epochs=1"]
    assert cli.main(["fit", *files, *tuned, "--trainer.limit_train_batches=1"]) == 0
    for command in ("test", "validate"):
        assert cli.main([command, *files, "--ckpt_path", "last"]) == 0
    capsys.readouterr()
    assert cli.main(["test", *files, "--ckpt_path", "last", "--model.init_args.fusion=attention"]) == 2
    error = capsys.readouterr().err
    assert "fusion" in error
    assert "lr" not in error.replace("learn", "")
    assert cli.main(["fit", *files, "--ckpt_path", "last"]) == 2  # training on does care
    assert "lr: 0.0003 in the checkpoint" in capsys.readouterr().err


#: Constructor arguments that only training reads: a new argument of a model belongs here or decides about tests.
TRAINING_ONLY = {
    "lr", "min_lr", "weight_decay", "optimizer", "schedule", "milestones", "clip_norm", "deep_supervision", "loss",
    "loss_weights", "loss_frames", "av_weight", "sim_norm", "alpha", "coarse_weight", "positions", "bn_momentum",
    "drop_path", "init_std", "freeze_bn", "freeze_encoder", "freeze_encoders", "freeze_audio",
    "freeze_audio_bn", "freeze_image", "freeze_motion", "allow_random_frozen", "keep", "encoder_lr", "targets",
}  # fmt: skip


@pytest.mark.parametrize("name", avsal.list_models())
def test_every_argument_either_decides_about_a_test_or_is_known_to_train_only(name: str) -> None:
    small = {"size": (64, 64)} if name == "csts" else {}
    if name == "mspi":
        small = {"encoder": "s3d", "width": 0.25, "image_stream": "none", "audio": False}
    module = avsal.create_model(name, **small)
    deciding = deciding_arguments(module)
    open_questions = set(module.hparams) - deciding - TRAINING_ONLY - set(module.start_arguments)
    assert open_questions == set()
    assert not deciding & {"lr", "weight_decay", "optimizer", "loss_weights", "freeze_bn"}
    assert ({"base_arguments"} if name == "speaker" else {"size"}) <= deciding


@pytest.fixture
def weights_file(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights of the tests' network under a name of the registry: what a file of the package is."""
    from avsal.checkpoints import registry
    from avsal.models.stavis import STAViSModule

    torch.manual_seed(3)
    arguments = {
        "size": (24, 32), "via": None, "width": 8, "blocks": (1, 1, 1), "dsam_maps": 2, "hidden": 8, "audio_width": 4,
    }  # fmt: skip
    folder = STAViSModule(**arguments).save_pretrained(tmp_path / "saved")  # type: ignore[arg-type]
    known = avsal.checkpoints.registry.find("stavis-tiny-synthav")
    data = (folder / "model.safetensors").read_bytes()
    source = registry.PackagedSource(file="saved.safetensors", sha256=hashlib.sha256(data).hexdigest())
    entry = known.model_copy(update={"name": "mine", "sources": [source]})
    monkeypatch.setitem(registry._registered, "mine", (entry, registry.citation(known)))
    monkeypatch.setattr("avsal.checkpoints.load.packaged_path", lambda source: folder / "model.safetensors")
    return str(folder / "model.safetensors")


@pytest.mark.parametrize("how", ["--ckpt_path=mine", "--ckpt_path=FILE", "--model.init_args.init_from=mine"])
def test_weights_by_name_and_by_file_are_the_ones_that_results_name(
    files: list[str], weights_file: str, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["test", *files, how.replace("FILE", weights_file)]) == 0
    (path,) = (tmp_path / "results").glob("*.json")
    checkpoint = Results.read(path).checkpoint
    assert checkpoint is not None
    assert checkpoint.sha256 == hashlib.sha256(Path(weights_file).read_bytes()).hexdigest()
    assert checkpoint.weights == weights_hash(avsal.from_pretrained(weights_file))
    assert checkpoint.name is not None
    assert cli.main(["validate", *files, how.replace("FILE", weights_file)]) == 0


def test_training_starts_from_a_registry_name(files: list[str], weights_file: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    still = [
        "--model.init_args.lr=1e-12",
        "--model.init_args.weight_decay=0",
        "--trainer.limit_train_batches=1",
    ]
    assert cli.main(["fit", *files, *still, "--trainer.max_epochs=1", "--ckpt_path=mine"]) == 0
    expected, found = load_file(weights_file), weights(tmp_path)
    parameters = [name for name in expected if "running" not in name and "num_batches" not in name]
    assert len(parameters) > 20
    for name in parameters:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-9)


def test_a_misspelt_name_of_weights_is_guessed(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["test", *files, "--ckpt_path=stavis-tiny-synthv"]) == 2
    assert "stavis-tiny-synthav" in capsys.readouterr().err


def test_results_of_random_weights_and_of_a_file_that_changed_name_no_file(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["test", *files]) == 0
    (path,) = (tmp_path / "results").glob("*.json")
    checkpoint = Results.read(path).checkpoint
    assert checkpoint is not None
    assert (checkpoint.name, checkpoint.sha256) == (None, None)
    assert checkpoint.weights is not None
    module = avsal.from_pretrained("stavis-tiny-synthav")
    assert checkpoint_of(module).name == "stavis-tiny-synthav"
    with torch.no_grad():
        next(module.parameters()).add_(0.1)
    assert checkpoint_of(module).name is None


def test_added_callbacks_do_not_drop_ours_and_print_config_shows_the_stack(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more.yaml").write_text("trainer:\n  callbacks:\n    - class_path: LearningRateMonitor\n")
    words = ["fit", *files, "-c", "more.yaml", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    assert cli.main(words) == 0
    assert list(tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--print_config"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert "SynthAVDataModule" in shown
    assert "LearningRateMonitor" in shown


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "examples").glob("*.yaml")))
def test_every_example_is_a_valid_configuration(name: str) -> None:
    check_config_file(ROOT / "examples" / name)


@pytest.mark.parametrize("name", ["STAViSModule", "avsal.CSTSModule"])
def test_the_help_of_a_model_explains_the_arguments_of_its_network(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["avsal", "fit", "--model.help", name])
    with pytest.raises(SystemExit):
        main()
    shown = " ".join(capsys.readouterr().out.split())
    cls = getattr(avsal, name.rpartition(".")[2])
    assert all(f"--model.{argument} " in shown for argument in cls.arguments())
    told = {"STAViSModule": "D_h of the two projections. (type: int, default: 128)"}
    assert told.get(name, "(type: Literal['anticipation', 'estimation'], default: anticipation)") in shown


@pytest.mark.parametrize("name", avsal.list_models())
def test_a_module_records_every_effective_argument_and_is_rebuilt_from_them(name: str) -> None:
    cls = model_class(name)
    module = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in cls.small.items()})
    assert set(module.hparams) == set(cls.arguments())
    again = cls(**module.hparams)
    assert dict(again.hparams) == dict(module.hparams)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in module.state_dict().items()
    }
