"""The exception for mistakes that the user can correct, and checks of dataclasses of settings."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar('T')

# Names of fields of methods and networks that are shares or probabilities.
SHARES = {'threshold', 'contrast_threshold', 'decay', 'ramp', 'warm_up', 'label_smoothing', 'bn_momentum', 'crop'}


class UserError(Exception):
    """A mistake that the user can correct (a setting, a missing file, a full disk). The message says how.

    main.py prints it as one line and exits with 1.
    """


def unknown(kind: str, name: str, valid: Iterable[str], more: Iterable[str] = ()) -> UserError:
    """Returns the error for a name that does not exist, which suggests the most similar one and lists all.

    Args:
        kind: What the name is of, such as 'method'.
        name: The name.
        valid: Names that exist.
        more: Further names that exist, too many to list.
    """
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5) or difflib.get_close_matches(name, more, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ''
    return UserError(f"Unknown {kind} '{name}'.{hint} Valid: {', '.join(valid)}.")


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or the name of its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(':')


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Checks that a value is finite and low <= value <= high.

    Raises:
        UserError: It is not.
    """
    if not low <= value <= high or value == math.inf:  # also for NaN
        limits = f'at least {low}' if high == math.inf else f'from {low} to {high}'
        raise UserError(f'{name} must be {limits}, not {value}.')


def defaults(cls: type, *exclude: str) -> dict[str, Any]:
    """Returns {field: default} of a dataclass, without the fields in `exclude` and those without a default."""
    fields = {}
    for field in dataclasses.fields(cls):
        if field.init and field.name not in exclude:
            if field.default_factory is not dataclasses.MISSING:
                fields[field.name] = field.default_factory()
            elif field.default is not dataclasses.MISSING:
                fields[field.name] = field.default
    return fields


def build(cls: type[T], kind: str, values: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> T:
    """Returns `cls(**values, **given)`, a dataclass.

    Args:
        cls: The dataclass.
        kind: Name for its fields in errors.
        values: Fields that the user sets.
        given: Fields that the program sets, and the user cannot.

    Raises:
        UserError: A value has no field, a field no value, or a tuple has elements of a wrong type.
    """
    given = given or {}
    declared = dataclasses.fields(cls)  # type: ignore[arg-type]
    fields = {f.name: f for f in declared if f.init and f.name not in {*given, 'parent'}}
    for key, value in values.items():
        if key not in fields:
            raise unknown(kind, key, fields)
        _check_elements(f"{kind} '{key}'", value, fields[key].type)
    for key, field in fields.items():
        if key not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"The config lacks the {kind} '{key}'.")
    return cls(**values, **given)


def _check_elements(name: str, value: Any, kind: Any) -> None:
    """Checks the types of a tuple's elements, which ConfigDict does not.

    Raises:
        UserError: They are not those that the field declares.
    """
    if typing.get_origin(kind) is not tuple:
        return
    element = typing.get_args(kind)[0]
    allowed = (int, float) if element is float else element
    if not isinstance(value, tuple) or not all(isinstance(v, allowed) for v in value):
        raise UserError(f'The {name} must be a tuple of {element.__name__}, such as "(1,2)", not {value!r}.')


def check_numbers(kind: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Checks the ranges of the numbers among the fields of a method or of a network.

    A share is at most 1, a count at least 1 if its default is, and every other number finite and at least 0.

    Args:
        kind: Name for the fields in errors.
        values: {field: value}.
        defaults: {field: default}.

    Raises:
        UserError: A number is out of range.
    """
    for name, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                is_count = isinstance(number, int) and isinstance(defaults[name], int | tuple) and defaults[name]
                check_range(f'{kind}.{name}', number, 1 if is_count else 0, 1 if name in SHARES else math.inf)
