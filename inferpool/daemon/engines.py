"""From a manifest to the engine that runs it, and to what its units cost by default."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from inferpool.config import NodeConfig
from inferpool.models import catalogue
from inferpool.models.manifest import Manifest
from inferpool.models.store import Store
from inferpool.protocol import parameters
from inferpool.protocol.errors import Refused
from inferpool.protocol.job import Task

# Calls at once of what batches or queues by itself.
_MANY: Final = 64


def load_manifest(name: str, config: NodeConfig) -> Manifest:
    """A model by name or id: a built-in one, or the owner's. Raises BadRequest, Refused."""
    folder = Path(config.manifests).expanduser() if config.manifests else None
    if folder is not None and not folder.is_dir():
        _refuse("node.manifests", f"{folder} is not a folder")
    return catalogue.load(name, folder)


def make_engine(manifest: Manifest, store: Store, config: NodeConfig) -> Any:
    """The engine of a manifest; its files must be in the store. Imports only what it needs.

    Raises Refused: bad_manifest, bad_config.
    """
    make = _MAKERS.get((manifest.engine, Task(manifest.task)))
    if make is None:
        raise Refused(
            f"the engine {manifest.engine!r} of {manifest.name} does no {manifest.task} in this"
            " version",
            code="bad_manifest",
        )
    return make(manifest, store, config)


def places(manifest: Manifest, config: NodeConfig) -> int:
    """How many calls of a model run at once."""
    task = Task(manifest.task)
    if task in (Task.TENSOR, Task.EMBEDDING):
        return _MANY
    return 1 if task in (Task.TRANSCRIPTION, Task.IMAGE) else config.slots


def general_prices(task: Task, config: NodeConfig) -> tuple[str, str]:
    """USD per million units, in and out, of a task whose model has no price of its own."""
    return {
        Task.TENSOR: (config.price_row_usd_per_million, "0"),
        Task.EMBEDDING: (config.price_embedding_usd_per_million, "0"),
        Task.TRANSCRIPTION: (config.price_second_usd_per_million, "0"),
        Task.IMAGE: ("0", config.price_step_usd_per_million),
    }.get(task, (config.price_in_usd_per_million, config.price_out_usd_per_million))


# -- one maker for each engine and task; the imports are the engines' own, and may be heavy ---


def _fake(manifest: Manifest, store: Store, config: NodeConfig) -> Any:
    from inferpool.engines import fake

    whole = {
        "tensor": fake.FakeTensorEngine,
        "embedding": fake.FakeEmbeddingEngine,
        "image": fake.FakeImageEngine,
    }
    if manifest.task in whole:
        return whole[manifest.task]()
    return fake.FakeTextEngine(slots=config.slots, token_delay_s=0.005)


def _llamacpp(manifest: Manifest, store: Store, config: NodeConfig) -> Any:
    from inferpool.engines.llama_server import Program
    from inferpool.engines.llamacpp import LlamaCppEngine

    return LlamaCppEngine(
        store.path(manifest.files[0]),
        manifest.name,
        manifest.quant,
        slots=config.slots,
        context=manifest.limits.context,
        threads=config.threads,
        program=Program.find(name) if (name := llama_server(config)) else None,
    )


def llama_server(config: NodeConfig) -> str:
    """The program that runs llama.cpp's models; empty where the wheel does."""
    if config.llama_server or importlib.util.find_spec("xllamacpp") is not None:
        return config.llama_server
    return shutil.which("llama-server") or ""


def _onnx(manifest: Manifest, store: Store, config: NodeConfig) -> Any:
    from inferpool.engines.onnx import OnnxEngine

    return OnnxEngine(store.path(manifest.files[0]), manifest.name, threads=config.threads)


def _embedding(manifest: Manifest, store: Store, config: NodeConfig) -> Any:
    from inferpool.engines.embedding import MiniLmEngine

    paths = {file.role: store.path(file) for file in manifest.files}
    if "tokenizer" not in paths:
        raise Refused(f"{manifest.name} has no file of role tokenizer", code="bad_manifest")
    return MiniLmEngine(
        paths["weights"],
        paths["tokenizer"],
        manifest.name,
        manifest.quant,
        context=manifest.limits.context,
        threads=config.threads,
    )


