"""Adapters to engines: what runs a model. One contract, whatever is behind it."""

import os

# ONNX Runtime's wheel reports to its maker: `import onnxruntime` alone makes a device id below the
# user's cache and a database of events to send. Read at its import, so set before any of ours.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
