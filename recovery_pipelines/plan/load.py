"""Reading `recovery.yaml`: errors name the file, the line, the key and what is allowed."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from recovery_pipelines.errors import PlanError
from recovery_pipelines.plan.any_target import TAGS, AnyTarget
from recovery_pipelines.plan.databases import DatabaseTarget
from recovery_pipelines.plan.model import Plan
from recovery_pipelines.plan.repositories import RepositoryTarget
from recovery_pipelines.plan.targets import ReplicationTarget, Target

PLAN_VARIABLE = "RECOVERY_PLAN"

KeyPath = tuple[str | int, ...]
_QUOTED = re.compile(r"'[^']{4,}'")


def find_plan() -> Path:
    """The plan named by RECOVERY_PLAN, else `recovery.yaml` here or in a folder above."""
    named = os.environ.get(PLAN_VARIABLE)
    if named:
        return Path(named)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "recovery.yaml").is_file():
            return folder / "recovery.yaml"
    raise PlanError(
        f"no recovery.yaml in {here} or above: run in the project's folder, "
        f"or name the plan with --plan or {PLAN_VARIABLE}"
    )


def load_plan(path: Path) -> Plan:
    """The validated plan, with `data_home` and target paths made absolute.

    Raises PlanError with one line per mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"the plan {path} cannot be read: {error}") from None
    return parse_plan(text, name=str(path), folder=path.absolute().parent)


def parse_plan(text: str, *, name: str, folder: Path) -> Plan:
    """As `load_plan`, from text; `name` stands in messages, `folder` anchors relative paths."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[KeyPath, int] = {}
        _index_lines(root, (), lines, name)
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise PlanError(f"{name}{_without_content(error)}") from None
    if not isinstance(raw, dict):
        raise PlanError(f"{name}: the plan must be a mapping with the key `targets`")
    try:
        plan = Plan.model_validate(raw)
        plan._file_name = Path(name).name
    except ValidationError as error:
        raise PlanError("\n".join(_explain(error, name, lines))) from None
    targets = {name: _anchored(target, folder) for name, target in plan.targets.items()}
    home = folder / plan.data_home.expanduser()
    monitoring = plan.monitoring and plan.monitoring.anchored(folder)
    evidence, authority = plan.evidence, plan.evidence.timestamp_authority
    if authority is not None:
        anchored = authority.model_copy(update={"ca": folder / authority.ca.expanduser()})
        evidence = evidence.model_copy(update={"timestamp_authority": anchored})
    update = {"data_home": home, "targets": targets, "evidence": evidence}
    return plan.model_copy(update=update | {"monitoring": monitoring})


def _anchored(target: AnyTarget, folder: Path) -> AnyTarget:
    """Its paths, which the plan gives relative to its own folder."""
    if isinstance(target, RepositoryTarget | DatabaseTarget | ReplicationTarget):
        return target.anchored(folder)
    if isinstance(target, Target) and target.path:
        return target.model_copy(update={"path": folder / target.path.expanduser()})
    return target


def _index_lines(node: yaml.Node | None, at: KeyPath, lines: dict[KeyPath, int], name: str) -> None:
    if node is None:
        return
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, key.value)
            line = key.start_mark.line + 1
            if here in lines:
                raise PlanError(
                    f"{name}:{line}: {_dotted(here)}: the key stands twice "
                    f"(first on line {lines[here]}); remove one"
                )
            lines[here] = line
            _index_lines(value, here, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _index_lines(item, (*at, position), lines, name)


def _without_content(error: Exception) -> str:
    """Where the YAML is wrong, and how; not what stands there, which may be a misplaced secret."""
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or f"it cannot be read ({type(error).__name__})")
    where = f":{mark.line + 1}" if mark else ""
    return f"{where}: not valid YAML: {re.sub(_QUOTED, '…', problem)}"


def _explain(error: ValidationError, name: str, lines: dict[KeyPath, int]) -> list[str]:
    """One line per distinct mistake. Pydantic's location can hold union members: they are cut."""
    explained = []
    for mistake in error.errors(include_url=False, include_input=False):
        location: KeyPath = tuple(part for part in mistake["loc"] if part not in TAGS)
        known = location
        while known and known not in lines:
            known = known[:-1]
        missing = mistake["type"] == "missing"
        key = location if missing or location in lines else known
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = f"unknown or not yet supported key; known here: {_siblings(location)}"
        explained.append(f"{name}:{lines.get(known, 1)}: {_dotted(key) or 'plan'}: {message}")
    return list(dict.fromkeys(explained))


def _dotted(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location)


def _siblings(location: KeyPath) -> str:
    """The keys that are allowed beside the last part of `location`."""
    models: list[type[BaseModel]] = [Plan]
    for part in location[:-1]:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [inner for field in fields for inner in _inner_models(field.annotation)] or models
    return ", ".join(dict.fromkeys(name for model in models for name in model.model_fields))


def _inner_models(annotation: object) -> list[type[BaseModel]]:
    """The models inside `Model`, `dict[str, Model]`, `tuple[Model, ...]` or `Model | Other`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inside = getattr(annotation, "__args__", ())
    return [model for argument in inside for model in _inner_models(argument)]
