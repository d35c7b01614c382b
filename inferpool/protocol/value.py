"""Values on the hot path: frozen for the type checker, plain at run time.

A frozen dataclass sets each member through `object.__setattr__`: 2.8 us for a receipt's eighteen
members, where plain assignment takes 0.2. That nobody assigns to one is mypy's to see, and it does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[_T]) -> type[_T]:
    """A dataclass with slots, equality and hash by its members, and no check of assignments."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
