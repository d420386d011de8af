"""The commands `avsal` and `lightning`, which are one entry point.

Every command's own module is imported only when that command runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from avsal.errors import AvsalError, nearest

#: command -> (one line of help, module with add_arguments and main)
COMMANDS = {
    "predict": ("saliency maps and overlay videos for video files", "avsal.inference.files"),
    "evaluate": ("score maps that any program wrote", "avsal.evaluation.maps"),
    "data": ("list, fetch, check, import, pack and generate data sets", "avsal.data.commands"),
    "zoo": ("list and check the registry of checkpoints", "avsal.zoo.commands:zoo"),
    "info": ("a checkpoint's or a model's size, input, licence and sources", "avsal.zoo.commands:info"),
    "convert": ("turn the authors' weights into avsal's", "avsal.zoo.commands:convert"),
    "publish": ("publish a checkpoint on the Hugging Face Hub", "avsal.zoo.commands:publish"),
    "leaderboard": ("tables of published and measured results", "avsal.report.commands:leaderboard"),
    "reproduce": ("run a paper's table on your data", "avsal.report.commands:reproduce"),
}
LIGHTNING = {
    "fit": "train a model (-c examples/stavis.yaml -c examples/data/synthetic.yaml)",
    "validate": "compute the validation metrics of a checkpoint",
    "test": "compute the test metrics of a checkpoint and write results/*.json",
}

#: What is wrong with a place rather than with avsal: said in one line, not in a traceback.
_WHERE_TO_WRITE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; None takes them from the command line.

    Returns:
        The exit status: 0 all well, 1 some inputs failed, 2 a usage or input error, 130 interrupted (SIGINT), 143
        terminated (SIGTERM) in mid-training; elsewhere SIGTERM ends the process at once.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except AvsalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        # Lightning turns signals into exits with the status 1, or 0 for SIGTERM, which would pass for success.
        if isinstance(stop.__context__, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
            return 130
        if type(stop).__name__ == "SIGTERMException":
            print("terminated", file=sys.stderr)
            return 143
        raise
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; that is no error of ours, nor of the flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        if error.errno not in _WHERE_TO_WRITE:
            raise
        print(f"error: {place}{error.strerror}", file=sys.stderr)
        return 2


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] in ("-V", "--version"):
        from avsal import __version__

        print(f"avsal {__version__}")
        return 0
    command = words[0]
    configured = any(word in ("-c", "--config") or word.startswith("--config=") for word in words)
    if command in LIGHTNING or (command == "predict" and configured):
        from avsal.training import main as lightning_main

        sys.argv = [sys.argv[0], *words]
        return lightning_main()
    if command not in COMMANDS:
        near = nearest(command, [*COMMANDS, *LIGHTNING])
        hint = f" Did you mean `{near[0]}`?" if near else ""
        print(f"error: there is no command {command!r}.{hint}\n\n{_help()}", file=sys.stderr)
        return 2
    line, where = COMMANDS[command]
    module_name, _, part = where.partition(":")
    module = import_module(module_name)
    add_arguments, run = module.COMMANDS[part] if part else (module.add_arguments, module.main)
    parser = argparse.ArgumentParser(prog=f"avsal {command}", description=line[0].upper() + line[1:] + ".")
    add_arguments(parser)
    # Options may stand between the inputs; argparse does that only where there are no sub-commands.
    parse = parser.parse_args if parser._subparsers else parser.parse_intermixed_args
    status: int = run(parse(words[1:]))
    return status


def _help() -> str:
    width = max(map(len, [*COMMANDS, *LIGHTNING]))
    lines = ["usage: avsal COMMAND …   (`avsal COMMAND --help` for its options)", "", "commands:"]
    lines += [f"  {name:{width}}  {text}" for name, (text, _) in COMMANDS.items()]
    lines += ["", "training, by PyTorch Lightning (also as `lightning COMMAND …`):"]
    lines += [f"  {name:{width}}  {text}" for name, text in LIGHTNING.items()]
    lines += [f"  {'predict':{width}}  with -c/--config: predict on a configured data set"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
