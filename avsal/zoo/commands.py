"""`avsal zoo`, `avsal info`, `avsal convert` and `avsal publish`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from avsal.errors import AvsalError, ConfigError, WeightsError
from avsal.options import Settings

if TYPE_CHECKING:
    from avsal.checkpoints.registry import Checkpoint

DType = Literal["float32", "float16", "bfloat16"]


def show(
    *,
    model: str | None = None,
    data: str | None = None,
    task: str | None = None,
    recommended: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Print the registry of checkpoints as a table.

    Args:
        model: only this model's, such as stavis.
        data: only those trained on, or scored on, this data set, such as DIEM.
        task: saliency, gaze-anticipation, gaze-estimation or backbone.
        recommended: which checkpoint for my video? Purpose, terms and speed on this machine (measured, some seconds).
        as_json: print every field as JSON.

    Returns:
        0, or 1 if no checkpoint fits.
    """
    from avsal.checkpoints.registry import default_checkpoint
    from avsal.zoo.tables import checkpoint_table, list_checkpoints, recommended_table, status_legend

    chosen = list_checkpoints(model=model, data=data, task=task, recommended=recommended)
    if as_json:
        fields = {name: entry.model_dump(exclude_none=True) for name, entry in chosen.items()}
        print(json.dumps(fields, indent=2))
        return 0
    if not chosen:
        print("No checkpoint fits; `avsal zoo list` shows all.", file=sys.stderr)
        return 1
    console = _console(200)
    if recommended:
        from avsal.zoo.speed import frames_per_second

        defaults = [default_checkpoint("video"), default_checkpoint("picture")]
        first = sorted(chosen.values(), key=lambda entry: entry.name not in defaults)
        console.print(recommended_table(first, frames_per_second(chosen)))
        return 0
    console.print(checkpoint_table(chosen.values(), console.width))
    console.print(f"\n{len(chosen)} checkpoints. `avsal info NAME` describes one. Status:", highlight=False)
    console.print(status_legend(), highlight=False)
    return 0


def check(file: Path | None = None, /, *, online: bool = False) -> int:
    """Validate a registry file.

    Args:
        file: a registry file (default: avsal's own).
        online: also ask every address whether its file is there.

    Returns:
        0, or 1 if the file has faults, which are printed.

    Raises:
        ConfigError: the file cannot be read, or breaks the schema.
    """
    from avsal.checkpoints.registry import read_registry, registry_path

    path = file or registry_path()
    registry = read_registry(path)
    faults = 0
    for entry in registry.checkpoints.values():
        problems = check_entry(entry) + (_reach(entry) if online else [])
        faults += len(problems)
        for problem in problems:
            print(f"{entry.name}: {problem}")
    print(
        f"{path}: {len(registry.checkpoints)} entries, " + (f"{faults} fault(s)" if faults else "all valid")
    )
    return 1 if faults else 0


def check_entry(entry: Checkpoint) -> list[str]:
    """Return what is wrong with an entry, without using the network."""
    from avsal.checkpoints.fetch import packaged_path
    from avsal.checkpoints.registry import Origin, PackagedSource, describe
    from avsal.files import sha256_of
    from avsal.models import formats
    from avsal.nn.backbones import BACKBONES

    problems = []
    for source in entry.sources:
        if isinstance(source, Origin):
            format_name = source.format or entry.model
            known = list(BACKBONES) if entry.is_backbone else formats()
            if format_name not in known:
                problems.append(f"format {format_name!r} cannot be converted (known: {', '.join(known)})")
        if isinstance(source, PackagedSource):
            path = packaged_path(source)
            if not path.is_file():
                problems.append(f"{describe(source)} is missing")
            elif sha256_of(path) != source.sha256:
                problems.append(f"{describe(source)}: its sha256 is {sha256_of(path)}")
            elif source.size is not None and path.stat().st_size != source.size:
                problems.append(f"{describe(source)}: its size is {path.stat().st_size}")
    if not entry.is_backbone:
        problems += _check_model(entry)
    return problems


def _check_model(entry: Checkpoint) -> list[str]:
    from avsal.models import list_models, model_class

    if entry.model not in list_models():
        return [f"there is no model {entry.model!r} (known: {', '.join(list_models())})"]
    unknown = sorted(set(entry.arguments) - set(model_class(entry.model).arguments()))
    return [f"{entry.model} takes no argument {', '.join(unknown)}"] if unknown else []


def _reach(entry: Checkpoint) -> list[str]:
    """Ask every address of an entry whether its file is there; return those that do not answer so."""
    from avsal.checkpoints import fetch
    from avsal.checkpoints.registry import HubOrigin, HubSource, ReleaseOrigin, UrlOrigin, describe
    from avsal.files import redact

    problems = []
    for source in entry.sources:
        try:
            if isinstance(source, (HubSource, HubOrigin)):
                names = fetch.hub_files(source.repo, source.revision)
                if isinstance(source, HubOrigin):
                    fetch.choose(names, source.match, source.exclude, f"hub:{source.repo}")
                elif source.file not in names:
                    problems.append(f"{describe(source)}: the repository has no such file")
            elif isinstance(source, ReleaseOrigin):
                fetch.release_asset(source.repo, source.tag, source.match, source.exclude)
            elif isinstance(source, UrlOrigin):
                fetch.answers(source.url)
        except (AvsalError, OSError) as error:
            problems.append(redact(f"{describe(source)}: {error}"))
    return problems


