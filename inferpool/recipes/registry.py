"""The recipes by name. Each is a module of this package with a constant `RECIPE`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from inferpool.protocol.errors import BadRequest

if TYPE_CHECKING:
    from inferpool.recipes.kit.case import Recipe
    from inferpool.recipes.kit.use import Use

NAMES: Final = (
    "spam",
    "maintenance",
    "fraud",
    "crm",
    "finance",
    "environment",
    "quality",
    "healthcare",
    "transcribe",
    "support",
    "summarise",
    "images",
    "driving",
    "video",
)


def load(name: str) -> Recipe | Use:
    """The recipe of this name. Raises `BadRequest(model_not_found)` with the known ones."""
    if name not in NAMES:
        known = ", ".join(NAMES)
        raise BadRequest(f"no recipe {name!r}; there are {known}", code="model_not_found")
    recipe: Recipe | Use = import_module(f"inferpool.recipes.{name}").RECIPE
    return recipe


def all() -> tuple[Recipe | Use, ...]:  # noqa: A001 - read as registry.all()
    """Every recipe."""
    return tuple(map(load, NAMES))
