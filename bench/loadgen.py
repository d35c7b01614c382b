"""MLCommons LoadGen, the load generator of MLPerf, against an Open Inference Protocol URL.

usage: PYTHON -m bench.loadgen URL [--scenario SingleStream|MultiStream|Server|Offline]
       [--seconds N] [--qps N] [--offline-qps N] [--latency-ms N] [--accuracy]
       python -m bench.loadgen --serve --python PYTHON [options]

PYTHON is one in whose environment `mlcommons-loadgen` and numpy are; this file needs no more. With
--serve our `features` row is started first, and driven by that Python. The model is `m` of
`bench.onnx_models`, one row of 30 floats a sample, 256 samples; Offline and MultiStream put up to
32 samples into a request. These are LoadGen's measurements, not results of MLPerf, which are
submitted and reviewed.
"""

import argparse
import array
import http.client
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from pathlib import Path

import numpy as np

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")
FIELDS, SAMPLES, BATCH, THREADS = 30, 256, 32, 32
KEPT = ("Scenario", "Result is", "satisfied", "amples per second", "90.00", "99.00", "50.00")


class Sut:
    """The system under test: threads with a connection each."""

    def __init__(self, loadgen: object, url: str, scenario: str) -> None:
        self._lg, self._url = loadgen, urllib.parse.urlsplit(url)
        self._batch = BATCH if scenario in ("Offline", "MultiStream") else 1
        rows = np.random.default_rng(7).normal(0, 1, (SAMPLES, FIELDS)).astype("f4")
        self._rows = rows
        self._single = [self._body(rows[at : at + 1]) for at in range(SAMPLES)]
        self._jobs = queue.SimpleQueue()
        self.errors = 0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _body(rows: np.ndarray) -> bytes:
        tensor = {"name": "x", "shape": list(rows.shape), "datatype": "FP32"}
        return json.dumps({"inputs": [tensor | {"data": rows.ravel().tolist()}]}).encode()

    def issue(self, samples: list) -> None:
        """LoadGen's queries."""
        for at in range(0, len(samples), self._batch):
            self._jobs.put(samples[at : at + self._batch])

    def close(self) -> None:
        """End the threads."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        connection = http.client.HTTPConnection(self._url.hostname, self._url.port, timeout=30)
        while (job := self._jobs.get()) is not None:
            found = self._answers(connection, [sample.index for sample in job])
            kept = [array.array("B", row.tobytes()) for row in found]
            self._lg.QuerySamplesComplete(
                [
                    self._lg.QuerySampleResponse(sample.id, data.buffer_info()[0], len(data))
                    for sample, data in zip(job, kept, strict=True)
                ]
            )

    def _answers(self, connection: http.client.HTTPConnection, indices: list[int]) -> np.ndarray:
        body = self._single[indices[0]] if len(indices) == 1 else self._body(self._rows[indices])
        try:
            connection.request("POST", self._url.path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            outputs = json.loads(answer.read())["outputs"]
            return np.array(outputs[0]["data"], np.float32).reshape(len(indices), -1)
        except Exception as error:
            self.errors += 1
            sys.stderr.write(f"a request failed: {error!r}\n")
            connection.close()
            return np.zeros((len(indices), 2), np.float32)


def measure(url: str, scenario: str, options: argparse.Namespace) -> str:
    """One scenario; LoadGen's own summary, shortened."""
    import mlperf_loadgen as lg

    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, scenario)
    mode = lg.TestMode.AccuracyOnly if options.accuracy else lg.TestMode.PerformanceOnly
    settings.mode = mode
    settings.min_duration_ms, settings.min_query_count = int(options.seconds * 1000), 100
    settings.server_target_qps = options.qps
    settings.offline_expected_qps = options.offline_qps
    settings.server_target_latency_ns = int(options.latency_ms * 1e6)
    settings.server_target_latency_percentile = 0.99
    settings.single_stream_expected_latency_ns = 100_000
    settings.multi_stream_expected_latency_ns = 1_000_000
    settings.multi_stream_samples_per_query = 8
    sut = Sut(lg, url, scenario)
    with tempfile.TemporaryDirectory(prefix="inferpool-loadgen-") as folder:
        output = lg.LogOutputSettings()
        output.outdir, output.copy_summary_to_stdout = folder, False
        logs = lg.LogSettings()
        logs.log_output, logs.enable_trace = output, False
        system = lg.ConstructSUT(sut.issue, lambda: None)
        samples = lg.ConstructQSL(SAMPLES, SAMPLES, lambda _: None, lambda _: None)
        lg.StartTestWithLogSettings(system, samples, settings, logs)
        lg.DestroyQSL(samples)
        lg.DestroySUT(system)
        sut.close()
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
        logged = (Path(folder) / "mlperf_log_accuracy.json").stat().st_size
    lines = [line for line in summary.splitlines()[:45] if any(word in line for word in KEPT)]
    if options.accuracy:
        lines.append(f"accuracy log: {logged} bytes")
    return "\n".join([*lines, f"errors: {sut.errors}"])


def serve(options: argparse.Namespace, arguments: list[str]) -> int:
    """Start our server and let the other Python drive it."""
    from bench import onnx_models
    from bench.serving import PATH, started

    with tempfile.TemporaryDirectory(prefix="inferpool-bench-") as folder:
        model = onnx_models.write(Path(folder))["small"]
        with started("features", model, Path(folder)) as (facts, _, _):
            passed = [item for item in arguments if item != "--serve"]
            command = [options.python, __file__, str(facts["url"]) + PATH, *passed]
            return subprocess.run(command, env={"PATH": os.environ["PATH"]}).returncode


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?")
    parser.add_argument("--serve", action="store_true", help="start our own server first")
    parser.add_argument("--python", default=sys.executable, help="where LoadGen is installed")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--qps", type=float, default=1000)
    parser.add_argument("--offline-qps", type=float, default=40_000, help="rows a second")
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--accuracy", action="store_true")
    options = parser.parse_args()
    if options.serve:
        return serve(options, sys.argv[1:])
    if not options.url:
        parser.error("a URL, or --serve")
    try:
        import mlperf_loadgen  # noqa: F401
    except ImportError:
        sys.stderr.write("LoadGen is not installed here: pip install mlcommons-loadgen numpy\n")
        return 2
    for scenario in options.scenario or SCENARIOS:
        sys.stdout.write(measure(options.url, scenario, options) + "\n\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
