"""MLServer with an ONNX model: a whole server of the Open Inference Protocol.

usage: PEER_MODEL=FILE PEER_PORT=N PEER_BATCH=N PYTHON mlserver_peer.py    (PEER_BATCH 0: none)

Runs in an environment of its own with mlserver and onnxruntime; imports nothing of ours.
"""

import asyncio
import os

import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor

MODEL, PORT = os.environ["PEER_MODEL"], int(os.environ["PEER_PORT"])
BATCH = int(os.environ["PEER_BATCH"])


class Model(MLModel):
    """One ONNX file."""

    async def load(self) -> bool:
        """Load it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(MODEL, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One request."""
        array = NumpyCodec.decode_input(payload.inputs[0]).astype("float32")
        found = self.session.run(None, {"x": array})[0]
        output = NumpyCodec.encode_output("probabilities", found)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main() -> None:
    """Serve until killed."""
    server = MLServer(
        Settings(
            host="127.0.0.1",
            http_port=PORT,
            grpc_port=PORT + 1,
            metrics_port=PORT + 2,
            parallel_workers=0,
            debug=False,
        )
    )
    batching = {"max_batch_size": BATCH, "max_batch_time": 0.001} if BATCH else {}
    declared = {
        "inputs": [MetadataTensor(name="x", datatype="FP32", shape=[-1, 30])],
        "outputs": [MetadataTensor(name="probabilities", datatype="FP32", shape=[-1, 2])],
    }
    await server.start([ModelSettings(name="m", implementation=Model, **declared, **batching)])


if __name__ == "__main__":
    asyncio.run(main())
