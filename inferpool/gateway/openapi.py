"""The gateway's public routes as an OpenAPI 3.1 document: `GET /openapi.json`.

Bounds and no-ops come from the parsers' own tables, so that the document cannot say otherwise than
they do. What is not in a request's schema is refused with a 400 that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import orjson

from inferpool import __version__
from inferpool.protocol import chat, completion, embeddings, images, limits, transcription
from inferpool.protocol.body import IGNORED
from inferpool.protocol.preferences import SORTS
from inferpool.protocol.text import BIAS_MAX, INTEGER_SAMPLERS, SAMPLERS

Schema = dict[str, Any]

_ANY: Final[Schema] = {}
_BODY: Final = "application/json"


@cache
def document() -> bytes:
    """The document as JSON."""
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Inferpool gateway",
                "version": __version__,
                "description": "OpenAI's API and the Open Inference Protocol, before a pool of"
                " nodes that are paid by the answer.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "security": [{"key": []}],
            "paths": _paths(),
            "components": {
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
                "schemas": {"Error": _error(), "TensorError": _tensor_error(), "Model": _model()},
            },
        }
    )


# -- short words for schemas -----------------------------------------------------------------------


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema] = {}) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
    }


def _closed(required: Mapping[str, Schema], optional: Mapping[str, Schema]) -> Schema:
    return {**_object(required, optional), "additionalProperties": False}


def _list(item: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": item, **bounds}


def _text(**bounds: int) -> Schema:
    return {"type": "string", **bounds}


def _integer(least: int | None = None, greatest: int | None = None) -> Schema:
    bounds = {"minimum": least, "maximum": greatest}
    return {"type": "integer", **{key: value for key, value in bounds.items() if value is not None}}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_NAME: Final = _text(minLength=1, maxLength=limits.TEXT_MAX)
_FUNCTION_NAME: Final[Schema] = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
_NUMBER: Final[Schema] = {"type": "number"}
_SEED: Final = _or_null(_integer(-(2**63), 2**63 - 1))


def _no_ops(table: Mapping[str, tuple[object, ...]]) -> dict[str, Schema]:
    """Parameters that are accepted with a value that asks for nothing."""
    known = {name: {"enum": list(values)} for name, values in table.items()}
    return {**known, **dict.fromkeys(sorted(IGNORED), _ANY)}


def _preferences() -> dict[str, Schema]:
    """OpenRouter's `provider` object, and our own members beside it."""
    address: Schema = {"type": "string", "pattern": "^0x[0-9a-f]{40}$"}
    addresses = _or_null(_list(address, maxItems=limits.PROVIDERS_MAX))
    usd: Schema = {"type": "number", "minimum": 0, "maximum": 10**6}
    prices = {name: _or_null(usd) for name in ("prompt", "completion", "request")}
    rate: Schema = {"type": "number", "minimum": 0, "maximum": 10**9}
    provider = {
        **dict.fromkeys(("order", "only", "ignore"), addresses),
        "allow_fallbacks": _or_null({"type": "boolean"}),
        "require_parameters": {"const": True},
        "data_collection": {"enum": ["allow", "deny", None]},
        "zdr": _or_null({"type": "boolean"}),
        "quantizations": _or_null(_list(_NAME, maxItems=limits.PROVIDERS_MAX)),
        "max_price": _or_null(_closed({}, prices)),
        "sort": {"enum": [*SORTS, None]},
        "preferred_min_throughput": _or_null(rate),
        "preferred_max_latency": _or_null(rate),
    }
    ours = {
        "min_trust": _or_null({"type": "number", "minimum": 0, "maximum": 1}),
        "value_of_time_usd_per_hour": _or_null(usd),
    }
    return {
        "provider": _or_null(_closed({}, provider)),
        "inferpool": _or_null(_closed({}, ours)),
    }


# -- paths -----------------------------------------------------------------------------------------


