"""The kinds of targets, told apart by the key that only one of them has."""

from typing import Annotated

from pydantic import Discriminator, Tag

from recovery_pipelines.plan.databases import DatabaseTarget
from recovery_pipelines.plan.repositories import RepositoryTarget
from recovery_pipelines.plan.targets import ReplicationTarget, ServicesTarget, Target

_TREE = "file-tree"
_TAGS = {
    "services": "service-stack",
    "replication": "replicated-database",
    "repository": "existing-repository",
    "database": "database",
}
TAGS = (_TREE, *_TAGS.values())


def _tag(value: object) -> str:
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return next((tag for key, tag in _TAGS.items() if key in keys), _TREE)


AnyTarget = Target | ServicesTarget | ReplicationTarget | RepositoryTarget | DatabaseTarget
TaggedTarget = Annotated[
    Annotated[Target, Tag(_TREE)]
    | Annotated[ServicesTarget, Tag(_TAGS["services"])]
    | Annotated[ReplicationTarget, Tag(_TAGS["replication"])]
    | Annotated[RepositoryTarget, Tag(_TAGS["repository"])]
    | Annotated[DatabaseTarget, Tag(_TAGS["database"])],
    Discriminator(_tag),
]
