"""The built-in manifests, and a user's own beside them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from local_sources import never

from inferpool.models import catalogue
from inferpool.models.manifest import BundledSource
from inferpool.models.manifest_toml import read_manifest
from inferpool.models.pull import pull_model
from inferpool.models.sources import Tools
from inferpool.models.store import Store
from inferpool.protocol.errors import BadRequest, Refused

MODELS = Path(catalogue.__file__).parent
FAKE = (MODELS / "catalogue" / "fake-chat.toml").read_text("utf-8")


def test_every_file_of_the_catalogue_is_listed() -> None:
    manifests = [read_manifest(path) for path in (MODELS / "catalogue").glob("*.toml")]
    names = sorted(manifest.name for manifest in manifests)
    assert len(manifests) >= 4
    assert len(set(names)) == len(names)
    assert names == [manifest.name for manifest in catalogue.all()]
    assert len({manifest.id for manifest in manifests}) == len(manifests)


def test_file_names_are_model_names() -> None:
    for path in (MODELS / "catalogue").glob("*.toml"):
        assert read_manifest(path).name == path.stem


def test_load_by_name_and_id() -> None:
    spam = catalogue.load("spam")
    assert (spam.name, spam.task, spam.engine) == ("spam", "tensor", "onnx")
    assert catalogue.load(spam.id) is spam


def test_unknown_model_lists_the_known() -> None:
    with pytest.raises(BadRequest, match="fake-chat") as caught:
        catalogue.load("gpt-9")
    assert caught.value.code == "model_not_found"


def test_users_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(FAKE.replace('"fake-chat"', '"mine"'), "utf-8")
    assert catalogue.load("mine", tmp_path).name == "mine"
    assert catalogue.load("spam", tmp_path).name == "spam"
    with pytest.raises(BadRequest):
        catalogue.load("mine")


def test_users_model_cannot_take_a_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(FAKE, "utf-8")
    with pytest.raises(Refused, match="taken") as caught:
        catalogue.all(tmp_path)
    assert caught.value.code == "bad_manifest"


def test_bundled_files_are_those_of_their_manifests(store: Store) -> None:
    bundled = [
        (file, source.path)
        for manifest in catalogue.all()
        for file in manifest.files
        for source in file.sources
        if isinstance(source, BundledSource)
    ]
    assert bundled
    for file, path in bundled:
        content = (MODELS / "data" / path).read_bytes()
        assert len(content) == file.size
        assert hashlib.sha256(content).hexdigest() == file.sha256
    spam = catalogue.load("spam")
    paths = pull_model(store, spam, tools=Tools(never, never))
    assert paths == {"spam.onnx": store.path(spam.files[0])}
    assert store.missing(spam) == ()


def test_small_chat_model_has_the_published_weights() -> None:
    (file,) = catalogue.load("smollm2-135m-instruct").files
    assert file.size == 98_362_432
    assert file.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def test_a_manifest_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(Refused, match=r"folder.toml cannot be read: Is a directory") as caught:
        catalogue.load("fake-chat", tmp_path)
    assert caught.value.code == "bad_manifest"
