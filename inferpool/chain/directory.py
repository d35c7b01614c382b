"""The registry's directory, folded from its events: after a reorg it is folded anew."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from inferpool.chain.abi import Event, Json, contract
from inferpool.chain.base import Registration
from inferpool.protocol.encoding import from_hex


def events_by_topic(name: str) -> dict[bytes, Event]:
    """A contract's events by topic."""
    return {event.topic: event for event in contract(name).events.values()}


def read_log(log: Json, events: dict[bytes, Event]) -> tuple[str, dict[str, Any]] | None:
    """The name and members of a log, or None for an event that is not known. Raises ValueError."""
    topics = [from_hex(topic, 32) for topic in log["topics"]]
    event = events.get(topics[0]) if topics else None
    if event is None:
        return None
    return event.name, event.read(topics, bytes.fromhex(log["data"][2:]))


@dataclass(slots=True)
class Directory:
    """All registrations by owner; stake may outlive a registration while it is unbonding."""

    registrations: dict[bytes, Registration] = field(default_factory=dict)

    def apply(self, name: str, members: dict[str, Any]) -> None:
        """Take one event in; those that do not change the directory are passed over."""
        owner = members.get("owner")
        if not isinstance(owner, bytes):
            return
        if name == "Registered":
            self.registrations[owner] = Registration(
                owner, members["node"], members["endpoint"], stake=0
            )
        elif name == "Deregistered":
            self.registrations.pop(owner, None)
        elif owner in self.registrations:
            self.registrations[owner] = _changed(self.registrations[owner], name, members)

    def listed(self) -> list[Registration]:
        """The registrations in the order of their owners' addresses."""
        return [self.registrations[owner] for owner in sorted(self.registrations)]


def _changed(registration: Registration, name: str, members: dict[str, Any]) -> Registration:
    if name == "EndpointChanged":
        return replace(registration, endpoint=members["endpoint"])
    if name == "KeyReplaced":
        return replace(registration, node=members["node"])
    if name == "StakeChanged":
        return replace(registration, stake=members["stake"])
    return registration