def _image(manifest: Manifest, store: Store, config: NodeConfig) -> Any:
    from inferpool.engines.terrain import TerrainEngine

    return TerrainEngine(store.path(manifest.files[0]), manifest.name, manifest.quant)


def _whisper(manifest: Manifest, store: Store, config: NodeConfig) -> Any:
    from inferpool.engines.whisper import WhisperEngine

    files = {file.name: store.path(file) for file in manifest.files}
    return WhisperEngine(files, manifest.name, manifest.quant, threads=config.threads)


def _openai(manifest: Manifest, store: Store, config: NodeConfig) -> Any:
    from inferpool.engines.openai import OpenAiEngine

    url, model, key = upstream_of(manifest.name, config, os.environ)
    taken = upstream_parameters(manifest.name, config)
    return OpenAiEngine(url, model, manifest.quant, key=key, slots=config.slots, parameters=taken)


def _oip(manifest: Manifest, store: Store, config: NodeConfig) -> Any:
    from inferpool.engines.oip import OipEngine

    url, model, key = upstream_of(manifest.name, config, os.environ)
    return OipEngine(url, model, manifest.quant, key=key)


_MAKERS: Final[dict[tuple[str, Task], Callable[[Manifest, Store, NodeConfig], Any]]] = {
    ("fake", Task.CHAT): _fake,
    ("fake", Task.COMPLETION): _fake,
    ("fake", Task.TENSOR): _fake,
    ("fake", Task.EMBEDDING): _fake,
    ("fake", Task.IMAGE): _fake,
    ("llamacpp", Task.CHAT): _llamacpp,
    ("llamacpp", Task.COMPLETION): _llamacpp,
    ("onnx", Task.TENSOR): _onnx,
    ("onnx", Task.EMBEDDING): _embedding,
    ("onnx", Task.IMAGE): _image,
    ("whisper", Task.TRANSCRIPTION): _whisper,
    ("openai", Task.CHAT): _openai,
    ("openai", Task.COMPLETION): _openai,
    ("vllm", Task.CHAT): _openai,
    ("vllm", Task.COMPLETION): _openai,
    ("oip", Task.TENSOR): _oip,
}


def upstream_of(name: str, config: NodeConfig, environ: Mapping[str, str]) -> tuple[str, str, str]:
    """URL, model name there and key of a model that another server runs. Raises Refused.

    `node.upstreams` has lines "MODEL URL" or "MODEL URL NAME-THERE"; `node.upstream_keys` has
    "MODEL VARIABLE", the variable of the environment that holds the key.
    """
    lines = {line.split()[0]: line.split()[1:] for line in config.upstreams if line.split()}
    words = lines.get(name)
    if words is None or len(words) not in (1, 2):
        _refuse("node.upstreams", f'{name} needs a line "{name} URL" or "{name} URL NAME-THERE"')
    key = ""
    for line in config.upstream_keys:
        model, _, variable = line.partition(" ")
        if model == name:
            key = environ.get(variable.strip(), "")
            if not key:
                _refuse("node.upstream_keys", f"the variable {variable.strip()!r} is not set")
    return words[0], words[-1] if len(words) == 2 else name, key


def upstream_parameters(name: str, config: NodeConfig) -> frozenset[str]:
    """What the server of a model takes beyond the common; `node.upstream_parameters` has lines
    "MODEL NAME,NAME". Raises Refused."""
    found: set[str] = set()
    for line in config.upstream_parameters:
        model, _, names = line.partition(" ")
        if model == name:
            found |= {word.strip() for word in names.split(",")}
    unknown = found - set(parameters.ALL)
    if unknown:
        known = ", ".join(parameters.ALL)
        _refuse("node.upstream_parameters", f"{min(unknown)!r} is none of {known}")
    return frozenset(found)


def _refuse(key: str, why: str) -> NoReturn:
    raise Refused(f"{key}: {why}", code="bad_config", param=key)