def _paths() -> dict[str, Schema]:
    model = {"name": "model", "in": "path", "required": True, "schema": _text(minLength=1)}
    infer = _operation("Run a model on tensors", _infer(), _infer_answer(), error="TensorError")
    return {
        "/v1/chat/completions": {
            "post": _operation(
                "Chat, whole or streamed", _chat(), _text_answer("chat.completion", _message())
            )
        },
        "/v1/completions": {
            "post": _operation(
                "Go on after a text, whole or streamed",
                _completion(),
                _text_answer("text_completion", {"text": _text()}),
            )
        },
        "/v1/embeddings": {"post": _operation("Vectors of texts", _embedding(), _vectors())},
        "/v1/images/generations": {
            "post": _operation("Images from a seed", _image(), _images_answer())
        },
        "/v1/audio/transcriptions": {
            "post": _operation(
                "Write down what is said",
                _transcription(),
                _object({"text": _text()}),
                kind="multipart/form-data",
                other="text/plain",
            )
        },
        "/v1/models": {
            "get": _question(
                "Models that can be had now",
                _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
            )
        },
        "/v1/models/{model}": {
            "get": _question("One of them", _ref("Model")),
            "parameters": [model],
        },
        "/v2/models/{model}/infer": {"post": infer, "parameters": [model]},
        "/v2/models/{model}": {
            "get": _question("A model's tensors", _metadata(), error="TensorError"),
            "parameters": [model],
        },
        "/v2": {
            "get": _question(
                "Name, version, extensions",
                _object({"name": _text(), "version": _text(), "extensions": _list(_text())}),
                error="TensorError",
            )
        },
        "/v2/health/live": {
            "get": _question(
                "Whether the process serves",
                _object({"live": {"type": "boolean"}}),
                error="TensorError",
            )
        },
        "/health": {"get": _health("Error")},
        "/v2/health/ready": {"get": _health("TensorError")},
    }


def _health(error: str) -> Schema:
    ready = _object({"ready": {"type": "boolean"}})
    found = _question("Whether some model can be had", ready, error=error)
    found["responses"]["503"] = {
        "description": "No model can be had",
        "content": {_BODY: {"schema": ready}},
    }
    return found


def _errors(name: str) -> Schema:
    answer = {"description": "What went wrong", "content": {_BODY: {"schema": _ref(name)}}}
    return {"4XX": answer, "5XX": answer}


def _question(summary: str, answer: Schema, *, error: str = "Error") -> Schema:
    responses = {"200": {"description": "OK", "content": {_BODY: {"schema": answer}}}}
    return {"summary": summary, "security": [], "responses": {**responses, **_errors(error)}}


def _operation(
    summary: str,
    body: Schema,
    answer: Schema,
    *,
    kind: str = _BODY,
    other: str = "text/event-stream",
    error: str = "Error",
) -> Schema:
    event = _object({"data": _text()})
    content = {_BODY: {"schema": answer}, other: {"schema": event if "event" in other else _text()}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {kind: {"schema": body}}},
        "responses": {"200": {"description": "OK", "content": content}, **_errors(error)},
    }


def _error() -> Schema:
    detail = {"message": _text(), "type": _text(), "code": _text(), "param": _or_null(_text())}
    return _object({"error": _object(detail)})


def _tensor_error() -> Schema:
    return _object({"error": _text(), "code": _text()})


# -- text ------------------------------------------------------------------------------------------


def _shared() -> dict[str, Schema]:
    """What chat and plain completions have in common."""
    stop = _text(minLength=1, maxLength=limits.STOP_TEXT_MAX)
    samplers = {
        name: _or_null(
            {
                "type": "integer" if name in INTEGER_SAMPLERS else "number",
                "minimum": least,
                "maximum": greatest,
            }
        )
        for name, (least, greatest) in SAMPLERS.items()
    }
    options = {"include_usage": {"type": "boolean"}, "include_obfuscation": {"type": "boolean"}}
    return {
        **samplers,
        **_preferences(),
        "max_tokens": _or_null(_integer(1, limits.OUTPUT_UNITS_MAX)),
        "stop": _or_null({"anyOf": [stop, _list(stop, maxItems=limits.STOP_MAX)]}),
        "seed": _SEED,
        "n": _or_null(_integer(1, limits.CHOICES_MAX)),
        "logit_bias": _or_null(_biases()),
        "stream": _or_null({"type": "boolean"}),
        "stream_options": _or_null(_closed({}, options)),
    }


def _biases() -> Schema:
    return {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": "number", "minimum": -BIAS_MAX, "maximum": BIAS_MAX},
        "maxProperties": limits.LOGIT_BIAS_MAX,
    }


