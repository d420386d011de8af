"""The rooms and who may know whom (CONTRIBUTING.md, "Architecture"), read from the sources' import statements."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "avsal"

#: Every room below the commands, and the rooms of avsal that it may import; "" is the package, which has the version.
ALLOWED = {
    "errors": set(),
    "options": {"errors"},
    "files": {"errors"},
    "downloads": {"errors", "files"},
    "types": {"errors"},
    "io": {"errors", "files"},
    "npy": {"errors"},
    "data": {"errors", "options", "files", "downloads", "types", "io", "npy"},
    "losses": {"errors", "types"},
    "nn": {"errors", "types"},
    "metrics": {"errors", "types"},
    "checkpoints": {"", "errors", "files", "downloads", "types", "io", "npy", "nn"},
    "models": {"", "errors", "types", "nn", "losses", "checkpoints"},
    "inference.video": {"errors", "types", "io", "data"},
}
#: What single modules may do beyond that, inside a function or for type annotations only.
LAZY = {
    "models.base": {
        "metrics",
        "inference.video",
        "zoo",
    },  # module.predict_video, from_pretrained, the metrics
    "models.csts": {"metrics"},  # gaze has metrics of its own
    "inference.video": {"models.base"},  # the plain WindowRunner
}
#: What touches files: networks and metrics get tensors and return tensors.
FILES = {
    "av",
    "decord",
    "h5py",
    "json",
    "os",
    "PIL",
    "pathlib",
    "pickle",
    "safetensors",
    "shutil",
    "tempfile",
    "yaml",
}
FILES_ALLOWED = {
    "models.base": {"pathlib"},  # paths are handed on to inference and zoo
    "models": {"pathlib"},  # lists its own folder to find the papers
}
CODECS = {"av", "decord", "cv2", "imageio", "moviepy", "soundfile"}
CODECS_ALLOWED = {"data.synthetic": {"av"}}  # renders SynthAV's clips, bit by bit the same from one seed


@dataclass(frozen=True)
class Import:
    module: str  #: importing module without "avsal.", "" for the package itself
    name: str  #: what is imported, in full
    lazy: bool  #: inside a function, or for type annotations only
    line: int

    @property
    def inner(self) -> str | None:
        """The imported module of avsal without "avsal.", None for another library."""
        return self.name.partition(".")[2] if self.name.split(".")[0] == "avsal" else None

    def __str__(self) -> str:
        return f"avsal.{self.module} line {self.line} imports {self.name}"


def room(module: str) -> str:
    """The room of a module; a room's `commands.py` belongs to the command line."""
    return "cli" if module.endswith(".commands") else module if module in ALLOWED else module.split(".")[0]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


@cache
def sources() -> dict[str, ast.Module]:
    return {name_of(path): ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str, tree: ast.Module) -> Iterator[Import]:
    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, lazy, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"avsal.{module} line {node.lineno}: imports are absolute here"
            # `from avsal import io` names a room, `from avsal.io import video` a module.
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                known = inside.partition(".")[2] in sources() and inside.startswith("avsal.")
                yield Import(module, inside if known else str(node.module), lazy, node.lineno)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inner = lazy or typing_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inner)

    yield from visit(tree, False)


@cache
def imports() -> list[Import]:
    return [found for module, tree in sources().items() for found in imports_of(module, tree)]


def test_the_reader_of_imports_sees_them_all() -> None:
    code = (
        "import av.codec\nfrom avsal import io\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from avsal.zoo import load\ndef f():\n    if x:\n        import avsal.models.base\n"
    )
    seen = {(found.name, found.lazy) for found in imports_of("nn.new", ast.parse(code))}
    assert seen == {
        ("av.codec", False), ("avsal.io", False), ("typing", False), ("avsal.zoo.load", True),
        ("avsal.models.base", True),
    }  # fmt: skip
    assert {"models.base", "io.video", "", "io"} <= sources().keys()
    assert any(found.module == "models.stavis" and found.inner == "nn.soundnet" for found in imports())


def test_every_room_imports_only_what_it_may_know() -> None:
    wrong = []
    for found in imports():
        source = room(found.module)
        if source not in ALLOWED or found.inner is None:
            continue
        target = room(found.inner)
        if target == source or target in ALLOWED[source]:
            continue
        exceptions = LAZY.get(found.module, set())
        if found.lazy and (target in exceptions or found.inner in exceptions):
            continue
        wrong.append(str(found))
    assert wrong == []


