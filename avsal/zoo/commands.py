"""`avsal zoo`, `avsal info`, `avsal convert` and `avsal publish`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avsal.errors import ConfigError, WeightsError
from avsal.options import Settings, read_settings

# -- avsal zoo ---------------------------------------------------------------------------------------------


def add_zoo_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `avsal zoo`'s arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|check")
    listing = actions.add_parser("list", help="print the registry of checkpoints as a table")
    listing.add_argument("--model", help="only this model's, such as stavis")
    listing.add_argument("--data", help="only those trained on, or scored on, this data set, such as DIEM")
    listing.add_argument("--task", help="saliency, gaze-anticipation, gaze-estimation or backbone")
    listing.add_argument(
        "--recommended",
        action="store_true",
        help="which checkpoint for my video? Purpose, terms and speed on this machine (measured, some seconds)",
    )
    listing.add_argument("--json", action="store_true", help="print every field as JSON")
    check = actions.add_parser("check", help="validate a registry file; exit 1 if it has faults")
    check.add_argument("file", nargs="?", type=Path, help="a registry file (default: avsal's own)")
    check.add_argument(
        "--online", action="store_true", help="also ask every address whether its file is there"
    )


def zoo(args: argparse.Namespace) -> int:
    """Run `avsal zoo`."""
    return _list(args) if args.action == "list" else _check(args)


def _list(args: argparse.Namespace) -> int:
    from avsal.checkpoints.registry import default_checkpoint
    from avsal.zoo.tables import checkpoint_table, list_checkpoints, recommended_table, status_legend

    chosen = list_checkpoints(model=args.model, data=args.data, task=args.task, recommended=args.recommended)
    if args.json:
        print(
            json.dumps(
                {name: entry.model_dump(exclude_none=True) for name, entry in chosen.items()}, indent=2
            )
        )
        return 0
    if not chosen:
        print("No checkpoint fits; `avsal zoo list` shows all.", file=sys.stderr)
        return 1
    console = _console(200)
    if args.recommended:
        from avsal.zoo.speed import frames_per_second

        defaults = [default_checkpoint("video"), default_checkpoint("picture")]
        first = sorted(chosen.values(), key=lambda entry: entry.name not in defaults)
        console.print(recommended_table(first, frames_per_second(chosen)))
        return 0
    console.print(checkpoint_table(chosen.values(), console.width))
    console.print(
        f"\n{len(chosen)} checkpoints. `avsal info NAME` tells all about one. Status:", highlight=False
    )
    console.print(status_legend(), highlight=False)
    return 0


def _check(args: argparse.Namespace) -> int:
    from avsal.checkpoints.registry import read_registry, registry_path
    from avsal.zoo.check import check_entry, reach

    path = args.file or registry_path()
    registry = read_registry(path)
    faults = 0
    for entry in registry.checkpoints.values():
        problems = check_entry(entry)
        if args.online:
            problems += reach(entry)
        faults += len(problems)
        for problem in problems:
            print(f"{entry.name}: {problem}")
    print(
        f"{path}: {len(registry.checkpoints)} entries, " + (f"{faults} fault(s)" if faults else "all valid")
    )
    return 1 if faults else 0


# -- avsal info --------------------------------------------------------------------------------------------


def info(name: str, /, *, settings: Settings | None = None) -> None:
    """Print a checkpoint's or a model's size, input, licence and sources.

    Args:
        name: a checkpoint's name, a model's name, a file, or a Hub repository.
        settings: a constructor argument of a model, such as --set encoder=s3d (repeat for more).

    Raises:
        WeightsError: the name is not known, or the file cannot be read.
        ConfigError: the model has no such argument.
    """
    from avsal.zoo.show import describe_name

    _console(140).print(describe_name(name, dict(settings or {})), highlight=False)


# -- avsal convert -----------------------------------------------------------------------------------------


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `avsal convert`'s arguments."""
    parser.description = (
        "Turn the authors' weights into avsal's safetensors. Formats: the models stavis, mspi, csts, and the "
        "backbones s3d-kinetics, soundnet8, vggish, resnet3d50-kinetics, mvit-b and others (a wrong name lists all)."
    )
    parser.add_argument("format", help="whose naming the file has, such as stavis")
    parser.add_argument(
        "file", type=Path, help="the authors' file: .pth, .pt, .tar, safetensors, or the archive"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--name", help="make it known in the cache under this name of the registry")
    where.add_argument("--out", type=Path, help="write model.safetensors and config.json into this folder")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="with --out: a constructor argument, such as --set audiovisual=true (repeat for more)",
    )
    parser.add_argument("--member", help="with --out: the file inside an archive")
    parser.add_argument("--prefix", help="with --out: keep the entries that begin so, without it")
    parser.add_argument("--licence", default="not-stated", help="with --out: licence of the weights")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="storage type")


