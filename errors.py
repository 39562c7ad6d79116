"""The one exception that means "the user can fix this": main.py prints it as one line and exits with 1."""

import dataclasses
import difflib
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


def build(cls: Callable[..., T], kind: str, values: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> T:
    """Returns `cls(**values, **given)`, a dataclass; values come from the user, given from the program.

    Raises UserError for a value that is no field of cls, or a field that lacks one.
    """
    given = given or {}
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in {*given, 'parent'}}
    for key in values:
        if key not in fields:
            raise unknown(kind, key, fields)
    for key, field in fields.items():
        if key not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"The config lacks the {kind} '{key}'.")
    return cls(**values, **given)