def info(name: str, /, *, settings: Settings = None) -> None:
    """Print a checkpoint's or a model's size, input, licence and sources.

    Args:
        name: a checkpoint's name, a model's name, a file, or a Hub repository.
        settings: a constructor argument of a model, such as --set fusion=attention (repeat for more).

    Raises:
        WeightsError: the name is not known, or the file cannot be read.
        ConfigError: the model has no such argument.
    """
    from avsal.zoo.show import describe_name

    _console(140).print(describe_name(name, settings or {}), highlight=False)


def convert(
    format: str,
    file: Path,
    /,
    *,
    name: str | None = None,
    out: Path | None = None,
    settings: Settings = None,
    member: str | None = None,
    prefix: str | None = None,
    licence: str = "not-stated",
    dtype: DType | None = None,
) -> Path:
    """Turn the authors' weights into avsal's safetensors.

    Formats: the models stavis, mspi, csts, and the backbones s3d-kinetics, soundnet8, vggish, resnet3d50-kinetics,
    mvit-b and others (a wrong name lists all).

    Args:
        format: whose naming the file has, such as stavis.
        file: the authors' file: .pth, .pt, .tar, safetensors, or the archive.
        name: store it in the cache under this name of the registry. Either this or --out is required.
        out: write model.safetensors and config.json into this folder.
        settings: with --out: a constructor argument, such as --set audiovisual=true (repeat for more).
        member: with --out: the file inside an archive.
        prefix: with --out: keep the entries that begin so, without it.
        licence: with --out: licence of the weights.
        dtype: storage type.

    Returns:
        The folder.

    Raises:
        WeightsError: the file is missing, damaged, or not of the format.
        ConfigError: the options do not go together.
    """
    from avsal.checkpoints.origins import convert_file, convert_for_entry
    from avsal.zoo.load import convert_entries

    if (name is None) == (out is None):
        raise ConfigError("`avsal convert` takes one of --name NAME and --out FOLDER; give exactly one.")
    if not file.is_file():
        raise WeightsError(f"{file}: there is no such file.")
    if name is not None:
        for option, value in (("--set", settings), ("--member", member), ("--prefix", prefix)):
            if value:
                raise ConfigError(f"{option} goes with --out; {name}'s entry in the registry has its own.")
        folder = convert_for_entry(format, file, name, convert_entries, _dtype(dtype))
        print(f"{name} is in the cache now: {folder}\nUse it with avsal.from_pretrained({name!r}).")
        return folder
    assert out is not None
    folder = convert_file(
        format, file, out, settings or {}, convert_entries, member=member, prefix=prefix, licence=licence,
        dtype=_dtype(dtype),
    )  # fmt: skip
    print(f"Written: {folder}\nUse it with avsal.from_pretrained({str(folder)!r}).")
    return folder


def publish(
    source: str,
    /,
    *,
    repo: str,
    results: tuple[Path, ...] = (),
    licence: str | None = None,
    notice: str | None = None,
    data: tuple[str, ...] = (),
    hold_rights: Annotated[bool, Parameter(name="--i-hold-the-rights")] = False,
    private: bool = False,
    branch: str | None = None,
    create_pr: bool = False,
    dtype: DType | None = None,
    dry_run: Path | None = None,
) -> str:
    """Publish a checkpoint on the Hugging Face Hub.

    Args:
        source: a checkpoint's name, file or folder.
        repo: user/name on the Hugging Face Hub.
        results: a results file of avsal test or evaluate (repeat for more).
        licence: licence of the weights as an SPDX name, such as cc-by-4.0.
        notice: what the weights were trained on, under which terms.
        data: a training data set (repeat for more).
        hold_rights: you hold the rights to weights whose authors state no licence.
        private: create the repository as a private one.
        branch: upload to this branch.
        create_pr: open a pull request.
        dtype: storage type.
        dry_run: write the files into this folder and upload nothing.

    Returns:
        Where the checkpoint is: an address, or the folder.

    Raises:
        WeightsError: the source cannot be loaded, or the upload fails.
        ConfigError: the licence is missing or does not allow publishing.
    """
    from avsal.zoo.publishing import publish as publish_checkpoint

    where = publish_checkpoint(
        source, repo, results=results, licence=licence, notice=notice, data=data, hold_rights=hold_rights,
        dtype=_dtype(dtype), private=private or None, branch=branch, create_pr=create_pr, out=dry_run,
    )  # fmt: skip
    print(f"{'Written' if dry_run else 'Published'}: {where}")
    return where


def _console(width: int) -> Any:
    """Return the terminal; a pipe, which has no width of its own, gets a wide one."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=width)


def _dtype(name: DType | None) -> Any:
    import torch

    return None if name is None else getattr(torch, name)
