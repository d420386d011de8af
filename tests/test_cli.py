"""The commands: quick to start, each with its help, one line for every error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cyclopts import CoercionError

import avsal
from avsal.cli import COMMANDS, LIGHTNING, main, program

#: What takes long to import, and what a look at the help does not need.
HEAVY = (
    "torch",
    "torchvision",
    "torchaudio",
    "lightning",
    "numpy",
    "scipy",
    "matplotlib",
    "av",
    "timm",
    "PIL",
)
#: Every command with those of the groups, as they are typed.
WORDS = [(name,) for name in COMMANDS] + [
    (name, inner) for name, (_, where) in COMMANDS.items() if isinstance(where, dict) for inner in where
]


def imported_by(code: str) -> list[str]:
    """Return the heavy packages in `sys.modules` after some code ran in a fresh interpreter."""
    report = f"import sys; print('heavy:', *[n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, timeout=120
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("heavy:"))
    return line.split()[1:]


@pytest.mark.parametrize(
    "code",
    [
        "import avsal; avsal.__version__; dir(avsal)",
        "from avsal.cli import main; main(['--help'])",
        "from avsal.cli import main; main(['--version'])",
        "from avsal.cli import main; main(['nonsense'])",
    ],
)
def test_looking_around_imports_nothing_heavy(code: str) -> None:
    assert imported_by(code) == []


def test_the_list_of_heavy_packages_is_looked_at() -> None:
    assert imported_by("import numpy") == ["numpy"]


def test_the_commands_own_help_does_not_wait_for_torch() -> None:
    code = "\n".join(
        [
            "from avsal.cli import main",
            f"for words in {WORDS}:",
            "    main([*words, '--help'])",
        ]
    )
    assert not {"torch", "lightning"} & set(imported_by(code))


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == shown
    first_words = [line.split()[1] for line in shown.splitlines() if line.startswith("│ ")]
    assert {*COMMANDS, *LIGHTNING} <= set(first_words)
    assert max(map(len, shown.splitlines())) <= 110


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_command_has_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: avsal {' '.join(words)}")
    assert len(shown.splitlines()) > 2


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_option_is_explained(words: tuple[str, ...]) -> None:
    app = program(words)
    for word in words:
        app = app[word]
    arguments = app.assemble_argument_collection(parse_docstring=True) if app.default_command else []
    assert [a.name for a in arguments if a.show and not a.parameter.help] == []


def test_a_fraction_is_no_whole_number(capsys: pytest.CaptureFixture[str]) -> None:
    def count(*, number: int | None = None, share: float = 0.0) -> int:
        """Count.

        Args:
            number: how many.
            share: of all.
        """
        return int(number == 3 and share == 0.5)

    app = program()
    app.command(count)
    assert app(["count", "--number", "3", "--share", "0.5"]) == 1
    with pytest.raises(CoercionError, match=r"1\.5"):
        app(["count", "--number", "1.5"])


def test_a_group_of_commands_alone_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    for name, (_, where) in COMMANDS.items():
        if isinstance(where, dict):
            assert main([name]) == 2
            out, err = capsys.readouterr()
            assert out == ""
            assert set(where) <= set(err.split())


@pytest.mark.parametrize("command", LIGHTNING)
def test_lightnings_commands_have_help(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["avsal"])
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--model" in shown
    assert "--data" in shown


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"avsal {avsal.__version__}\n"


@pytest.mark.parametrize(
    ("word", "meant"),
    [("predcit", "predict"), ("leaderbord", "leaderboard"), ("fitt", "fit"), ("valdate", "validate")],
)
def test_a_misspelt_command_is_guessed(word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"Did you mean `{meant}`?" in err.splitlines()[0]
    assert "Usage:" in err


def test_an_unknown_command_without_a_likeness_gets_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xyzzy"]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "error: there is no command 'xyzzy'."
    assert any("predict" in line for line in rest)


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "clip.mp4", "--alpha", "7"],
        ["predict", "clip.mp4", "--stride", "-1"],
        ["info", "no-such-model-or-checkpoint"],
        ["convert", "stavis", "no-such-file.pth", "--name", "mine"],
        ["convert", "no-such-format", "no-such-file.pth", "--name", "mine"],
        ["evaluate", "no-such-folder", "--data", "no-such-data"],
    ],
)
def test_errors_are_one_line_and_status_2(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = main(words)
    except SystemExit as ended:  # argparse's own way for words it does not know
        status = ended.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if not line.startswith(("usage:", " "))]
    assert len(lines) == 1
    assert "error: " in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_options_may_stand_between_the_inputs(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
    assert main(["predict", str(one), "--quiet", str(two), "--out", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert "2 of 2 inputs failed" in err
    assert "one.mp4" in err
    assert "two.mp4" in err


@pytest.mark.parametrize("command", ["avsal", "lightning"])
def test_both_names_are_one_entry_point(command: str) -> None:
    from importlib.metadata import entry_points

    found = {e.value for e in entry_points(group="console_scripts") if e.name == command}
    if not found:  # the source tree without an installation
        import tomllib
        from pathlib import Path

        text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
        found = {tomllib.loads(text)["project"]["scripts"][command]}
    assert found == {"avsal.cli:main"}


def test_a_closed_pipe_is_no_error() -> None:
    code = "from avsal.cli import main; import sys; sys.exit(main(['--help']))"
    child = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.stdin.readline()\n{code}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    child.stdin.write("go\n")
    child.stdin.close()
    assert child.wait(timeout=60) == 0
    assert child.stderr.read() == ""
    child.stderr.close()


LIMITED = """
import resource, signal, sys
from avsal.cli import main
synth, weights, results, out = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))  # larger files fail as on a full disk
for words in (
    ["data", "synth", "--out", out + "/synth", "--clips", "12", "--seconds", "1"],
    ["data", "pack", synth, "--out", out + "/x.h5", "--model", "stavis"],
    ["convert", "stavis", weights, "--out", out + "/converted", "--set", "audiovisual=false"],
    ["leaderboard", results, "--out", out + "/table.html"],
):
    print("status", main(words), flush=True)
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A small data set, an authors' checkpoint, and a folder of results."""
    from avsal.data.synthetic import generate
    from avsal.models.stavis import STAViSModule, authors_name
    from tests.report.fake import results, write

    folder = tmp_path_factory.mktemp("material")
    synth = generate(folder / "synth", clips=12, seconds=1.0, observers=2)
    names = json.loads((Path(__file__).parent / "golden" / "stavis_visual.json").read_text())["state_dict"]
    own = STAViSModule(audiovisual=False).network.state_dict()
    torch.save(
        {name: own[authors_name(name)] for name, _ in names if authors_name(name) in own}, folder / "w.pth"
    )
    write(folder / "results", results("DIEM", 1))
    return synth, folder / "w.pth", folder / "results"


@pytest.mark.slow
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(
    material: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, material), str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "AVSAL_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["status 2"] * 4, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 4
    assert all("cannot be written (File too large)" in line for line in said), said
    assert "Traceback" not in done.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "cache" not in path.parents]
    assert [path.name for path in left if not path.name.endswith(".lock")] == []


def test_a_place_where_nothing_can_be_written_is_said_in_one_line(
    material: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synth, weights, results = map(str, material)
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "below")
    for words in (
        ["data", "synth", "--out", out, "--clips", "12", "--seconds", "1"],
        ["data", "pack", synth, "--out", out + ".h5", "--model", "stavis"],
        ["data", "check", synth, "--quick", "--json", out + ".json"],
        ["convert", "stavis", weights, "--out", out, "--set", "audiovisual=false"],
        ["leaderboard", results, "--out", out + ".html"],
    ):
        assert main(words) == 2, words
        assert "cannot be written (" in capsys.readouterr().err, words
    assert (tmp_path / "file").read_text() == ""
