"""The unit, the installer and the installed command, as far as they show without an installation (test_install.py)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefer import __version__

DEPLOY = Path(__file__).parent.parent / "deploy"
UNIT = DEPLOY / "edgefer.service"
SCRIPTS = [*DEPLOY.glob("*.sh"), *(DEPLOY / "debian").glob("p*")]


def as_nobody(*command: object) -> list[str]:
    """The command as somebody who isn't root runs it."""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    return [*nobody, *map(str, command)]


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.fixture
def systemd_analyze() -> str:
    path = shutil.which("systemd-analyze")
    if path is None:
        pytest.skip("systemd-analyze isn't installed: `sudo apt-get install systemd`")
    return path


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may look into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def install(public) -> Path:
    """install.sh in a checkout that everybody may read."""
    shutil.copytree(DEPLOY, public / "deploy")
    shutil.copy(DEPLOY.parent / "pyproject.toml", public)
    return public / "deploy" / "install.sh"


@pytest.fixture(scope="module")
def command():
    """deploy/command.py as a module."""
    spec = importlib.util.spec_from_file_location("command", DEPLOY / "command.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_systemd_finds_nothing_wrong_with_the_unit(systemd_analyze, tmp_path):
    # The only thing that it may miss here is the program itself.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/edgefer/current/bin/edgefer", sys.executable))
    done = run(systemd_analyze, "verify", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_is_rated_safe_and_still_reaches_a_broker_anywhere(systemd_analyze):
    done = run(systemd_analyze, "security", "--offline=true", "--threshold=15", "--no-pager", UNIT)
    assert done.returncode == 0, done.stdout
    directives = [line for line in UNIT.read_text().splitlines() if not line.startswith("#")]
    assert not any(line.startswith(("IPAddressDeny=", "PrivateNetwork=")) for line in directives)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing_in_the_scripts(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck isn't installed: `sudo apt-get install shellcheck`")
    done = run("shellcheck", script)
    assert done.returncode == 0, done.stdout


def test_a_dry_run_says_each_step_and_needs_no_root(install):
    done = run(*as_nobody(install, "--dry-run"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith("would: ") for line in lines)
    for step in (
        "user edgefer",
        "/etc/edgefer",
        "/var/lib/edgefer",
        f"/opt/edgefer/{__version__}-",
        "doctor",
        "Let the service",
    ):
        assert any(step in line for line in lines), step


def test_without_root_it_says_what_to_do(install):
    done = run(*as_nobody(install))
    assert done.returncode == 64
    assert "run it with sudo" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--purge"], 64, "--purge goes with --uninstall"),
        (["--wheelhouse", "/nowhere"], 66, "deploy/wheelhouse.sh"),
        (["--upgrade"], 64, "unknown option --upgrade; see --help"),
    ],
)
def test_the_installer_says_what_it_does_not_understand(install, arguments, code, message):
    done = run(*as_nobody(install, "--dry-run", *arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


@pytest.mark.parametrize("script", ["install.sh", "wheelhouse.sh", "deb.sh"])
def test_help_is_there(script):
    done = run(DEPLOY / script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("NAME=plain", "plain"),
        (" NAME = spaces around ", "spaces around"),
        ("NAME=rtsp://cam/?a=1&b=2 # no comment", "rtsp://cam/?a=1&b=2 # no comment"),
        ("NAME='single $HOME'", "single $HOME"),
        ('NAME="double \\"quoted\\" \\$5 \\n"', 'double "quoted" $5 \\n'),
        ("NAME='one'\"two\"", "onetwo"),
        ("NAME=Ada's room", "Ada's room"),
        ("NAME=back\\\\slash", "back\\slash"),
        ("NAME=first \\\nsecond", "first second"),
        ("NAME=", ""),
        ("# NAME=comment", None),
        ("; NAME=comment", None),
        ("no assignment", None),
    ],
)
def test_the_command_reads_the_settings_file_as_systemd_does(command, tmp_path, line, value):
    path = tmp_path / "edgefer.env"
    path.write_text(f"OTHER=1\n{line}\n")
    assert command.read_environment(path) == {"OTHER": "1"} | ({} if value is None else {"NAME": value})


def test_without_a_settings_file_nothing_is_set(command, tmp_path):
    assert command.read_environment(tmp_path / "absent") == {}


@pytest.fixture
def installed(public) -> Path:
    """The command of a version as install.sh lays it out, whose program tells that it was run."""
    shutil.copy(DEPLOY / "command.py", public / "edgefer")
    program = public / "bin" / "edgefer"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "ran: $*"\n')
    program.chmod(0o755)
    return public / "edgefer"


@pytest.mark.parametrize("arguments", [["people", "list"], ["enroll", "Ada", "--images", "my pictures"], ["settings"]])
def test_anybody_but_root_is_told_to_use_sudo(installed, arguments):
    done = run(*as_nobody(installed, *arguments))
    assert (done.returncode, done.stdout) == (64, "")
    assert "\n  sudo edgefer " + " ".join(f"'{a}'" if " " in a else a for a in arguments) + "\n" in done.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["people", "--help"], ["demo"], ["bench", "--json"]])
def test_anybody_may_do_what_touches_no_people(installed, arguments):
    done = run(*as_nobody(installed, *arguments))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ran: {' '.join(arguments)}\n", "")


def test_anybody_may_keep_people_of_their_own(installed):
    done = run(*as_nobody("env", "EDGEFER_STATE_DIR=mine", installed, "people", "list"))
    assert (done.returncode, done.stdout) == (0, "ran: people list\n")
