"""The embedded development chain: a real EVM (py-evm, Prague) behind JSON-RPC over HTTP.

One block per transaction, true gas and EIP-1559 fees, our contracts at fixed addresses from the
genesis, state in one SQLite file, and a clock that can be moved. Start it with
`python -m inferpool.chain.devchain --port N --state FILE`, or `server.serve`. Nothing of py-evm is
imported before `evm` is.
"""