def test_the_exceptions_are_still_needed() -> None:
    used = {(found.module, room(found.inner)) for found in imports() if found.inner}
    assert [(m, t) for m, targets in LAZY.items() for t in targets if (m, room(t)) not in used] == []
    libraries = {(found.module, found.name.split(".")[0]) for found in imports()}
    exceptions = [*FILES_ALLOWED.items(), *CODECS_ALLOWED.items()]
    assert [(m, t) for m, targets in exceptions for t in targets if (m, t) not in libraries] == []


def test_nothing_imports_the_command_line() -> None:
    free = ("cli", "__main__")
    assert [
        str(f) for f in imports() if f.inner and room(f.inner) == "cli" and room(f.module) not in free
    ] == []


def test_rooms_do_not_go_round_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for found in imports():
        if found.inner and not found.lazy and room(found.inner) != room(found.module):
            graph.setdefault(room(found.module), set()).add(room(found.inner))
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert order.index("errors") < order.index("nn") < order.index("models")


#: The imports that go up, inside functions: a module's methods that predict a video, and that load and publish weights.
UPWARD = {("models.base", "inference.video"), ("models.base", "zoo")}
#: One reader in two files.
PAIRS = {("io.video", "io._random_access")}


def test_modules_do_not_go_round_in_circles_lazily_either() -> None:
    graph: dict[str, set[str]] = {}
    for found in imports():
        target = found.inner
        while target and target not in sources():
            target = target.rpartition(".")[0]
        if target and target != found.module and (found.module, target) not in UPWARD | PAIRS:
            graph.setdefault(found.module, set()).add(target)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
    assert {(f.module, f.inner) for f in imports() if f.lazy} >= UPWARD | PAIRS


def test_networks_and_metrics_touch_no_files() -> None:
    wrong = []
    for found in imports():
        library = found.name.split(".")[0]
        inside = room(found.module) in ("nn", "models", "metrics", "losses", "types")
        if inside and library in FILES - FILES_ALLOWED.get(found.module, set()):
            wrong.append(str(found))
    calls = {"open", "torch.load", "torch.save", "np.load", "np.save"}
    for module, tree in sources().items():
        if room(module) in ("nn", "models", "metrics", "losses", "types"):
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in calls:
                    wrong.append(f"avsal.{module} line {node.lineno} calls {ast.unparse(node.func)}")
    assert wrong == []


def test_only_io_knows_codecs() -> None:
    wrong = [
        str(found)
        for found in imports()
        if found.name.split(".")[0] in CODECS - CODECS_ALLOWED.get(found.module, set())
        and room(found.module) != "io"
    ]
    assert wrong == []


def test_the_data_side_and_the_metrics_hold_no_network() -> None:
    wrong = []
    for module, tree in sources().items():
        if room(module) not in ("io", "data", "metrics"):
            continue
        wrong += [
            f"avsal.{module}: class {node.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            and any(ast.unparse(b).endswith("nn.Module") for b in node.bases)
        ]
    wrong += [
        str(found)
        for found in imports()
        if room(found.module) in ("io", "data", "metrics")
        and found.name.split(".")[0] in ("timm", "torchvision", "pytorchvideo")
    ]
    assert wrong == []


def test_the_commands_load_their_rooms_when_they_run() -> None:
    eager = [str(found) for found in imports() if found.module in ("", "cli") and not found.lazy]
    names = {line.rsplit(" ", 1)[-1].split(".")[0] for line in eager}
    assert names <= {
        "__future__",
        "argparse",
        "avsal",
        "collections",
        "errno",
        "importlib",
        "io",
        "lazy_loader",
        "os",
        "sys",
        "typing",
    }, eager
    assert [line for line in eager if "imports avsal" in line and "avsal.errors" not in line] == []


@pytest.mark.parametrize("where", ["avsal", "benchmarks", "docs", "examples", "tests", "."])
def test_no_file_names_a_folder_of_somebodys_machine(where: str) -> None:
    machine = re.compile(
        r"(?<![\w.:/~-])/(?:work|home|root|tmp|mnt|media|scratch|Users|Volumes)/\w|\b[A-Z]:\\\w"
    )
    kinds = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".cff", ".html", ".csv", ".json", ""}
    folder = ROOT / where
    found = []
    for path in sorted(folder.glob("*") if where == "." else folder.rglob("*")):
        hidden = any(part.startswith((".", "__")) for part in path.relative_to(folder).parts[:-1])
        if (
            not path.is_file()
            or hidden
            or path.suffix not in kinds
            or path.name in (".git", "test_architecture.py")
        ):
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if machine.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []
