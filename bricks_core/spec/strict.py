"""The two kinds of models that the contract is made of, and the marks of settings: *what* and *how*.

*what* changes the answer and is part of cache keys; *how* only changes the way to it (patience, pace, limits) and is
part of none. Every field of the run file has a mark:

    crf: What[int] = Field(18, ge=0, le=51)
    concurrency: How[int] = Field(8, ge=1)
    batch_size: HowRounded[int] = Field(4, ge=1)  # a how that may change the last digits of numbers

A key holds a setting only where it differs from the default that its field *came in with*, so that a new field with a
default moves no key. A default that is changed later keeps the first one in its annotation, for the same reason:

    crf: Annotated[What[int], Since(18)] = Field(20, ge=0, le=51)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticUndefined, to_jsonable_python

HOLDS_SECRET = "holds_secret"
"""The type of a validator's error about what must not be repeated in its message."""
SHOWN_AS = "x-bricks"
"""The key of a property in the JSON schema that tells its mark."""

T = TypeVar("T")


@dataclass(frozen=True)
class Mark:
    """Whether a setting changes the answer, or only how it is got."""

    word: Literal["what", "how"]
    rounds: bool = False
    """Of a how: numbers may differ in their last digits, as sums of floats do when their order changes."""

    def __str__(self) -> str:
        return f"{self.word}, last digits may differ" if self.rounds else self.word

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(core) | {SHOWN_AS: str(self)}


What = Annotated[T, Mark("what")]
How = Annotated[T, Mark("how")]
HowRounded = Annotated[T, Mark("how", rounds=True)]


@dataclass(frozen=True)
class Since:
    """The default that a field came in with, where its default is another one today."""

    default: Any = PydanticUndefined
    """Left out: it came in without one, so that its value is in every key."""


class Strict(BaseModel):
    """A part of the run file: frozen, and a key it does not know is refused."""

    # Defaults are validated like what is written, so that 120 for a float is 120.0 either way.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class Row(BaseModel):
    """A row of a table. Its fields are the table's columns, their types the columns' types (storage/tables.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: str
    """Names the row for good; made from content, so the same thing has the same id everywhere."""


def mark_of(field: FieldInfo) -> Mark | None:
    """A field's mark; None where it has none, which no field of the run file may."""
    return next((each for each in field.metadata if isinstance(each, Mark)), None)


def first_default(field: FieldInfo) -> Any:
    """The default that a field came in with, as keys see it (a JSON value); PydanticUndefined: it came in without one.

    Of a default that is a model, what it does not say itself is as those fields came in, not as they are today.
    """
    since = next((each for each in field.metadata if isinstance(each, Since)), None)
    default = since.default if since else field.get_default(call_default_factory=True)
    return default if default is PydanticUndefined else _in_json(default, _said_by)


def is_tag(field: FieldInfo) -> bool:
    """Whether a field tells which alternative its model is, such as `family` or `kind`: a literal of one word."""
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def what_of(spec: Strict, *names: str) -> dict[str, Any]:
    """The settings that change the answer and differ from the default they came in with, as JSON values, for keys.

    Of a model within, only its own such settings count; its tag (`family`, `kind`) is there whenever the model is. A
    field that came in without a default is always there. `names`: only these fields; none: all that are *what*.

    Raises:
        KeyError: a name that is no field, or is a *how*: a bug of the caller.
        TypeError: a field without a mark: a bug of its class.
    """
    kind = type(spec)
    for name in names:
        if name not in kind.model_fields or _mark(kind, name).word == "how":
            raise KeyError(f"{kind.__name__}.{name} is no setting that changes the answer, so no key may hold it.")
    return _differing(spec, names or kind.model_fields, what_of)


def _said_by(default: Strict) -> dict[str, Any]:
    """The same of a model that is itself a default, and only of what was written when it was made."""
    kind = type(default)
    written = [name for name, field in kind.model_fields.items() if name in default.model_fields_set or is_tag(field)]
    return _differing(default, written, _said_by)


def _differing(spec: Strict, names: Iterable[str], of_model: Callable[[Strict], dict[str, Any]]) -> dict[str, Any]:
    kind = type(spec)
    found: dict[str, Any] = {}
    for name in names:
        if _mark(kind, name).word == "what":
            field, value = kind.model_fields[name], _in_json(getattr(spec, name), of_model)
            if is_tag(field) or value != first_default(field):
                found[name] = value
    return found


def _mark(kind: type[Strict], name: str) -> Mark:
    mark = mark_of(kind.model_fields[name])
    if mark is None:
        raise TypeError(
            f"{kind.__name__}.{name} has no mark: annotate it as What[…] if it changes the answer, else as How[…]."
        )
    return mark


def _in_json(value: Any, of_model: Callable[[Strict], dict[str, Any]]) -> Any:
    if isinstance(value, Strict):
        return of_model(value)
    if isinstance(value, list | tuple):
        return [_in_json(each, of_model) for each in value]
    if isinstance(value, dict):
        return {str(name): _in_json(each, of_model) for name, each in value.items()}
    return 0.0 if isinstance(value, float) and value == 0 else to_jsonable_python(value)  # -0.0 means 0.0
