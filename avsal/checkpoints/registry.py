"""The registry: `checkpoints.yaml` as typed entries.

One schema for everything that has weights: checkpoints of the papers' models, backbones, and the small ones that
ship with the package. `register` adds names from another file; a registry can name files and numbers, never code.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from avsal.errors import ConfigError, WeightsError, nearest, plain

Task = Literal["saliency", "gaze-anticipation", "gaze-estimation", "backbone"]
Status = Literal["shipped", "published", "released", "unverified", "manual", "gone"]

STATUS = {
    "shipped": "inside the package",
    "published": "on the Hub by avsal, with a checksum",
    "released": "the authors' release, fetched and converted by us at least once",
    "unverified": "the authors' release, as they document it; not fetched by us yet",
    "manual": "must be downloaded by hand (sign-in, licence form or a drive without a stable address)",
    "gone": "no known copy",
}

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_SHA256 = Field(pattern=r"^[0-9a-f]{64}$")


class _Strict(BaseModel):
    """Unknown keys are errors: a misspelt key would otherwise be a silent gap."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _inside(path: str) -> str:
    """Return a relative path that stays inside its folder, else raise."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or re.match(r"[A-Za-z]:", path):
        raise ValueError(f"{path!r} is not a relative path inside its folder")
    return path


class PackagedSource(_Strict):
    """A file inside the installed package."""

    kind: Literal["packaged"] = "packaged"
    file: str = Field(description="path below the package folder avsal/")
    sha256: Annotated[str, _SHA256]
    size: int | None = Field(default=None, gt=0)

    _check = field_validator("file")(_inside)


class HubSource(_Strict):
    """A safetensors file that avsal published on the Hub, pinned by commit and checksum."""

    kind: Literal["hub"] = "hub"
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$", description="a commit, so that it never changes")
    file: str = "model.safetensors"
    sha256: Annotated[str, _SHA256]
    size: int | None = Field(default=None, gt=0)

    _check = field_validator("file")(_inside)


class Origin(_Strict):
    """What every release of the authors has in common: it is converted, and what is known is checked."""

    format: str | None = Field(
        default=None, description="name for zoo.convert or zoo.convert_backbone; the entry's model by default"
    )
    member: str | None = Field(default=None, description="the file inside the archive (.tar, .tar.gz, .zip)")
    prefix: str | None = Field(default=None, description="keep the entries that begin so, without it")
    sha256: Annotated[str, _SHA256] | None = None
    sha256_prefix: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{6,64}$", description="beginning of the sha256, from the file's name"
    )
    size: int | None = Field(default=None, gt=0)
    licence: str | None = Field(default=None, description="where it differs from the entry's")
    page: str | None = Field(default=None, description="where a person finds the file")

    @field_validator("member")
    @classmethod
    def _member_inside(cls, value: str | None) -> str | None:
        return None if value is None else _inside(value)


class UrlOrigin(Origin):
    """A file at a fixed address."""

    kind: Literal["url"] = "url"
    url: str = Field(pattern=r"^https?://[^\s/]+/\S*$")


class HubOrigin(Origin):
    """A file in the authors' own Hub repository; `match` is resolved there when it is fetched."""

    kind: Literal["hub-origin"] = "hub-origin"
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = None
    match: list[str] = Field(min_length=1, description="shell patterns, all must fit the path (any case)")
    exclude: list[str] = Field(default_factory=list, description="shell patterns, none may fit")


class ReleaseOrigin(Origin):
    """An asset of a GitHub release; `match` is resolved there when it is fetched."""

    kind: Literal["release"] = "release"
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    tag: str = Field(pattern=r"^[\w.-]+$")
    match: list[str] = Field(min_length=1, description="shell patterns, all must fit the name (any case)")
    exclude: list[str] = Field(default_factory=list, description="shell patterns, none may fit")


class InstalledOrigin(Origin):
    """A file inside another Python package, used where that package is installed."""

    kind: Literal["installed"] = "installed"
    package: str = Field(pattern=r"^[\w.-]+$")
    version: str = Field(pattern=r"^[\w.+-]+$")
    file: str = Field(description="path below the folder that packages are installed in")
    sha256: Annotated[str, _SHA256]

    _check = field_validator("file")(_inside)


class PageOrigin(Origin):
    """A page where a person can get the file; nothing is fetched from it."""

    kind: Literal["page"] = "page"
    url: str = Field(pattern=r"^https?://\S+$")
    how: str = Field(min_length=10, description="what to click and which file to take")


Source = Annotated[
    PackagedSource | HubSource | InstalledOrigin | UrlOrigin | HubOrigin | ReleaseOrigin | PageOrigin,
    Field(discriminator="kind"),
]


