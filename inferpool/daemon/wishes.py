"""What the owner changes while the node runs: everything is read before anything is changed.

Each key is one of `[node]`. A text model's `slots` are those of its engine, so that it is loaded
anew once its calls have ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from inferpool.config import NodeConfig, typed
from inferpool.daemon.engines import make_engine, places
from inferpool.daemon.payee import payers_of, window_of
from inferpool.daemon.provider import policy_of
from inferpool.models.manifest import Manifest
from inferpool.models.store import Store
from inferpool.node.duty import Duty
from inferpool.protocol.errors import BadRequest

KEYS: Final = (
    "hours",
    "only_when_idle",
    "idle_load_percent",
    "memory_max_mb",
    "allow",
    "deny",
    "slots",
    "concurrent_per_channel",
    "min_deposit_base_units",
    "withdraw_delay_s",
    "window",
)


class Wishes:
    """Those of one node's owner."""

    def __init__(self, duty: Duty, config: NodeConfig) -> None:
        self._duty, self._config = duty, config

    def told(self) -> dict[str, object]:
        """The keys that may be changed, as they are now."""
        return {key: getattr(self._config, key) for key in KEYS}

    async def change(self, values: Mapping[str, object]) -> None:
        """Take them over. Raises BadRequest, Refused(bad_config); then nothing was changed."""
        for key in values:
            if key not in KEYS:
                message = f"{key} is not changed while the node runs; these are: {', '.join(KEYS)}."
                raise BadRequest(message, param=key)
        read: dict[str, Any] = {key: typed(f"node.{key}", value) for key, value in values.items()}
        config = replace(self._config, **read)
        for key in ("slots", "concurrent_per_channel", "min_deposit_base_units"):
            if getattr(config, key) < 1:
                raise BadRequest(f"{key} must be 1 or more.", param=key)
        if config.memory_max_mb < 0 or config.idle_load_percent < 0 or config.withdraw_delay_s < 0:
            raise BadRequest("A limit must be 0 or more.")
        policy, payers, window = policy_of(config), payers_of(config), window_of(config.window)
        node = self._duty.node
        terms = replace(
            node.gate.terms,
            min_deposit=config.min_deposit_base_units,
            withdraw_delay_s=config.withdraw_delay_s,
            window=window,
        )
        self._duty.policy = policy
        node.gate.payers, node.gate.concurrent = payers, config.concurrent_per_channel
        node.gate.terms = node.offers.terms = terms
        if config.slots != self._config.slots:
            for item in node.services.hosted:
                item.renew = None  # of a wish before this one, not carried out yet
                if places(item.manifest, config) != item.slots:
                    item.renew = partial(_made, item.manifest, config)
                    item.leaving = not item.closed
        self._config = config
        node.announce()
        await self._duty.tick()


def _made(manifest: Manifest, config: NodeConfig) -> tuple[Any, int]:
    return make_engine(manifest, Store(), config), places(manifest, config)
