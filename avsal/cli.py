"""The commands `avsal` and `lightning`, which are one entry point.

A command is a typed function: its positional parameters are the inputs, its keyword arguments are the options, and
its Google docstring is the help. It can be called from Python as well. It returns the exit status, None for 0, or
an object, whose attribute `exit_status` counts where it has one. A function's module is imported only when its
command runs, so that `--help` is quick.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from avsal.errors import AvsalError, ConfigError, nearest

if TYPE_CHECKING:
    from cyclopts import App

#: command -> (one line of help, the function as "module:name"), or for a group of commands their own dict.
COMMANDS: dict[str, tuple[str, str | dict[str, tuple[str, str]]]] = {
    "predict": ("saliency maps and overlay videos for video files", "avsal.inference.files:predict_files"),
    "evaluate": (
        "score maps that any program wrote, or a checkpoint on data",
        "avsal.evaluation.commands:evaluate",
    ),
    "reframe": (
        "crop films to another shape around what is looked at",
        "avsal.applications.commands:reframe",
    ),
    "encode": ("encode films with the bits where people look", "avsal.applications.commands:encode"),
    "report": (
        "a page about a film: when and where attention is concentrated",
        "avsal.applications.commands:report",
    ),
    "data": (
        "list, fetch, check, import, pack and generate data sets",
        {
            "list": ("all data sets on one page", "avsal.data.commands:show"),
            "info": ("content, licence, size, and how to get it", "avsal.data.commands:info"),
            "fetch": (
                "download where the terms allow it, else print how to get it",
                "avsal.data.commands:fetch",
            ),
            "check": ("verify a folder completely; nothing is modified", "avsal.data.commands:check"),
            "import": (
                "write eye trackers' exports as avsal's plain table",
                "avsal.data.commands:import_gaze",
            ),
            "pack": ("convert a data set into one file for a model's input", "avsal.data.commands:pack"),
            "synth": ("generate SynthAV", "avsal.data.commands:synth"),
        },
    ),
    "zoo": (
        "list and check the registry of checkpoints",
        {
            "list": ("print the registry of checkpoints as a table", "avsal.zoo.commands:show"),
            "check": ("validate a registry file", "avsal.zoo.commands:check"),
        },
    ),
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

#: Errors of a place on the disk, not of avsal: reported in one line, without a traceback.
_WHERE_TO_WRITE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; None takes them from the command line.

    Returns:
        The exit status: 0 success, 1 some inputs failed, 2 a usage or input error, 130 interrupted (SIGINT), 143
        terminated (SIGTERM) while training; elsewhere SIGTERM ends the process at once.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        status = _run(arguments)
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
        if isinstance(stop.__context__, BrokenPipeError):  # rich turns it into an exit with the status 1
            return 0
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


def _run(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    configured = any(word in ("-c", "--config") or word.startswith("--config=") for word in arguments)
    if command in LIGHTNING or (command == "predict" and configured):
        from avsal.training import main as lightning_main

        sys.argv = [sys.argv[0], *arguments]
        return lightning_main()
    from cyclopts import CycloptsError
    from rich.console import Console

    app = program(arguments)
    if not command.startswith("-") and command not in COMMANDS:
        near = nearest(command, [*COMMANDS, *LIGHTNING])
        hint = f" Did you mean `{near[0]}`?" if near else ""
        print(f"error: there is no command {command!r}.{hint}\n", file=sys.stderr)
        app.help_print([], console=Console(stderr=True))
        return 2
    if len(arguments) == 1 and isinstance(COMMANDS.get(command, ("", ""))[1], dict):
        app.help_print(arguments, console=Console(stderr=True))
        return 2
    try:
        result = app(arguments or ["--help"])
    except CycloptsError as error:
        where = " ".join(["avsal", *(error.command_chain or ())])
        raise ConfigError(f"{str(error).strip()} See `{where} --help`.") from None
    status: int | None = getattr(result, "exit_status", result if isinstance(result, int) else 0)
    return status or 0


def program(arguments: Sequence[str] = ()) -> App:
    """Return the program, built from `COMMANDS`.

    Args:
        arguments: of the command line; a command that they name gets its help from its docstring, the others from
            `COMMANDS`, so that their modules are not imported.
    """
    from cyclopts import App, Group, Parameter

    from avsal import __version__

    app = App(
        name="avsal",
        help="Audio-visual saliency and gaze anticipation in video. `avsal COMMAND --help` lists a command's options.",
        version=f"avsal {__version__}",
        version_flags=["--version", "-V"],
        default_parameter=Parameter(
            negative=(),
            allow_repeating=True,
            show_default=lambda value: None if value in (False, ()) else value,
        ),
        config=_refuse_fractions,
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    _add(app, COMMANDS, arguments)
    training = Group("Training, by PyTorch Lightning (also as `lightning COMMAND`)", sort_key=1)
    for name, text in [*LIGHTNING.items(), ("predict -c FILE", "predict on a configured data set")]:
        app.command(App(name=name, help=text, help_flags=[], version_flags=[], group=training))
    return app


def _add(app: App, commands: Mapping[str, tuple[str, Any]], arguments: Sequence[str]) -> None:
    for order, (name, (text, where)) in enumerate(commands.items()):
        if isinstance(where, str):
            named = [name] == list(arguments[:1])
            app.command(where, name=name, help=None if named else text, sort_key=order)
        else:
            app.command(group := type(app)(name=name, help=text[0].upper() + text[1:] + ".", sort_key=order))
            _add(group, where, arguments[1:])


def _refuse_fractions(app: App, commands: Any, parameters: Any) -> None:
    """Refuse 1.5 for a whole number, which cyclopts would round."""
    from cyclopts import CoercionError

    for parameter in parameters:
        if parameter.hint in (int, int | None):
            for token in parameter.tokens:
                if "." in token.value:
                    raise CoercionError(argument=parameter, token=token, target_type=int)


if __name__ == "__main__":
    sys.exit(main())
