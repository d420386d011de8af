"""Every command and every Python snippet of the README and the documentation runs.

Blocks are taken out of the Markdown as they stand: a new one is run without anybody listing it here, and one that
cannot run fails. What a command reads is made beforehand, as small as it can be (`SUBSTITUTES`, `World.MAKE`); what
takes hours is run for one batch (`shortened`). The Hub is the tests' own server on loopback.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import avsal
from avsal import cli
from avsal.evaluation.provenance import weights_hash
from avsal.evaluation.results import Results
from tests.data.test_layout import make_video, write_list
from tests.media import picture, tone, write_clip
from tests.report import fake
from tests.zoo.conftest import hub_client, server  # noqa: F401
from tests.zoo.hub_server import HubServer

ROOT = Path(avsal.__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
COMMANDS = ("avsal", "lightning", "make", "python", "pip")
#: What stands for something of the reader's, and what is taken in its place.
SUBSTITUTES = {
    "<DHF1K>": "data/dhf1k", "<the six sets>": "data/av", "<best .ckpt>": "stage1", "runs/…/best-….ckpt": "stage1",
    "ROOT": "data/av", "FILES": "P01.tsv", "csts-ego4d": "csts-tiny-synthav",
    "<40-digit commit>": "a" * 40, "<64 digits>": "b" * 64,
    'encoder="mvitv2s", size=(224, 384)': 'encoder="s3d", size=(64, 96), width=0.25, image_encoder="mobilenetv2_035"',
}  # fmt: skip
#: Arguments that make a paper's network small; the files of small networks are taken as they are.
SMALL: dict[str, dict[str, Any]] = {
    "stavis": {"size": [24, 32], "via": None, "width": 8, "blocks": [1, 1, 1], "dsam_maps": 2, "hidden": 8,
               "audio_width": 4},
    "caspnet": {"size": [64, 96], "width": 0.1, "channels": 8, "audio_encoder": "small"},
    "avrsp": {"size": [64, 96], "width": 0.1, "channels": 8, "heads": 2, "audio_width": 4},
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, and its indented ones."""
    lines = page.read_text(encoding="utf-8").splitlines()
    k = 0
    while k < len(lines):
        begin = k + 1
        if fence := re.fullmatch(r"\s*```(\w*).*", lines[k]):
            while not lines[(k := k + 1)].lstrip().startswith("```"):
                pass
            yield Block(page, begin, fence[1], "\n".join(lines[begin:k]))
        elif lines[k].startswith("    ") and (k == 0 or not lines[k - 1].strip()):
            while k < len(lines) and (lines[k].startswith("    ") or not lines[k].strip()):
                k += 1
            yield Block(page, begin, "indented", "\n".join(line[4:] for line in lines[begin - 1 : k]))
            continue
        k += 1


