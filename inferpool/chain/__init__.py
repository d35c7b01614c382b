"""The chain: contracts, a client for any EVM URL, and the embedded development chain."""
