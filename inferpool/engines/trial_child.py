"""The child of `trial`: loads a model and runs it once, on zeros, with the node's own options.

Run as `python -I trial_child.py`: one JSON line in, {"sandbox": ...} or {"error": ...} out.
What a trial cannot show: a fault that only some caller's values reach.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

_NUMPY = {
    "tensor(bool)": "?",
    "tensor(float16)": "f2",
    "tensor(float)": "f4",
    "tensor(double)": "f8",
    "tensor(string)": "O",
    **{f"tensor({u}int{8 * n})": f"{u or 'i'}{n}" for u in ("", "u") for n in (1, 2, 4, 8)},
}


def main() -> None:
    """Try, answer, leave."""
    config = json.loads(sys.stdin.buffer.readline())
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        found = {"sandbox": _sandbox().enter(config["readable"])}
        _RUNTIMES[config["runtime"]](config)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"[:2000]}
    print(json.dumps(found), file=answer, flush=True)
    os._exit("error" in found)


def _ctranslate2(config: dict[str, Any]) -> None:
    """A Whisper model: loaded, and one silent window encoded."""
    import ctranslate2
    import numpy as np

    model = ctranslate2.models.Whisper(
        config["path"],
        device="cpu",
        compute_type=config["quant"],
        intra_threads=config["threads"],
    )
    silence = np.zeros((1, model.n_mels, 3000), dtype=np.float32)
    model.encode(ctranslate2.StorageView.from_array(silence))


def _onnx(config: dict[str, Any]) -> None:
    import numpy as np

    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # see this package's first lines
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = config["threads"], 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        config["path"], options, providers=["CPUExecutionProvider"]
    )
    feed = {}
    for value in session.get_inputs():
        if value.type not in _NUMPY:
            return  # the engine refuses it by name
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        empty = "words of a text" if value.type == "tensor(string)" else 0
        feed[value.name] = np.full(shape, empty, dtype=_NUMPY[value.type])
    try:
        session.run(None, feed)
    except MemoryError:
        raise
    except Exception as error:
        # It may dislike zeros. But what did not fit into this child's memory, which is bounded,
        # would be taken from the owner's programs in the node.
        if "alloc" in str(error).lower():
            raise
        sys.stderr.write(f"the trial's run failed: {error}\n")


_RUNTIMES = {"onnx": _onnx, "ctranslate2": _ctranslate2}


def _sandbox() -> Any:
    """The module beside this file, by its path: this directory is no place to import from."""
    path = Path(__file__).with_name("sandbox.py")
    spec = importlib.util.spec_from_file_location("_sandbox", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
