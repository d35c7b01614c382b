"""mosec (Rust front, Python worker) with an ONNX model and Open Inference Protocol bodies.

usage: PEER_MODEL=FILE PEER_PORT=N PEER_BATCH=N PYTHON mosec_peer.py    (PEER_BATCH 0: none)

Runs in an environment of its own with mosec, onnxruntime and orjson; imports nothing of ours.
The same session options as our engine; the worker checks nothing of what it is sent.
"""

import os
import sys

import numpy as np
import onnxruntime
import orjson
from mosec import Server, Worker

# Not arguments: its workers are started with the arguments of the server.
MODEL, PORT = os.environ["PEER_MODEL"], os.environ["PEER_PORT"]
BATCH = int(os.environ["PEER_BATCH"])
WAIT_MS = 1


class Model(Worker):
    """One ONNX file."""

    def __init__(self) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(MODEL, options)

    def deserialize(self, data):
        """JSON to an array."""
        tensor = orjson.loads(data)["inputs"][0]
        return np.asarray(tensor["data"], np.float32).reshape(tensor["shape"])

    def serialize(self, data):
        """An array to JSON."""
        entry = {"name": "probabilities", "datatype": "FP32", "shape": list(data.shape)}
        body = {"model_name": "m", "outputs": [entry | {"data": data.ravel().tolist()}]}
        return orjson.dumps(body)

    def forward(self, data):
        """One request, or a list of them."""
        if not BATCH:
            return self.session.run(None, {"x": data})[0]
        found = self.session.run(None, {"x": np.concatenate(data)})[0]
        return [found[at : at + 1] for at in range(len(data))]


if __name__ == "__main__":
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", PORT]
    server = Server()
    wait = WAIT_MS if BATCH else 0
    server.append_worker(Model, num=1, max_batch_size=max(BATCH, 1), max_wait_time=wait)
    server.run()
