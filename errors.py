"""The one exception that means "the user can fix this": main.py prints it as one line and exits with 1."""

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar('T')


class UserError(Exception):
    """A mistake outside the code (a setting, a missing file, a full disk), with what to do about it."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Returns the error for a name that does not exist: the nearest valid one first, then all of them."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ''
    return UserError(f"Unknown {kind} '{name}'.{hint} Valid: {', '.join(valid)}.")


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its type's name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(':')


def build(cls: Callable[..., T], kind: str, values: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> T:
    """Returns `cls(**values, **given)`, a dataclass; values come from the user, given from the program.

    Raises UserError for a value that is no field of cls, a field that lacks one, or a tuple of the wrong kind.
    """
    given = given or {}
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in {*given, 'parent'}}
    for key in values:
        if key not in fields:
            raise unknown(kind, key, fields)
        _check_elements(f"{kind} '{key}'", values[key], fields[key].type)
    for key, field in fields.items():
        if key not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"The config lacks the {kind} '{key}'.")
    return cls(**values, **given)


def _check_elements(name: str, value: Any, kind: Any) -> None:
    # ConfigDict holds values to their types, but not the elements of tuples.
    if typing.get_origin(kind) is not tuple:
        return
    element = typing.get_args(kind)[0]
    allowed = (int, float) if element is float else element
    if not isinstance(value, tuple) or not all(isinstance(v, allowed) for v in value):
        raise UserError(f'The {name} must be a tuple of {element.__name__}, such as "(1,2)", not {value!r}.')