class Licence(_Strict):
    """Terms of the code and of the weights; `not-stated` means that the authors say nothing."""

    code: str
    weights: str
    notice: str = Field(min_length=10, description="what the weights were trained on, under which terms")


class Citation(_Strict):
    """The paper to cite."""

    authors: str
    title: str
    venue: str
    year: int
    url: str = Field(pattern=r"^https?://\S+$")


class Scores(_Strict):
    """Numbers of one data set from one place."""

    data: str
    source: str = Field(description="paper and table, or the command that measured it")
    metrics: dict[str, float] = Field(min_length=1)
    note: str | None = None


class Checkpoint(_Strict):
    """One entry of the registry."""

    name: str
    model: str = Field(description="a model's name for create_model; for backbones, their format's name")
    arguments: dict[str, Any] = Field(default_factory=dict, description="constructor arguments")
    task: Task
    data: list[str] = Field(min_length=1, description="what it was trained on, last stage first")
    pretraining: list[str] = Field(default_factory=list)
    fold: int | None = Field(default=None, ge=1)
    input: str = Field(description="the expected input, in prose")
    licence: Licence
    citation: str
    status: Status
    sources: list[Source] = Field(min_length=1)
    published: list[Scores] = Field(default_factory=list, description="from the paper")
    measured: list[Scores] = Field(default_factory=list, description="by avsal")
    note: str | None = None
    recommended_for: str | None = Field(default=None, description="the job for which a user should take it")
    hears: bool | None = Field(default=None, description="whether the right sound was measured to help")

    @model_validator(mode="after")
    def _consistent(self) -> Checkpoint:
        if self.recommended_for is not None and self.hears is None:
            raise ValueError("a recommended checkpoint states `hears: true` or `hears: false`")
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r}: names are lower-case letters, digits, '.', '_' and '-'")
        rank = [{"packaged": 0, "hub": 1}.get(source.kind, 2) for source in self.sources]
        if rank != sorted(rank):
            raise ValueError("sources are tried in the order packaged, hub, origin: list them so")
        kinds = {source.kind for source in self.sources}
        if self.status == "shipped" and "packaged" not in kinds:
            raise ValueError("status 'shipped' needs a packaged source")
        if self.status == "published" and "hub" not in kinds:
            raise ValueError("status 'published' needs a hub source")
        if self.status in ("released", "unverified") and not kinds & {
            "installed",
            "url",
            "hub-origin",
            "release",
        }:
            raise ValueError(f"status {self.status!r} needs a source that can be fetched")
        return self

    @property
    def size(self) -> int | None:
        """Bytes of the first source whose size is known."""
        return next((source.size for source in self.sources if getattr(source, "size", None)), None)

    @property
    def is_backbone(self) -> bool:
        """Whether the entry is a backbone, which `convert_backbone` builds."""
        return self.task == "backbone"


class Registry(_Strict):
    """A whole file."""

    format_version: Literal[1]
    citations: dict[str, Citation]
    checkpoints: dict[str, Checkpoint]
    defaults: dict[Literal["video", "picture"], str] = Field(
        default_factory=dict, description="the checkpoints of `avsal predict` without --checkpoint"
    )

    @model_validator(mode="before")
    @classmethod
    def _names(cls, data: Any) -> Any:
        # A name stands once in the file, as the entry's key.
        if isinstance(data, dict) and isinstance(data.get("checkpoints"), dict):
            entries = {
                name: {"name": name, **entry} if isinstance(entry, dict) else entry
                for name, entry in data["checkpoints"].items()
            }
            data = {**data, "checkpoints": entries}
        return data

    @model_validator(mode="after")
    def _citations_exist(self) -> Registry:
        for name in self.defaults.values():
            if name not in self.checkpoints:
                raise ValueError(f"defaults: {name!r} is not among the checkpoints of this file")
        for name, entry in self.checkpoints.items():
            if entry.citation not in self.citations:
                raise ValueError(
                    f"{name}: citation {entry.citation!r} is not among the citations of this file"
                )
            if entry.name != name:
                raise ValueError(f"{name}: the entry calls itself {entry.name!r}; leave `name` out")
        return self