def convert(args: argparse.Namespace) -> int:
    """Run `avsal convert`."""
    from avsal.zoo.origins import convert_file, convert_for_entry

    if not args.file.is_file():
        raise WeightsError(f"{args.file}: there is no such file.")
    if args.name is not None:
        for option, value in (("--set", args.set), ("--member", args.member), ("--prefix", args.prefix)):
            if value:
                raise ConfigError(
                    f"{option} goes with --out; {args.name}'s entry in the registry has its own."
                )
        folder = convert_for_entry(args.format, args.file, args.name, dtype(args.dtype))
        print(f"{args.name} is in the cache now: {folder}\nUse it with avsal.from_pretrained({args.name!r}).")
        return 0
    folder = convert_file(
        args.format,
        args.file,
        args.out,
        read_settings(args.set),
        member=args.member,
        prefix=args.prefix,
        licence=args.licence,
        dtype=dtype(args.dtype),
    )
    print(f"Written: {folder}\nUse it with avsal.from_pretrained({str(folder)!r}).")
    return 0


# -- avsal publish -----------------------------------------------------------------------------------------


def add_publish_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `avsal publish`'s arguments."""
    parser.add_argument("source", metavar="NAME_OR_PATH", help="a checkpoint's name, file or folder")
    parser.add_argument("--repo", required=True, help="user/name on the Hugging Face Hub")
    parser.add_argument(
        "--results", type=Path, action="append", default=[], help="a results file of avsal test or evaluate"
    )
    parser.add_argument("--licence", help="licence of the weights as an SPDX name, such as cc-by-4.0")
    parser.add_argument("--notice", help="what the weights were trained on, under which terms")
    parser.add_argument("--data", action="append", default=[], help="a training data set (repeat for more)")
    parser.add_argument(
        "--i-hold-the-rights",
        dest="hold_rights",
        action="store_true",
        help="you hold the rights to weights whose authors state no licence",
    )
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--branch", help="upload to this branch")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="storage type")
    parser.add_argument(
        "--dry-run", type=Path, metavar="DIR", help="write the files into DIR and upload nothing"
    )


def publish(args: argparse.Namespace) -> int:
    """Run `avsal publish`."""
    from avsal.zoo.publishing import publish as publish_checkpoint

    where = publish_checkpoint(
        args.source,
        args.repo,
        results=args.results,
        licence=args.licence,
        notice=args.notice,
        data=args.data,
        hold_rights=args.hold_rights,
        dtype=dtype(args.dtype),
        private=args.private or None,
        branch=args.branch,
        create_pr=args.create_pr,
        out=args.dry_run,
    )
    print(f"{'Written' if args.dry_run else 'Published'}: {where}")
    return 0


def _console(width: int) -> Any:
    """Return the terminal; a pipe, which has no width of its own, gets a wide one."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=width)


# -- values ------------------------------------------------------------------------------------------------


def dtype(name: str | None) -> Any:
    """Return a storage type by its name."""
    import torch

    return None if name is None else getattr(torch, name)


COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "zoo": (add_zoo_arguments, zoo),
    "convert": (add_convert_arguments, convert),
    "publish": (add_publish_arguments, publish),
}
