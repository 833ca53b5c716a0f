"""Writes the tables of docs/plan.md: the plan's keys, from the schema and its docstrings.

A table stands between `<!-- keys of MODEL -->` and `<!-- end -->`; a model inside MODEL that has
no table of its own is part of MODEL's.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from recovery_pipelines.plan import Plan

PAGE = Path(__file__).parent.parent / "docs" / "plan.md"
_TABLE = re.compile(r"(<!-- keys of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def reference(page: str) -> str:
    """The page with its tables made anew. Fails if a key of the plan is in none of them."""
    models = {model.__name__: model for model in [Plan, *_models_inside(Plan)]}
    own = {models[name] for _, name, _ in _TABLE.findall(page)}
    unreached = set(models.values()) - {model for root in own for model in _flat(root, own)}
    assert not unreached, f"{PAGE.name} has no table that shows {unreached}"
    return _TABLE.sub(lambda found: found[1] + _table(models[found[2]], own) + found[3], page)


def _table(model: type[BaseModel], own: set[type[BaseModel]]) -> str:
    rows = [f"| `{key}` | {text} | {default} |" for key, text, default in _rows(model, own)]
    return "\n".join(["| key | meaning | default |", "|---|---|---|", *rows, ""])


def _rows(
    model: type[BaseModel], own: set[type[BaseModel]], prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    described = _docstrings(model)
    for name, field in model.model_fields.items():
        inner = _models_in(field.annotation)
        if not inner:
            yield (
                prefix + name,
                _meaning(field, described.get(name, ""), prefix + name),
                _default(field),
            )
        key = prefix + name + _position(field.annotation)
        for each in inner:
            if each not in own:
                yield from _rows(each, own, f"{key}.")


def _meaning(field: FieldInfo, described: str, key: str) -> str:
    choices = [f"`{_yaml(choice)}`" for choice in _choices(field.annotation)]
    assert described or choices, f"{key} has no docstring"
    if all(choice in described for choice in choices):
        return described
    return (
        f"{described.removesuffix('.')}: {', '.join(choices)}" if described else ", ".join(choices)
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}, ""):
        return "none"
    if isinstance(value, tuple) and list(value) == list(_choices(field.annotation)):
        return "all"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, ByteSize):
        return f"{value / 1_000_000:g}MB"
    if isinstance(value, timedelta):
        return f"{value.days}d"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The text after each field, those of the models that it extends included."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            found |= dict(_docstrings_of(each))
    return found


def _docstrings_of(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(words))):
                yield name, " ".join(words.split()).replace("|", "\\|")


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in `Model`, `dict[str, Model]`, `tuple[Model, ...]` or `Model | Other`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _models_inside(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            yield inner
            yield from _models_inside(inner)


def _flat(model: type[BaseModel], own: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """The model, and those inside that its table shows."""
    yield model
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            if inner not in own:
                yield from _flat(inner, own)


def _position(annotation: Any) -> str:
    if get_origin(annotation) is dict:
        return ".<name>"
    if get_origin(annotation) is tuple:
        return "[]"
    return next((at for part in get_args(annotation) if (at := _position(part))), "")


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part)]


if __name__ == "__main__":
    PAGE.write_text(reference(PAGE.read_text()))
