"""Methods by name: `methods/<name>.py` is found by its file name, without registration."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import errors
from methods.base import Method


def names() -> list[str]:
    """Returns the names of all methods."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in ('base', 'terms'))


def defaults(name: str) -> dict[str, Any]:
    """Returns {hyper-parameter: default} of a method.

    Raises:
        UserError: There is no such method.
    """
    return errors.defaults(_class(name))


def create(name: str, hyperparameters: Mapping[str, Any]) -> Method:
    """Returns the method called `name`.

    Raises:
        UserError: There is no such method or hyper-parameter, or a value is impossible.
    """
    method = errors.build(_class(name), f'hyper-parameter of {name}', hyperparameters)
    errors.check_numbers(f'methods.{name}', vars(method), defaults(name))
    return method


def _class(name: str) -> type[Method]:
    """Returns the method's class.

    Raises:
        UserError: There is no such method.
    """
    if name not in names():
        raise errors.unknown('method', name, names())
    module = importlib.import_module(f'methods.{name}')
    classes = (c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Method))
    (cls,) = (c for c in classes if c.__module__ == module.__name__)
    return cls
