"""What `edgefer bench` and tools/bench_peers.py say: the figures fit together. How fast it is, no test can know."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgefer.bench import BenchReport, bench, table, to_json_line
from edgefer.cameras import sample
from edgefer.errors import InputError
from edgefer.settings import load_settings

ROOT = Path(__file__).parent.parent
STAGES = ["detect", "track", "rate", "identify", "emotion", "report", "json"]


@pytest.fixture(scope="module", autouse=True)
def _sample() -> None:
    try:
        sample.draw(0)
        sample.picture_path(sample.GRACE), sample.picture_path(sample.COLLINS)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> BenchReport:
    with pytest.MonkeyPatch.context() as environment:
        # A rotation is the camera's affair: it must not turn the picture of the started daemon.
        environment.setenv("EDGEFER_FRAME__ROTATION", "180")
        environment.chdir(tmp_path_factory.mktemp("elsewhere"))
        return bench(load_settings(), repetitions=20, starts=1)


def test_every_stage_and_model_is_there_once_and_in_order(report):
    assert [stage.name for stage in report.stages] == STAGES
    assert [model.name.split()[0] for model in report.models] == ["near", "identity-112", "emotion-48"]
    assert (report.picture, report.width, report.height, report.faces) == ("sample://", 640, 480, 1)
    assert {cost.calls for cost in (*report.stages, *report.models)} == {report.repetitions} == {20}


def test_times_are_positive_and_in_order(report):
    for cost in (*report.stages, *report.models, report.every_frame, report.on_schedule):
        assert 0 < cost.p50_ms <= cost.p95_ms
        assert cost.cpu_ms > 0
    assert report.memory_mb > 10
    assert report.start is not None
    assert report.start.import_s > 0
    assert report.start.models_s > 0
    assert report.start.first_event_s is not None, "the daemon told of no face"
    # The daemon imports and loads too.
    assert report.start.first_event_s > report.start.models_s


def test_a_network_is_a_part_of_its_stage_and_a_stage_of_the_frame(report):
    stages = {stage.name: stage for stage in report.stages}
    for name, model in zip(("detect", "identify", "emotion"), report.models, strict=True):
        assert model.p50_ms < stages[name].p50_ms
        assert model.p95_ms < stages[name].p95_ms
        assert model.cpu_ms < stages[name].cpu_ms
    assert max(stage.p50_ms for stage in report.stages) < report.every_frame.p50_ms


def test_what_is_not_the_networks_is_a_share(report):
    for cost in (report.every_frame, report.on_schedule):
        assert 0 < cost.not_invoke < 1
        assert cost.frames_per_s > 0


def test_the_settings_are_respected(monkeypatch):
    monkeypatch.setenv("EDGEFER_DETECTOR__MODEL", "far")
    monkeypatch.setenv("EDGEFER_IDENTITY__ENABLED", "false")
    monkeypatch.setenv("EDGEFER_THREADS", "2")
    report = bench(load_settings(), repetitions=3, starts=0)
    assert [stage.name for stage in report.stages] == [stage for stage in STAGES if stage != "identify"]
    assert [model.name.split()[0] for model in report.models] == ["far", "emotion-48"]
    assert report.threads == 2
    assert report.start is None


def test_ones_own_picture(tmp_path):
    path = tmp_path / "me.png"
    cv2.imwrite(str(path), cv2.resize(sample.draw(8), (960, 720)))
    report = bench(load_settings(), path, repetitions=3, starts=0)
    assert (report.picture, report.width, report.height, report.faces) == (str(path), 960, 720, 2)


def test_a_picture_without_a_face(tmp_path):
    path = tmp_path / "wall.png"
    cv2.imwrite(str(path), np.full((480, 640, 3), 90, np.uint8))
    with pytest.raises(InputError, match=r"wall\.png: no face is found"):
        bench(load_settings(), path, repetitions=3, starts=0)


def test_without_the_samples_pictures_it_says_how_to_go_on():
    hidden = (
        "import sys; sys.modules['matplotlib'] = None; from edgefer.__main__ import main; sys.exit(main(['bench']))"
    )
    done = subprocess.run([sys.executable, "-c", hidden], check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 66
    assert re.search(r"\.\[demo\].*edgefer bench PICTURE", done.stderr)


def test_the_table_is_for_people(report):
    text = table(report)
    for stage in STAGES:
        assert re.search(rf"^  {stage} +(\d+\.\d\d +){{2}}\d+\.\d\d$", text, re.MULTILINE)
    assert report.runtime in text
    assert "20 frames" in text
    assert "start to first event" in text


def test_a_name_that_json_cannot_hold_is_told_all_the_same(tmp_path, monkeypatch):
    grace = sample.picture_path(sample.GRACE)
    picture = tmp_path / (os.fsdecode(b"gr\xfc\xdfe") + grace.suffix)
    picture.write_bytes(grace.read_bytes())
    monkeypatch.chdir(tmp_path)
    told = json.loads(to_json_line(bench(load_settings(), picture, repetitions=1, starts=0)))
    assert told["picture"].endswith(r"gr\udcfc\udcdfe" + grace.suffix)


def test_the_json_is_the_report(report):
    told = json.loads(to_json_line(report))
    assert told["stages"][0]["name"] == "detect"
    assert told["every_frame"]["cpu_ms"] == pytest.approx(report.every_frame.cpu_ms, abs=0.001)
    assert told["start"]["first_event_s"] == pytest.approx(report.start.first_event_s, abs=0.001)


# Peers


@pytest.fixture
def bare_python(tmp_path) -> Path:
    """An interpreter in whose environment nothing is installed."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    path.chmod(0o755)
    return path


def bench_peers(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "bench_peers.py", "--repetitions", "2", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EDGEFER_")}
    return subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, env=environment, timeout=110
    )


def test_a_peer_that_is_not_installed_is_listed_with_what_to_install(bare_python):
    peers = ("mediapipe", "opencv", "facenet-pytorch", "fer")
    done = bench_peers(*(part for name in peers for part in ("--python", f"{name}={bare_python}")))
    assert (done.returncode, done.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]
    head, ours, theirs = rows[0], rows[2:8], rows[8:]
    assert [row[0].split()[0] for row in ours] == ["edgefer"] * 6
    for row in ours:
        assert len(row) == len(head)
        assert re.fullmatch(r"\d+\.\d\d, found 1", row[2])
        assert re.fullmatch(r"\d+\.\d\d, found 2", row[3])
    assert {row[0].split()[0].rstrip(",") for row in theirs} == {"MediaPipe", "OpenCV", "MTCNN", "fer"}
    for row in theirs:
        assert row[2].startswith("not installed: pip install ")


def test_a_peers_name_that_is_not_known():
    assert "the names are mediapipe, opencv" in bench_peers("--python", "dlib=python3").stderr
