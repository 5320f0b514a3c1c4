"""The wheel, an editable install and a checkout all find their models, from any folder."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FIND = """
import edgefer, edgefer.vision.model as m
print(edgefer.__file__, m.find_model('near'))
m.Model(m.find_model('near'), 'detector')
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (path,) = folder.glob("edgefer-*.whl")
    return path


def found_from_root(python_path: Path | None) -> list[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(python_path or "")}
    done = subprocess.run(
        [sys.executable, "-c", FIND], cwd="/", env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_wheel_holds_the_models_and_their_licence(wheel, tmp_path):
    names = zipfile.ZipFile(wheel).namelist()
    for model in ("near", "far", "identity-112", "emotion-48"):
        assert {f"edgefer/models/{model}.tflite", f"edgefer/models/{model}.json"} <= set(names)
    assert any(name.endswith("models/LICENSE") for name in names)
    metadata = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert "License-Expression: Apache-2.0 AND LicenseRef-edgefer-models-research-only" in metadata
    for extra in ("demo", "picamera2", "systemd", "tflite", "seal", "train", "dev"):
        assert f"Provides-Extra: {extra}" in metadata
    zipfile.ZipFile(wheel).extractall(tmp_path)
    package, model = found_from_root(tmp_path)
    assert Path(package).parent == tmp_path / "edgefer"
    assert Path(model) == tmp_path / "edgefer" / "models" / "near.tflite"


def test_an_editable_install_finds_them():
    package, model = found_from_root(None)
    assert Path(package).parent == ROOT / "edgefer"
    assert Path(model) == ROOT / "models" / "near.tflite"


def test_a_checkout_finds_them(tmp_path):
    for name in ("edgefer", "models"):
        shutil.copytree(ROOT / name, tmp_path / name)
    package, model = found_from_root(tmp_path)
    assert Path(package).parent == tmp_path / "edgefer"
    assert Path(model) == tmp_path / "models" / "near.tflite"
