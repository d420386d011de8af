"""Kinds of command-line options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_origin

from cyclopts import Parameter

from avsal.errors import ConfigError


def assignments(*options: str, value: Callable[[str], Any] = str, metavar: str = "NAME=VALUE") -> Parameter:
    """Return the annotation of a parameter that the command line takes as a repeatable option `NAME=VALUE`.

    The parameter is a mapping, or a tuple of (name, value).

    Args:
        *options: names of the option, such as "--set".
        value: reads a value; it raises ValueError where it cannot.
        metavar: how the help shows a value.
    """

    def read(kind: Any, tokens: Any) -> dict[str, Any] | tuple[tuple[str, Any], ...]:
        found: dict[str, Any] = {}
        for token in tokens:
            name, sign, text = token.value.partition("=")
            if not sign or not name:
                raise ConfigError(f"{options[0]} {token.value}: expected {metavar}.")
            try:
                found[name] = value(text)
            except ValueError:
                raise ConfigError(f"{options[0]} {token.value}: the value cannot be read.") from None
        return tuple(found.items()) if get_origin(kind) is tuple else found

    # One value for each time that the option is given (-1 would take all that follow if it were positional).
    return Parameter(name=options, converter=read, n_tokens=-1, accepts_keys=False, metavar=metavar)


def _yaml(text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(text) from error
    return tuple(value) if isinstance(value, list) else value


#: Constructor arguments of a model, `--set KEY=VALUE` on the command line, where values are YAML.
Settings = Annotated[Mapping[str, Any] | None, assignments("--set", value=_yaml, metavar="KEY=VALUE")]
