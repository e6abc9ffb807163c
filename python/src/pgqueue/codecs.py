"""How arguments and results become JSON and come back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import UnionType
from typing import TYPE_CHECKING, Any, Protocol, get_args, get_type_hints

if TYPE_CHECKING:
    from pydantic import TypeAdapter


class Codec(Protocol):
    """Translates the arguments and results of one task; see the argument ``codec`` of :class:`pgqueue.App`."""

    def dump(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return arguments by name as what ``json.dumps`` takes."""
        ...

    def load(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that a payload stands for."""
        ...

    def dump_result(self, result: Any) -> Any:
        """Return a result as what ``json.dumps`` takes."""
        ...


# What JSON has by itself.
_PLAIN = (str, int, float, bool, type(None), dict, list, object, Any)


def by_annotations(function: Callable[..., Any]) -> Codec | None:
    """Return a codec for a function some of whose annotations JSON does not have, if pydantic is installed.

    Pydantic models, dataclasses, datetime, UUID, Decimal, enumerations, tuples, sets and so on, also inside of lists
    and dicts. Arguments are checked when they are enqueued, and when they arrive. None: all of it is plain JSON, or
    pydantic is not installed.
    """
    from pgqueue.app import Job

    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:  # a hint that exists for type checkers only
        return None
    kinds = {p.name: p.kind for p in inspect.signature(function).parameters.values()}
    wanted = {
        name: hint
        for name, hint in hints.items()
        if not all(part in (*_PLAIN, Job) for part in _parts(hint))
        and kinds.get(name) is not inspect.Parameter.VAR_KEYWORD
    }
    if not wanted:
        return None
    try:
        import pydantic
    except ImportError:
        return None
    adapters: dict[str, TypeAdapter[Any]] = {}
    for name, hint in wanted.items():
        try:
            adapters[name] = pydantic.TypeAdapter(hint)
        except pydantic.errors.PydanticUserError:  # pydantic does not know this type, such as pgqueue.Job
            continue
    return _ByAnnotations(adapters, adapters.pop("return", None)) if adapters else None


def _parts(hint: Any) -> Iterator[Any]:
    """Yield the types that an annotation is made of."""
    inner = get_args(hint)
    if not inner:
        yield hint
        return
    origin = getattr(hint, "__origin__", None)
    if isinstance(origin, type) and origin is not UnionType:
        yield origin
    for part in inner:
        yield from _parts(part)


def _dumped(adapter: TypeAdapter[Any], value: Any) -> Any:
    """A wrong argument fails where the call is made, and what pydantic can convert, such as a dict, will do."""
    return adapter.dump_python(adapter.validate_python(value), mode="json")


class _ByAnnotations:
    def __init__(self, adapters: dict[str, TypeAdapter[Any]], result: TypeAdapter[Any] | None) -> None:
        self._adapters = adapters
        self._result = result

    def dump(self, arguments: dict[str, Any]) -> dict[str, Any]:
        adapters = self._adapters
        return {
            name: _dumped(adapters[name], value) if name in adapters else value for name, value in arguments.items()
        }

    def load(self, payload: dict[str, Any]) -> dict[str, Any]:
        adapters = self._adapters
        return {
            name: adapters[name].validate_python(value) if name in adapters else value
            for name, value in payload.items()
        }

    def dump_result(self, result: Any) -> Any:
        return result if self._result is None else _dumped(self._result, result)