def _streaming(body: Schema) -> Schema:
    """`stream_options` says something about a stream: it needs one."""
    streams = {"properties": {"stream": {"const": True}}, "required": ["stream"]}
    without = {"properties": {"stream_options": {"type": "null"}}}
    return {**body, "anyOf": [streams, without]}


def _chat() -> Schema:
    messages = _list(_asked_message(), minItems=1, maxItems=limits.MESSAGES_MAX)
    most = _or_null(_integer(1, limits.OUTPUT_UNITS_MAX))
    optional = {
        **_no_ops(chat.NO_OPS),
        **_shared(),
        "max_completion_tokens": most,
        "logprobs": _or_null({"type": "boolean"}),
        "response_format": _or_null(_format()),
        "tools": _or_null(_list(_function(), maxItems=limits.TOOLS_MAX)),
        "tool_choice": {"anyOf": [{"enum": ["auto", "none", "required", None]}, _chosen()]},
        "parallel_tool_calls": _or_null({"type": "boolean"}),
        "top_logprobs": _or_null(_integer(0, limits.TOP_LOGPROBS_MAX)),
    }
    body = _closed({"model": _NAME, "messages": messages}, optional)
    twice = {"required": ["max_tokens", "max_completion_tokens"]}  # they would have to agree
    asked = {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]}
    tops = {"anyOf": [asked, {"properties": {"top_logprobs": {"enum": [0, None]}}}]}
    text = {"properties": {"response_format": {"enum": [None, {"type": "text"}]}}}
    no_tools: Schema = {"properties": {"tools": {"enum": [None, []]}}}
    never = {"properties": {"tool_choice": {"const": "none"}}, "required": ["tool_choice"]}
    one = {"anyOf": [text, no_tools, never]}  # a form, or functions
    return _streaming({**body, "not": twice, "allOf": [tops, one]})


def _asked_message() -> Schema:
    part = _closed({"type": {"const": "text"}, "text": _text()}, {})
    content: Schema = {"anyOf": [_text(), _list(part, minItems=1)]}
    nothing: dict[str, Schema] = {"name": {"enum": ["", None]}, "refusal": {"type": "null"}}
    plain = _closed({"role": {"enum": list(chat.ROLES[:-1])}, "content": content}, nothing)
    call_id = _text(maxLength=limits.TEXT_MAX)
    inner = _closed({"name": _FUNCTION_NAME, "arguments": _text()}, {})
    call = _closed({"id": call_id, "type": {"const": "function"}, "function": inner}, {})
    calls = _list(call, minItems=1, maxItems=limits.TOOL_CALLS_MAX)
    calling = _closed(
        {"role": {"const": "assistant"}, "tool_calls": calls},
        {"content": _or_null(content), **nothing},
    )
    result = _closed(
        {"role": {"const": "tool"}, "tool_call_id": call_id, "content": content}, nothing
    )
    return {"anyOf": [plain, calling, result]}


def _chosen() -> Schema:
    """The choice of one function, by its name."""
    named = _closed({"name": _FUNCTION_NAME}, {})
    return _closed({"type": {"const": "function"}, "function": named}, {})


def _function() -> Schema:
    flag = _or_null({"type": "boolean"})
    more = {"description": _or_null(_text()), "strict": flag, "parameters": {"type": "object"}}
    inner = _closed({"name": _FUNCTION_NAME}, more)
    return _closed({"type": {"const": "function"}, "function": inner}, {})


def _format() -> Schema:
    """Forms of an answer; schemas in them are JSON Schema, of which the reference tells a part."""
    flag = _or_null({"type": "boolean"})
    schema: Schema = {"type": "object", "description": "JSON Schema, of what is served"}
    more = {"description": _text(), "strict": flag, "schema": schema}
    named = _closed({"name": _FUNCTION_NAME}, more)
    return {
        "anyOf": [
            _closed({"type": {"enum": ["text", "json_object"]}}, {}),
            _closed({"type": {"const": "json_schema"}, "json_schema": named}, {}),
        ]
    }


def _completion() -> Schema:
    most = _or_null(_integer(0, limits.COMPLETION_LOGPROBS_MAX))
    optional = {**_no_ops(completion.NO_OPS), **_shared(), "logprobs": most}
    return _streaming(_closed({"model": _NAME, "prompt": _text(minLength=1)}, optional))


