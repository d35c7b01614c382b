"""Opening the chain that the configuration names, for a role with its keys."""

from __future__ import annotations

from inferpool.chain.addresses import (
    DEV_CHAIN_ID,
    DEV_DOLLAR_ADDRESS,
    DEV_REGISTRY_ADDRESS,
)
from inferpool.chain.client import EvmChain
from inferpool.config import ChainConfig
from inferpool.home import Home
from inferpool.identity.signing import Key
from inferpool.protocol.encoding import from_hex
from inferpool.protocol.errors import Refused, Unavailable


def chain_url(config: ChainConfig, home: Home) -> str:
    """The chain's URL: configured, else the embedded one that runs. Raises Unavailable."""
    if config.url:
        return config.url
    running = home.running("chain")
    if running is None:
        raise Unavailable(
            "No chain: start `inferpool chain` (or `inferpool up`), or give --chain URL.",
            code="chain_unavailable",
        )
    return str(running["url"])


def is_embedded(config: ChainConfig) -> bool:
    """Whether the development chain of this machine is meant, which has a faucet."""
    return not config.url


async def open_chain(
    config: ChainConfig, home: Home, sender: Key | None = None, authorizer: Key | None = None
) -> EvmChain:
    """Connect. Raises Unavailable, Refused(bad_config)."""
    registry = registry_of(config)
    url = chain_url(config, home)
    try:
        chain = await EvmChain.connect(
            (url, *config.stand_ins),
            sender=sender,
            authorizer=authorizer,
            registry=registry,
            finality_blocks=config.finality_blocks,
        )
    except Unavailable as error:
        raise Unavailable(f"{url}: {error.message}", code=error.code) from error
    if is_embedded(config) and chain.chain_id != DEV_CHAIN_ID:
        raise Refused(
            f"the embedded chain must have id {DEV_CHAIN_ID}, not {chain.chain_id}",
            code="bad_config",
        )
    return chain


def asset_of(config: ChainConfig) -> bytes:
    """The payable token's address."""
    return _address(config.asset, "chain.asset", DEV_DOLLAR_ADDRESS)


def registry_of(config: ChainConfig) -> bytes:
    """The registry's address."""
    return _address(config.registry, "chain.registry", DEV_REGISTRY_ADDRESS)


def _address(text: str, key: str, default: bytes) -> bytes:
    if not text:
        return default
    try:
        return from_hex(text, 20)
    except ValueError as error:
        raise Refused(f"{key}: {error}", code="bad_config", param=key) from None
