"""The child process of `llamacpp`: llama.cpp's own server, from the xllamacpp wheel.

Run as `python -I llamacpp_child.py`. Reads one JSON line of configuration,
answers one JSON line, {"url": ..., "sandbox": ..., "control": the control tokens' texts} or
{"error": ...}, and leaves when its stdin closes. The model is read inside a sandbox: see `sandbox`.
Imports nothing of this package: it starts faster and cannot break with it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
# The server reflects any origin, with credentials, by default; this origin cannot exist (RFC 2606).
_NO_ORIGIN: Final = "https://none.invalid"
_ERRORS_ONLY: Final = 1


def main() -> None:
    """Serve until the parent is gone."""
    line = sys.stdin.buffer.readline()
    if not line:
        return
    config = json.loads(line)
    _die_with(config["parent"])
    # Whatever the library prints goes to stderr: stdout carries exactly one line, ours.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        # Before the first thread and before a byte of the model is read.
        reader = _beside("gguf_control")
        sandbox = _beside("sandbox").enter([config["path"]], bind_port=0)
        threading.Thread(target=_leave_with_stdin, daemon=True).start()
        server = _serve(config)
        control = reader.control_texts(config["path"])
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answer, flush=True)
        # C's exit, not os._exit: the library's log is a thread, which its end waits for, and what
        # it has not written yet is the reason.
        ctypes.CDLL(None).exit(1)
    found = {"url": server.listening_address, "sandbox": sandbox, "control": control}
    print(json.dumps(found), file=answer, flush=True)
    threading.Event().wait()


def _serve(config: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = config["path"]
    params.model_alias = {config["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [config["key"]]
    params.cors_origins, params.cors_credentials = _NO_ORIGIN, False
    params.ui = params.endpoint_slots = params.endpoint_props = False
    params.n_parallel = config["slots"]
    params.n_ctx = config["slots"] * config["context"]
    # A call that was left is noticed between two batches: 0.6-0.9 s at 256, 5 s at the default of
    # 2048, at the same prefill speed.
    params.n_batch = params.n_ubatch = config["batch"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config["threads"]
    params.n_threads_http = config["slots"] + 4  # each stream holds one; a few for the rest
    params.fit_params = False  # take the sizes above, do not measure the machine and shrink
    # Nothing of one caller's prompt is kept for another's: repeatable, private, and bounded.
    params.cache_prompt = params.cache_idle_slots = False
    params.cache_ram_mib = params.n_ctx_checkpoints = 0
    params.verbosity = _ERRORS_ONLY
    return xllamacpp.Server(params)


def _beside(name: str) -> Any:
    """A module beside this file, by its path: this directory is no place to import from."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _die_with(parent: int) -> None:
    """Linux: be killed when the parent dies, even while the model is loading."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before that
            os._exit(0)


def _leave_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
