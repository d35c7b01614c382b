"""A Ray Serve application of two replicas that speaks the Open Inference Protocol, V2, over REST.

`sums.py PORT` serves it until its input ends, and prints a line when it answers. It sums the rows
of `x`, FP32 [-1, 4]; a row that begins with -1 kills its replica.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

MODEL = {
    "name": "sums",
    "platform": "python",
    "versions": ["1"],
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "sum", "datatype": "FP32", "shape": [-1, 1]}],
}


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0}, health_check_period_s=1)
class Sums:
    """The model."""

    async def __call__(self, request: Request) -> JSONResponse:
        path = request.url.path.rstrip("/")
        if path == "/v2":
            return JSONResponse({"name": "ray-serve", "version": ray.__version__})
        if path == "/v2/models/sums/ready":
            return JSONResponse({})
        if path == "/v2/models/sums":
            return JSONResponse(MODEL)
        if path == "/v2/models/sums/infer":
            return self._infer(await request.json())
        return JSONResponse({"error": f"no {path} here"}, 404)

    def _infer(self, asked: dict[str, Any]) -> JSONResponse:
        (given,) = asked["inputs"]
        numbers = given["data"]
        rows = [numbers[at : at + 4] for at in range(0, len(numbers), 4)]
        if rows[0][0] == -1:
            os._exit(1)
        output = {
            "name": "sum",
            "datatype": "FP32",
            "shape": [len(rows), 1],
            "data": [sum(row) for row in rows],
        }
        return JSONResponse({"model_name": "sums", "outputs": [output]})


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, address="local")
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Sums.bind(), name="sums")
    print("serves", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()
