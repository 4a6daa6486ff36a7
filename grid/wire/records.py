"""From a dataclass's annotations to the functions that write and read it, made once at import.

A dataclass travels as a list of its fields' values in order. A shorter list leaves out fields that have defaults; a longer
one comes from a newer version, and what it adds is ignored.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NewType, Union

from grid.wire.fields import PLAIN, Form, details, optional, tuple_of, unfit, unreadable
from grid.wire.messages import Buffer
from grid.wire.raw import Raw

MAX_NEWER_FIELDS = 16
"""Fields by which a newer version's message may be longer than ours."""


def _values_of(cls: type, names: list[str]) -> Callable[[Any], list[Any]]:
    """All fields of an instance as a fresh list."""
    if not names:
        return lambda instance: []
    if len(names) == 1:
        only = attrgetter(names[0])
        return lambda instance: [only(instance)]
    several = attrgetter(*names)
    return lambda instance: list(several(instance))


def _default_of(field: dataclasses.Field[Any]) -> Callable[[], Any] | None:
    """Makes the value of a field that was left out; None where it must not be."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    if field.default is dataclasses.MISSING:
        return None
    value = field.default
    return lambda: value


def compile_record(cls: type) -> Form:
    """Writer and reader of a dataclass with slots. The reader sets the slots directly: `__init__` takes three times as long."""
    fields = dataclasses.fields(cls)
    hints = typing.get_type_hints(cls)
    forms = [_form_of(hints[field.name]) for field in fields]
    values_of = _values_of(cls, [field.name for field in fields])
    writes = [form.write for form in forms]
    stores = [(cls.__dict__[field.name].__set__, form.read) for field, form in zip(fields, forms, strict=True)]
    defaults = [_default_of(field) for field in fields]
    least = max((index + 1 for index, default in enumerate(defaults) if default is None), default=0)
    most = len(fields)
    name = cls.__name__
    make = object.__new__

    def write(value: Any, raw: list[Buffer]) -> Any:
        if type(value) is not cls:
            unfit(value, f"a {name}")
        return [put(item, raw) for put, item in zip(writes, values_of(value), strict=True)]

    def read(value: Any, raw: Raw) -> Any:
        if type(value) is not list or not least <= len(value) <= most + MAX_NEWER_FIELDS:
            unreadable(value, f"a {name} of {least} to {most} fields")
        made: Any = make(cls)
        for (store, get), item in zip(stores, value):  # noqa: B905 (lengths may differ, as the module's docstring says)
            store(made, get(item, raw))
        for index in range(len(value), most):
            default = defaults[index]
            assert default is not None
            stores[index][0](made, default())
        return made

    return Form(write, read, any(form.raw for form in forms))


_RECORDS: dict[type, Form] = {}
"""Records compiled so far; filled while this package is imported and not changed after."""


def _one_of(common: type, *others: Any) -> Form:
    """One of several records: of the first class as it is, of another one as a map of its `tag` to it."""
    first = _form_of(common)
    forms = {cls: _form_of(cls) for cls in others}
    tagged = {cls.tag: form for cls, form in forms.items()}

    def write(value: Any, raw: list[Buffer]) -> Any:
        form = forms.get(type(value))
        return first.write(value, raw) if form is None else {type(value).tag: form.write(value, raw)}

    def read(value: Any, raw: Raw) -> Any:
        if type(value) is not dict:
            return first.read(value, raw)
        tag = next(iter(value), None)
        if len(value) != 1 or tag not in tagged:
            unreadable(value, "a map of one known tag")
        return tagged[tag].read(value[tag], raw)

    return Form(write, read, first.raw or any(form.raw for form in forms.values()))


def _form_of(hint: Any) -> Form:
    """The form of an annotation. Raises `TypeError` at import for one that has none."""
    if hint in PLAIN:
        return PLAIN[hint]
    if isinstance(hint, NewType):
        return _form_of(hint.__supertype__)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return tuple_of(_form_of(inner[0]))
    if origin in (Union, types.UnionType) and len(inner) == 2 and types.NoneType in inner:
        return optional(_form_of(inner[0] if inner[1] is types.NoneType else inner[1]))
    if origin in (Union, types.UnionType):
        return _one_of(*inner)
    if origin is dict and inner[0] is str and set(typing.get_args(inner[1])) == {str, int, float, bool}:
        return details()
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint not in _RECORDS:
            _RECORDS[hint] = compile_record(hint)
        return _RECORDS[hint]
    raise TypeError(f"no way to send a field of type {hint}")
