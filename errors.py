"""The one exception that means "the user can fix this", and settings as dataclasses, checked as they are built."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar('T')


class UserError(Exception):
    """A mistake outside the code (a setting, a missing file, a full disk), with what to do about it.

    main.py prints it as one line and exits with 1.
    """


def unknown(kind: str, name: str, valid: Iterable[str], more: Iterable[str] = ()) -> UserError:
    """Returns the error for a name that does not exist: the nearest valid one first, then all of them.

    Args:
      kind: what it is the name of.
      name: the name.
      valid: names that exist.
      more: further names that exist, too many to list.
    """
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5) or difflib.get_close_matches(name, more, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ''
    return UserError(f"Unknown {kind} '{name}'.{hint} Valid: {', '.join(valid)}.")


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its type's name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(':')


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises UserError unless low <= value <= high."""
    if not low <= value <= high:  # also for NaN
        limits = f'at least {low}' if high == math.inf else f'from {low} to {high}'
        raise UserError(f'{name} must be {limits}, not {value}.')


def defaults(cls: type, *but: str) -> dict[str, Any]:
    """Returns {field: default} of a dataclass, without the fields in `but` and those that have none."""
    fields = {}
    for field in dataclasses.fields(cls):
        if field.init and field.name not in but:
            if field.default_factory is not dataclasses.MISSING:
                fields[field.name] = field.default_factory()
            elif field.default is not dataclasses.MISSING:
                fields[field.name] = field.default
    return fields


def build(cls: Callable[..., T], kind: str, values: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> T:
    """Returns `cls(**values, **given)`, a dataclass.

    Args:
      cls: the dataclass.
      kind: what its fields are called in errors.
      values: fields that come from the user.
      given: fields that come from the program, which the user cannot set.

    Raises:
      UserError: a value that is no field of cls, a field that lacks one, or a tuple of the wrong kind.
    """
    given = given or {}
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in {*given, 'parent'}}
    for key, value in values.items():
        if key not in fields:
            raise unknown(kind, key, fields)
        _check_elements(f"{kind} '{key}'", value, fields[key].type)
    for key, field in fields.items():
        if key not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"The config lacks the {kind} '{key}'.")
    return cls(**values, **given)


def _check_elements(name: str, value: Any, kind: Any) -> None:
    """Raises UserError unless the elements of a tuple are of the kind that its field says."""
    # ConfigDict checks the types of values, but not those of a tuple's elements.
    if typing.get_origin(kind) is not tuple:
        return
    element = typing.get_args(kind)[0]
    allowed = (int, float) if element is float else element
    if not isinstance(value, tuple) or not all(isinstance(v, allowed) for v in value):
        raise UserError(f'The {name} must be a tuple of {element.__name__}, such as "(1,2)", not {value!r}.')
