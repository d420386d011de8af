"""The wheel as users install it: complete, nothing else in it, and the registry is found."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import avsal

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
OFFLINE = ["--quiet", "--no-deps", "--no-index", "--no-cache-dir"]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    (built,) = folder.glob("avsal-*.whl")
    return built


@pytest.fixture(scope="module")
def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    command = [*PIP, "install", *OFFLINE, "--no-compile", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return folder


def in_installed(folder: Path, code: str) -> str:
    """Run code against the installed package, far from the source tree."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_the_package_and_nothing_else(contents: dict[str, bytes]) -> None:
    inside = {name for name in contents if ".dist-info/" not in name}
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "avsal").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert inside == sources | {"avsal/checkpoints.yaml"}
    assert "avsal/py.typed" in inside
    assert contents["avsal/checkpoints.yaml"] == (ROOT / "checkpoints.yaml").read_bytes()


def test_the_weights_that_ship_are_inside_and_whole(contents: dict[str, bytes]) -> None:
    registry = yaml.safe_load(contents["avsal/checkpoints.yaml"])
    packaged = [
        (name, source)
        for name, entry in registry["checkpoints"].items()
        for source in entry["sources"]
        if source["kind"] == "packaged"
    ]
    assert packaged
    for name, source in packaged:
        data = contents[f"avsal/{source['file']}"]
        assert (len(data), hashlib.sha256(data).hexdigest()) == (source["size"], source["sha256"]), name
    shipped = {f"avsal/{source['file']}" for _, source in packaged}
    assert {name for name in contents if name.endswith(".safetensors")} == shipped


def test_the_metadata_says_what_pyproject_says(contents: dict[str, bytes], project: dict) -> None:
    folder = f"avsal-{project['version']}.dist-info"
    metadata = message_from_bytes(contents[f"{folder}/METADATA"])
    assert metadata["Version"] == project["version"] == avsal.__version__
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert contents[f"{folder}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(needed) == len(project["dependencies"])
    scripts = contents[f"{folder}/entry_points.txt"].decode()
    assert re.findall(r"^(\w+) = (\S+)$", scripts, re.M) == [
        ("avsal", "avsal.cli:main"),
        ("lightning", "avsal.cli:main"),
    ]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == project["version"]


def test_what_the_code_imports_is_declared(project: dict) -> None:
    """Every library named by an import of the package is a dependency, or of an extra whose use says so."""
    declared = [*project["dependencies"], *(r for e in project["optional-dependencies"].values() for r in e)]
    names = {re.match(r"[\w.-]+", r)[0].lower().replace("-", "_") for r in declared}
    names |= {"pil" if "pillow" in names else "", "yaml" if "pyyaml" in names else ""}
    names |= {"projectaria_tools", "avsal"}
    foreign = set()
    for path in (ROOT / "avsal").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                found = [node.module or ""]
            foreign |= {name.split(".")[0] for name in found}
    missing = {n for n in foreign if n.lower() not in names and n not in sys.stdlib_module_names}
    assert missing == set()


def test_the_installed_package_finds_its_registry(installed: Path) -> None:
    code = "import avsal; from avsal.checkpoints.registry import entries\nprint(avsal.__file__); print(*entries())"
    where, names = in_installed(installed, code).splitlines()
    assert Path(where).is_relative_to(installed)
    registry = yaml.safe_load((ROOT / "checkpoints.yaml").read_text())
    assert set(names.split()) == set(registry["checkpoints"])


def test_the_installed_command_runs(installed: Path) -> None:
    code = "import sys; from avsal.cli import main; sys.exit(main(['--version']))"
    assert in_installed(installed, code) == f"avsal {avsal.__version__}"


def test_the_installed_package_finds_the_weights_that_ship(installed: Path) -> None:
    code = (
        "from avsal.files import sha256_of; from avsal.checkpoints.fetch import packaged_path\n"
        "from avsal.checkpoints.registry import entries\n"
        "for entry in entries().values():\n"
        "    for source in entry.sources:\n"
        "        if source.kind == 'packaged':\n"
        "            assert sha256_of(packaged_path(source)) == source.sha256\n"
        "            print(packaged_path(source))"
    )
    paths = in_installed(installed, code).splitlines()
    assert paths
    assert all(Path(path).is_relative_to(installed) for path in paths)


@pytest.mark.parametrize("room", ["avsal", "avsal.zoo", "avsal.metrics", "avsal.data"])
def test_public_names_are_there(room: str) -> None:
    module = import_module(room)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        value = getattr(module, name)
        assert value is not None
        if isinstance(value, type) or callable(value):
            assert value.__doc__, f"{room}.{name} has no docstring"
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_the_public_names_are_complete() -> None:
    """avsal has every model's class, `dir(avsal)` every data set's, and nothing that is not there."""
    models = [import_module(f"avsal.models.{name}").MODULE for name in avsal.list_models()]
    assert all(getattr(avsal, model.__name__) is model for model in models)
    modules = {name for name in dir(avsal.data) if name.endswith("DataModule")}
    assert modules | {"from_pretrained", "predict_video", "AvsalError", "__version__"} <= set(dir(avsal))
    assert all(getattr(avsal, name) is not None for name in dir(avsal))


@pytest.mark.slow
def test_mypy_knows_every_public_name_and_refuses_others(tmp_path: Path) -> None:
    rooms = ("avsal", "avsal.data", "avsal.zoo", "avsal.metrics")
    names = [f"{room}.{name}" for room in rooms for name in import_module(room).__all__]
    wrong = ["avsal.from_pretrainde", "avsal.data.FolderDataModul", "avsal.zoo.publsh", "avsal.metrics.ns"]
    calls = ["avsal.create_model('stavis').spec.framse", "avsal.list_checkpoints(modle='stavis')"]
    (tmp_path / "user.py").write_text(
        "\n".join(
            [*(f"import {room}" for room in rooms), *(f"reveal_type({n})" for n in [*names, *wrong]), *calls]
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "--ignore-missing-imports", "user.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert len(revealed) == len(names) + len(wrong), done.stdout + done.stderr
    unknown = [n for n, kind in zip([*names, *wrong], revealed, strict=True) if kind == "Any"]
    assert unknown == wrong
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == len(wrong) + len(calls), errors


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "avsal", "--version"], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout == f"avsal {avsal.__version__}\n"
