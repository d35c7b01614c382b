"""The table of JSON-RPC methods, filled by the modules that define them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

Method = Callable[..., Any]

METHODS: Final[dict[str, Method]] = {}


def method(*names: str) -> Callable[[Method], Method]:
    """Enter a function into the table under its JSON-RPC names."""

    def enter(function: Method) -> Method:
        for name in names:
            METHODS[name] = function
        return function

    return enter