def commands(block: Block) -> list[str]:
    """The commands of a block; empty for a block that shows something else."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    shell = block.kind in ("sh", "bash", "shell", "console")
    if not shell and not (found and found[0].split()[0] in COMMANDS):
        return []
    assert all(line.split()[0] in COMMANDS for line in found), f"{block}: a line is none of {COMMANDS}"
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if commands(block)]
PYTHON = [block for block in BLOCKS if block.kind == "python"]
#: Kinds of fences that say what they are, and are no commands.
SHOWN = {"", "text", "indented", "yaml", "python"}


class World:
    """A folder in which commands run: what they read is made when it is first named."""

    page: Path  #: that the commands are from

    def __init__(self, folder: Path, hub: HubServer) -> None:
        self.folder, self.hub, self.made = folder, hub, [None]
        shutil.copytree(ROOT / "examples", folder / "examples")

    def prepare(self, words: list[str]) -> None:
        names = [part for word in words for part in [word, *word.split("=")[1:]]]
        for name in [name for name in names if name.endswith(".yaml")]:  # and what a configuration reads
            data = yaml.safe_load((self.folder / name).read_text(encoding="utf-8")).get("data") or {}
            names.append(str(data.get("init_args", {}).get("root")))
        # Predictions follow the ground truth.
        for name in sorted(names, key=lambda name: name.startswith("maps")):
            path = self.folder / name
            # The first of its folders that is known here, or a video file of any name.
            # The videos whose gaze a command imports have none yet.
            parents = () if "import" in words[:2] else map(str, Path(name).parents)
            known = [part for part in (name.rstrip("/"), *parents) if part in self.MAKE]
            if known and self.MAKE[known[0]] not in self.made:
                self.made.append(self.MAKE[known[0]])
                self.MAKE[known[0]](self)
            elif path.suffix in self.FILES and re.fullmatch(r"[\w/.-]+", name) and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                self.FILES[path.suffix](path)

    def audiovisual(self) -> None:
        for name in avsal.AVSaliencyDataModule.sets:
            for video in ("a", "b", "c"):
                make_video(self.folder / "data" / "av", name, video, 4, as_file=True)
            for split, names in (("train", "ab"), ("test", "c")):
                for fold in ("", "_1", "_2", "_3"):
                    text = "".join(f"{video} 4 25\n" for video in names)
                    write_list(self.folder / "data" / "av", f"{name}_list_{split}{fold}_fps.txt", text)

    def dhf1k(self) -> None:
        from tests.data.test_ordinary_frames import dhf1k

        dhf1k(self.folder / "data" / "dhf1k")

    def videos(self) -> None:
        folder = self.folder / "my_videos"
        folder.mkdir()
        for name in "abcdef":
            write_clip(folder / f"{name}.mp4", frames=20, fps=25, sound=tone(0.8), rate=16000)
            rows = "".join(f"{k / 25 + 0.01:.3f},{(k + 0.5) / 64},0.25,ann\n" for k in range(20))
            (folder / f"{name}.csv").write_text("time_s,x_norm,y_norm,observer\n" + rows)

    def annotations(self, folder: str = "annotations") -> None:
        for name in ("a", "b"):
            make_video(self.folder / "made", "made", name, 4)
        shutil.move(self.folder / "made" / "annotations" / "made", self.folder / folder)

    def diem(self) -> None:
        (self.folder / "annotations").mkdir(exist_ok=True)
        self.annotations("annotations/DIEM")

    def maps(self) -> None:
        """Predictions for whatever ground truth is there: the densities themselves."""
        for density in [
            *self.folder.glob("annotations/**/maps"),
            *self.folder.glob("data/av/annotations/AVAD/c/maps"),
        ]:
            shutil.copytree(density, self.folder / "maps" / density.parent.name)

    def crowd(self) -> None:
        truth, predictions = self.folder / "SaliencyTest" / "Test", self.folder / "submission"
        truth.mkdir(parents=True)
        predictions.mkdir()
        for name in ("a", "b"):
            for folder in (truth, predictions):
                write_clip(folder / f"{name}.mp4", frames=4, fps=25, pix_fmt="gray")
            (truth / name).mkdir()
            points = [[[k + 1, 2 * k + 3], [20, 30], [40, 5 + k]] for k in range(4)]
            (truth / name / "fixations.json").write_text(json.dumps(points))

    def results(self) -> None:
        fake.write(self.folder / "results", *(fake.results(fold=fold) for fold in (1, 2, 3)))

    def stage1(self) -> None:
        """Weights of the network whose second stage a command trains."""
        for name, options in SMALL.items():
            module = avsal.create_model(name, audiovisual=False, **{k: _tuple(v) for k, v in options.items()})
            module.save_pretrained(self.folder / "stage1" / name)

    def own_run(self) -> None:
        import lightning as L

        torch.manual_seed(0)
        module = avsal.create_model("stavis", **{k: _tuple(v) for k, v in SMALL["stavis"].items()})
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, barebones=False)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(self.folder / "runs" / "mine" / "last.ckpt")
        made = fake.results(fold=None).model_dump()
        made["checkpoint"] = {"name": "last.ckpt", "weights": weights_hash(module)}
        Results.model_validate(made).write(self.folder / "results" / "mine.json")

    def authors(self) -> None:
        case = json.loads((ROOT / "tests" / "golden" / "stavis_audiovisual.json").read_text())
        state = {name: torch.zeros(shape) for name, shape in case["state_dict"]}
        torch.save({"state_dict": state}, self.folder / "my_save_60.pth")

    def archive(self) -> None:
        self.authors()
        with tarfile.open(self.folder / "pretrained_models.tar.gz", "w:gz", compresslevel=1) as archive:
            archive.add(self.folder / "my_save_60.pth", "stavis_audiovisual/audiovisual_split1_save_60.pth")

    def converted(self) -> None:
        self.archive()
        name = "stavis-audiovisual-fold1"
        assert (
            cli.main(["convert", "stavis", str(self.folder / "pretrained_models.tar.gz"), "--name", name])
            == 0
        )

    def gaze(self) -> None:
        rows = "".join(f"{t / 100:.2f},0.5,0.5\n" for t in range(200))
        (self.folder / "gaze.csv").write_text("time_s,x_norm,y_norm\n" + rows)

    def published(self) -> None:
        """A data set and a model on the Hub."""
        self.own_run()
        module = avsal.from_pretrained(self.folder / "runs" / "mine" / "last.ckpt")
        saved = module.save_pretrained(self.folder / "saved")
        self.hub.repo("user/name", {path.name: path.read_bytes() for path in saved.iterdir()})
        made = self.folder / "crowd"
        for part, video in (("Train", "0001"), ("Train", "0002"), ("Test", "3001")):
            for kind, pixels in (("Videos", "yuv420p"), ("Saliency", "gray")):
                (made / part / kind).mkdir(parents=True, exist_ok=True)
                write_clip(made / part / kind / f"{video}.mp4", frames=4, fps=30, pix_fmt=pixels)
            (made / part / "Fixations").mkdir(exist_ok=True)
            (made / part / "Fixations" / f"{video}.json").write_text(json.dumps([[[40, 50], [10, 5]]] * 4))
        files = {p.relative_to(made).as_posix(): p.read_bytes() for p in made.rglob("*") if p.is_file()}
        self.hub.repo("ANDRYHA/CrowdSAL", files)

    @staticmethod
    def video(path: Path) -> None:
        write_clip(path, frames=60, fps=30, sound=tone(2), rate=16000)

    @staticmethod
    def picture(path: Path) -> None:
        Image.fromarray(picture(1, 96, 128)).save(path)

    @staticmethod
    def tobii(path: Path) -> None:
        """An export of Tobii Pro Lab about the video a.mp4."""
        head = "Recording timestamp [μs]\tSensor\tParticipant name\tEvent\tGaze point X [MCS norm]\t"
        head += (
            "Gaze point Y [MCS norm]\tValidity left\tValidity right\tEye movement type\tPresented Media name"
        )
        rows = ["0\t\tP1\tVideoStimulusStart\t\t\t\t\t\ta.mp4"]
        rows += [
            f"{k * 10000}\tEye Tracker\tP1\t\t0.4\t0.6\tValid\tValid\tFixation\ta.mp4" for k in range(200)
        ]
        path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")

    @staticmethod
    def eyelink(path: Path) -> None:
        """A recording of SR Research whose video began at 5001 s."""
        from tests.data.test_importers import ASC_TOP

        rows = [f"{5_001_000 + 4 * k}\t800.0\t480.0\t800.0\t800.0\t480.0\t800.0\t....." for k in range(500)]
        end = f"END\t{5_001_000 + 2000}\tSAMPLES\tEVENTS\tRES\t 30.0\t 30.0"
        path.write_text(ASC_TOP + "\n".join([*rows, end]) + "\n")

    FILES: dict[str, Callable[[Path], None]] = {
        **dict.fromkeys((".mp4", ".mkv", ".avi", ".mov", ".webm"), video),
        **dict.fromkeys((".jpg", ".jpeg", ".png"), picture), ".tsv": tobii, ".asc": eyelink,
    }  # fmt: skip
    MAKE: dict[str, Callable[[World], None]] = {
        "data/av": audiovisual, "data/dhf1k": dhf1k, "my_videos": videos, "annotations/DIEM": diem,
        "annotations": annotations, "maps": maps, "submission": crowd, "SaliencyTest": crowd, "results": results,
        "stage1": stage1, "runs/mine/last.ckpt": own_run, "results/mine.json": own_run, "my_save_60.pth": authors,
        "pretrained_models.tar.gz": archive, "stavis-audiovisual-fold1": converted,
        "gaze.csv": gaze, "crowdsal": published, "user/name": published,
    }  # fmt: skip


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def replaced(text: str) -> str:
    for here, there in SUBSTITUTES.items():
        text = re.sub(rf"(?<![\w-]){re.escape(here)}(?![\w-])", there, text)
    return text


def shortened(words: list[str], world: World) -> list[str]:
    """A command that is over in seconds: a training runs one batch, a reproduction is planned."""
    if words[0] == "reproduce":
        return [*words, "--dry-run"]
    if words[0] not in cli.LIGHTNING:
        return words
    files = [Path(word) for flag, word in pairwise(words) if flag in ("-c", "--config")]
    content = [yaml.safe_load((world.folder / path).read_text()) for path in files]
    quick = {
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": False,
        "data.init_args.num_workers": 0,
    }
    if any("SynthAV" in str(part.get("data")) for part in content):
        quick |= {"data.init_args.clips": 12, "data.init_args.seconds": 1.0}
    quick |= {"data.init_args.batch_size": 2}
    goes_on = any("--ckpt_path last" in block.text for block in SHELL if block.page == world.page)
    if words[0] == "fit" and not goes_on:
        quick |= {"trainer.fast_dev_run": True}
    else:  # what follows reads its checkpoint
        quick |= {"trainer.max_epochs": 1, "trainer.limit_train_batches": 1, "trainer.limit_val_batches": 1}
    quick |= {"trainer.limit_test_batches": 1} if words[0] == "test" else {}
    model = re.search(r"avsal\.(\w+)Module", " ".join(str(part.get("model")) for part in content))
    if model and not any("tiny" in path.name for path in files):
        small = {**SMALL[model[1].lower()], "backbone": None, "audio_backbone": None}
        quick |= {f"model.init_args.{key}": value for key, value in small.items()}
        words = [re.sub(r"=stage1$", f"=stage1/{model[1].lower()}", word) for word in words]
    return words + [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in quick.items()]


@pytest.fixture
def world(tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> World:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "token")
    monkeypatch.setenv("AVSAL_CACHE", str(tmp_path / "cache"))
    return World(tmp_path, server)


@pytest.mark.slow
@pytest.mark.parametrize("block", SHELL, ids=str)
def test_the_commands_of_the_documentation_run(
    block: Block, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.page = block.page
    for line in commands(block):
        program, *words = shlex.split(replaced(line), comments=True)
        if program == "make":
            targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
            assert words[0] in targets
            assert f"make {words[0]}" in (ROOT / ".ci" / "run").read_text()  # which runs it
            continue
        assert program in ("avsal", "lightning"), f"{block}: nothing here runs `{line}`"
        world.prepare(words)
        monkeypatch.setattr("sys.argv", [program, *words])
        status: Any = None
        with suppress(SystemExit):
            status = cli.main(shortened(words, world))
        said = capsys.readouterr()
        assert status == 0, f"{block}: `{line}` ends with {status}\n{said.out[-1500:]}\n{said.err[-1500:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in PYTHON), ids=lambda page: page.name)
def test_the_snippets_of_the_documentation_run(page: Path, world: World) -> None:
    random = np.random.default_rng(0)
    names: dict[str, Any] = {
        "pred": random.random((2, 1, 12, 16)), "density": random.random((2, 1, 12, 16)),
        "fixations": random.integers(0, 12, (2, 1, 5, 2)), "negatives": random.integers(0, 12, (2, 1, 5, 2)),
        "video_id": [0, 1], "frame": [[0], [0]],
    }  # fmt: skip
    for block in [block for block in PYTHON if block.page == page]:
        text = replaced(block.text)
        world.prepare(re.findall(r'"([^"\n]+)"', text))
        exec(compile(text, str(block), "exec"), names)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "yaml"], ids=str)
def test_the_files_of_the_documentation_are_valid(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(replaced(block.text))
    if "format_version" in block.text:
        assert cli.main(["zoo", "check", str(path)]) == 0
    else:
        from avsal.training import check_config_file

        check_config_file(path)


def test_every_block_is_of_a_kind_that_is_run_or_only_shown() -> None:
    assert {block.kind for block in BLOCKS} <= SHOWN | {block.kind for block in SHELL}
    assert len(SHELL) > 10
    assert len(PYTHON) > 4


def parsers() -> dict[tuple[str, ...], str]:
    """The help of every command and sub-command."""
    found = {}
    for name, (_, where) in cli.COMMANDS.items():
        found[(name,)] = helped(name)
        for inner in where if isinstance(where, dict) else ():
            found[(name, inner)] = helped(name, inner)
    return found


def helped(*words: str) -> str:
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), suppress(SystemExit):
        cli.main([*words, "--help"])
    return out.getvalue()


def test_commands_and_options_named_in_the_text_exist() -> None:
    known = parsers()
    wrong = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for span in re.findall(r"`avsal ([^`]+)`", text):
            words = span.replace("\n", " ").split()
            if words[0] in cli.LIGHTNING or words[0].isupper() or words[0] in ("…",):
                continue
            place = tuple(words[:2]) if tuple(words[:2]) in known else (words[0],)
            options = [word.split("=")[0] for word in words if word.startswith("--")]
            if place not in known or any(option not in known[place] for option in options):
                wrong.append(f"{page.name}: avsal {span}")
    assert wrong == []


def test_the_examples_in_docstrings_run() -> None:
    import doctest
    from importlib import import_module

    tried = 0
    for path in sorted((ROOT / "avsal").rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            result = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
            assert result.failed == 0, name
            tried += 1
    assert tried