class _UniqueKeys(yaml.SafeLoader):
    """Plain values only, and a key that stands twice is an error instead of a silent loss."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_registry(path: Path | str) -> Registry:
    """Read and validate a registry file.

    Raises:
        ConfigError: the file is missing, is not YAML, or breaks the schema; every fault is named with its place.
    """
    path = Path(path)
    try:
        # The loader is a SafeLoader: it builds plain values only.
        data = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the registry cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid registry YAML, {error}") from error
    try:
        return Registry.model_validate(data)
    except ValidationError as error:
        faults = [
            f"  {'.'.join(str(part) for part in fault['loc']) or 'file'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        ]
        more = f"\n  … and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise ConfigError(
            f"{path}: {len(faults)} fault(s) in the registry:\n" + "\n".join(faults[:20]) + more
        ) from error


def registry_path() -> Path:
    """Return where `checkpoints.yaml` is: inside the installed package, or at the top of a checkout."""
    inside = Path(str(files("avsal"))) / "checkpoints.yaml"
    beside = inside.parent.parent / "checkpoints.yaml"
    for path in (inside, beside):
        if path.is_file():
            return path
    raise ConfigError(f"checkpoints.yaml is missing: looked at {inside} and {beside}. Reinstall avsal.")


@cache
def _shipped() -> Registry:
    return read_registry(registry_path())


_registered: dict[str, tuple[Checkpoint, Citation]] = {}


def register(path: Path | str) -> list[str]:
    """Add the names of another registry file for this process.

    A file of a third party can add names; it cannot replace ours, name files of this machine, or run code (its
    checkpoints build avsal's own models only, from safetensors or `weights_only` loading).

    Args:
        path: a YAML file of the schema of `checkpoints.yaml`.

    Returns:
        The names that were added.

    Raises:
        ConfigError: the file breaks the schema, takes a name that exists with other content, or names a packaged
            file.
    """
    added = read_registry(path)
    for name, entry in added.checkpoints.items():
        known = entries().get(name)
        if known is not None and known != entry:
            raise ConfigError(
                f"{path}: the name {name!r} is taken; choose another, such as 'mygroup-{name}'."
            )
        if any(source.kind == "packaged" for source in entry.sources):
            raise ConfigError(
                f"{path}: {name}: packaged sources belong to avsal's own registry; use hub or url."
            )
    for name, entry in added.checkpoints.items():
        _registered[name] = (entry, added.citations[entry.citation])
    return list(added.checkpoints)


def entries() -> dict[str, Checkpoint]:
    """Return all entries by name: the shipped ones, then the registered ones."""
    return {**_shipped().checkpoints, **{name: entry for name, (entry, _) in _registered.items()}}


def default_checkpoint(kind: Literal["video", "picture"] = "video") -> str:
    """Return the name of the checkpoint that `avsal predict` uses where none is given."""
    return _shipped().defaults[kind]


def citation(entry: Checkpoint) -> Citation:
    """Return the paper of an entry."""
    if entry.name in _registered:
        return _registered[entry.name][1]
    return _shipped().citations[entry.citation]


def find(name: str) -> Checkpoint:
    """Return the entry of that name.

    Raises:
        WeightsError: there is none; the nearest names are given.
    """
    known = entries()
    if name in known:
        return known[name]
    near = _similar(name)
    raise WeightsError(
        f"No checkpoint is called {name!r}. "
        + (f"Similar names: {', '.join(near)}. " if near else "")
        + "`avsal zoo list` shows all names. A file is given by its path, a Hub repository as user/name."
    )


def _similar(name: str) -> list[str]:
    """Return up to four names for a wrong one: checkpoints of that model, names that hold it, then the nearest."""
    word, known = plain(name), entries()
    models = sorted(
        (n for n, e in known.items() if not e.is_backbone), key=lambda n: known[n].status != "shipped"
    )
    wanted = {word, *map(plain, nearest(name, {known[n].model for n in models}))}
    of_model = [n for n in models if plain(known[n].model) in wanted]
    holding = [n for n in (*models, *known) if word and word in plain(n)]
    return list(dict.fromkeys([*of_model, *holding, *nearest(name, models, 4), *nearest(name, known, 4)]))[:4]


def describe(source: Source) -> str:
    """Return a source in a few words."""
    if isinstance(source, PackagedSource):
        return f"package: avsal/{source.file}"
    if isinstance(source, HubSource):
        return f"hub: {source.repo}@{source.revision[:8]}/{source.file}"
    if isinstance(source, HubOrigin):
        return f"authors' Hub repository: {source.repo} ({' '.join(source.match)})"
    if isinstance(source, ReleaseOrigin):
        return f"authors' release: github.com/{source.repo} {source.tag} ({' '.join(source.match)})"
    if isinstance(source, InstalledOrigin):
        return f"Python package: {source.package}=={source.version}, {source.file}"
    member = f" → {source.member}" if source.member else ""
    if isinstance(source, UrlOrigin):
        return f"authors' file: {source.url}{member}"
    return f"page: {source.url}{member}"