def _message() -> dict[str, Schema]:
    return {"message": _object({"role": {"const": "assistant"}, "content": _or_null(_text())})}


def _text_answer(kind: str, content: Mapping[str, Schema]) -> Schema:
    choice = {"index": _integer(0), "finish_reason": _text(), **content}
    count = _integer(0)
    usage = {"prompt_tokens": count, "completion_tokens": count, "total_tokens": count}
    return _object(
        {
            "id": _text(),
            "object": {"const": kind},
            "created": _integer(0),
            "model": _text(),
            "system_fingerprint": _text(),
            "choices": _list(_object(choice), minItems=1),
            "usage": _object(usage),
            "inferpool": _object({"node": _text(), "cost_pico_usd": _integer(0)}),
        }
    )


# -- the rest --------------------------------------------------------------------------------------


def _embedding() -> Schema:
    text = _text(minLength=1)
    return _closed(
        {
            "model": _NAME,
            "input": {
                "anyOf": [text, _list(text, minItems=1, maxItems=limits.EMBEDDING_TEXTS_MAX)]
            },
        },
        {
            **_no_ops(embeddings.NO_OPS),
            **_preferences(),
            "encoding_format": {"enum": ["float", "base64", None]},
        },
    )


def _vectors() -> Schema:
    vector = {"anyOf": [_list(_NUMBER), _text()]}
    item = {"object": {"const": "embedding"}, "index": _integer(0), "embedding": vector}
    usage = {"prompt_tokens": _integer(0), "total_tokens": _integer(0)}
    return _object(
        {
            "object": {"const": "list"},
            "data": _list(_object(item), minItems=1),
            "model": _text(),
            "usage": _object(usage),
        }
    )


def _image() -> Schema:
    return _closed(
        {"prompt": _text(minLength=1, maxLength=limits.PROMPT_IMAGE_MAX)},
        {
            **_no_ops(images.NO_OPS),
            **_preferences(),
            "model": _or_null(_NAME),
            "n": _or_null(_integer(1, limits.IMAGES_MAX)),
            "size": _or_null(
                {"type": "string", "pattern": "^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"}
            ),
            "seed": _SEED,
            "stream": _or_null({"type": "boolean"}),
            "response_format": {"enum": ["b64_json", None]},
        },
    )


def _images_answer() -> Schema:
    return _object(
        {"created": _integer(0), "data": _list(_object({"b64_json": _text()}), minItems=1)}
    )


def _transcription() -> Schema:
    no_ops = {name: {"enum": list(values)} for name, values in transcription.NO_OPS.items()}
    return _closed(
        {"file": {"type": "string", "format": "binary"}, "model": _NAME},
        {
            **no_ops,
            "language": _text(),
            "response_format": {"enum": list(transcription.FORMATS)},
        },
    )


def _model() -> Schema:
    spread = _object(dict.fromkeys(("min", "p50", "p90", "max"), _integer(0)))
    ours = {
        "task": _text(),
        "unit": _text(),
        "manifest": _text(),
        "context": _integer(0),
        "context_most": _integer(0),
        "input_modalities": _list(_text()),
        "output_modalities": _list(_text()),
        "default_max_output": _integer(0),
        "classes": _list(_text()),
        "price_in_pico_usd_per_unit": spread,
        "price_out_pico_usd_per_unit": spread,
        "nodes": _integer(0),
    }
    return _object(
        {
            "id": _text(),
            "object": {"const": "model"},
            "created": _integer(0),
            "owned_by": _text(),
            "inferpool": _object(ours, {"supported_parameters": _list(_text())}),
        }
    )


def _tensor() -> Schema:
    shape = _list(_integer(0), maxItems=limits.RANK_MAX)
    return _object({"name": _text(), "datatype": _text(), "shape": shape}, {"data": _ANY})


def _infer() -> Schema:
    return _object(
        {"inputs": _list(_tensor(), minItems=1, maxItems=limits.TENSORS_MAX)},
        {"id": _text(), "outputs": _list(_object({"name": _text()})), "parameters": _object({})},
    )


def _infer_answer() -> Schema:
    return _object({"model_name": _text(), "outputs": _list(_tensor())})


def _metadata() -> Schema:
    spec = _object({"name": _text(), "datatype": _text(), "shape": _list(_integer())})
    return _object({"name": _text(), "inputs": _list(spec), "outputs": _list(spec)})
