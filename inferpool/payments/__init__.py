"""Payments by x402 `batch-settlement`: pure cores for both sides, storage at the edge."""
