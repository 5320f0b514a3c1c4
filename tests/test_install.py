"""The installer and the Debian package, on a Debian 12 of their own that systemd-nspawn boots.

It takes minutes, root and a network: `make test-install`.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefer import __version__

ROOT = Path(__file__).parent.parent
PROGRAMS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container", "lintian": "lintian"}

pytestmark = [
    pytest.mark.skipif(
        "INSTALL_TESTS" not in os.environ, reason="takes minutes, root and a network: make test-install"
    ),
    pytest.mark.timeout(1800),
]


class System:
    """A booted Debian: call it with a command, as root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        boot = ["systemd-nspawn", "--quiet", "-D", str(root), "-b", "--register=no", "--keep-unit", "--console=pipe"]
        self._container = subprocess.Popen(boot, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        children = Path(f"/proc/{self._container.pid}/task/{self._container.pid}/children")
        self._first = wait_for(lambda: children.read_text().split()[:1])[0]
        wait_for(lambda: self("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded"))

    def __call__(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self._first}", "--all", "--root", "--wd", "env", "-i", "HOME=/root"]
        enter.append("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        done = subprocess.run([*enter, *command], capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0 or not check, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def is_running(self) -> bool:
        return self("systemctl", "is-active", "edgefer", check=False).stdout == "active\n"

    def version(self) -> str:
        return (self.root / "opt/edgefer/current").readlink().name

    def stop(self) -> None:
        self("systemctl", "poweroff", "--no-block", check=False)
        self._container.wait(60)


def wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value


@pytest.fixture(scope="module")
def debian() -> Path:
    """A clean Debian 12, kept for the next time."""
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            pytest.fail(f"{program} isn't installed: `sudo apt-get install {package}`")
    if os.geteuid():
        pytest.fail("only root may boot a system")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edgefer-tests"
    folder = cache / "debian-12"
    if not folder.exists():
        half = cache / "debian-12.half"
        shutil.rmtree(half, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        include = "--include=systemd,dbus,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", include, "bookworm", str(half)], check=True)
        half.rename(folder)
    return folder


@pytest.fixture
def system(debian, tmp_path) -> Iterator[System]:
    """That Debian, booted, with a user whose home is their own, and a picture in it."""
    root = tmp_path / "debian"
    subprocess.run(["cp", "-a", str(debian), str(root)], check=True)
    for name in ("deploy", "edgefer", "models"):
        shutil.copytree(ROOT / name, root / "srv/edgefer" / name)
    booted = System(root)
    try:
        booted("useradd", "--create-home", "--key", "HOME_MODE=0700", "ada")
        yield booted
    finally:
        booted.stop()
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    only = ["--python", "3.11", "--arch", platform.machine()]
    subprocess.run([str(ROOT / "deploy/wheelhouse.sh"), str(folder), *only], check=True)
    return folder


def offer(system: System, wheels: Path) -> None:
    """Put a wheelhouse into the system."""
    shutil.rmtree(system.root / "srv/wheels", ignore_errors=True)
    shutil.copytree(wheels, system.root / "srv/wheels")


def later(wheels: Path, folder: Path, version: str, file: str, old: str, new: str) -> Path:
    """A wheelhouse with a later version, in which one file was changed."""
    source, target = folder / f"source-{version}", folder / f"wheels-{version}"
    for name in ("edgefer", "models"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name, before, after in (
        ("pyproject.toml", f'version = "{__version__}"', f'version = "{version}"'),
        (file, old, new),
    ):
        text = (source / name).read_text()
        assert before in text
        (source / name).write_text(text.replace(before, after, 1))
    shutil.copytree(wheels, target, ignore=shutil.ignore_patterns("edgefer-*"))
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(target)]
    subprocess.run([*build, str(source)], check=True)
    return target


INSTALL = ("/srv/edgefer/deploy/install.sh", "--wheelhouse", "/srv/wheels")


def test_install_enrol_upgrade_go_back_and_uninstall(system, wheels, tmp_path):
    offer(system, wheels)
    system(*INSTALL)
    assert system.is_running()
    assert system.version() == f"{__version__}-1"
    assert "no camera" in system("systemctl", "show", "-p", "StatusText", "edgefer").stdout

    # Root enrols from a home that nobody else may look into; what is made, the service can read.
    shutil.copy(a_face(), system.root / "home/ada/face.jpg")
    system("env", "--chdir=/home/ada", "edgefer", "enroll", "Ada", "--images", "face.jpg")
    assert system("find", "/var/lib/edgefer", "!", "-user", "edgefer").stdout == ""
    assert "Ada" in system("edgefer", "people", "list").stdout
    told = system("setpriv", "--reuid=ada", "--regid=ada", "--clear-groups", "edgefer", "people", "list", check=False)
    assert (told.returncode, told.stdout) == (64, "")
    assert "sudo edgefer people list" in told.stderr

    # A secret and a setting reach the daemon and the command alike, the secret outside of the environment.
    (system.root / "etc/edgefer/credentials/EDGEFER_MQTT__PASSWORD").write_text("hidden")
    (system.root / "etc/edgefer/edgefer.env").write_text(SETTINGS)
    system("systemctl", "restart", "edgefer")
    process = system("systemctl", "show", "-p", "MainPID", "--value", "edgefer").stdout.strip()
    environment = system("cat", f"/proc/{process}/environ").stdout
    assert "\0EDGEFER_DEVICE=Ada's room\0" in environment
    assert "hidden" not in environment
    assert system("cat", "/run/credentials/edgefer.service/EDGEFER_MQTT__PASSWORD").stdout == "hidden"
    shown = system("env", "--chdir=/home/ada", "edgefer", "settings").stdout
    assert "EDGEFER_DEVICE=Ada's room\n" in shown
    assert "EDGEFER_MQTT__PASSWORD=**********\n" in shown
    told = system("edgefer", "doctor", check=False).stdout
    assert "FAIL broker" in told
    assert "ok   permissions" in told

    # Again, and nothing is lost.
    system(*INSTALL)
    assert (system.version(), system.is_running()) == (f"{__version__}-2", True)
    assert (system.root / "etc/edgefer/edgefer.env").read_text() == SETTINGS
    assert "Ada" in system("edgefer", "people", "list").stdout

    # A version whose model is damaged, and one whose daemon doesn't start: the former one goes on.
    offer(system, later(wheels, tmp_path, "9.0.0", "models/near.json", '"sha256": "', '"sha256": "0'))
    refused = system(*INSTALL, check=False)
    assert refused.returncode == 1
    assert "FAIL models" in refused.stdout
    assert f"the former one goes on: {__version__}-2" in refused.stderr
    assert (system.version(), system.is_running()) == (f"{__version__}-2", True)
    start = "    settings = _settings()\n    from edgefer import service"
    offer(system, later(wheels, tmp_path, "9.1.0", "edgefer/__main__.py", start, "    return 70"))
    refused = system(*INSTALL, check=False)
    assert refused.returncode == 1
    assert f"the former one goes on: {__version__}-2" in refused.stderr
    assert (system.version(), system.is_running()) == (f"{__version__}-2", True)
    assert sorted(path.name for path in (system.root / "opt/edgefer").iterdir()) == [
        f"{__version__}-1",
        f"{__version__}-2",
        "current",
    ]

    # Somebody has removed the version in use: there is nothing to go back to, and everything to mend.
    system("rm", "-rf", f"/opt/edgefer/{__version__}-2")
    refused = system(*INSTALL, check=False)
    assert refused.returncode == 1
    assert "the former one" not in refused.stderr
    offer(system, wheels)
    system(*INSTALL)
    assert system.is_running()

    system("/srv/edgefer/deploy/install.sh", "--uninstall")
    assert not system.is_running()
    assert left_of(system) == {"/etc/edgefer", "/var/lib/edgefer", "user"}
    system("/srv/edgefer/deploy/install.sh", "--uninstall", "--purge")
    assert left_of(system) == set()


def test_the_debian_package_is_clean_and_leaves_nothing(system):
    subprocess.run([str(ROOT / "deploy/deb.sh"), "--python", "3.11"], check=True)
    package = max((ROOT / "dist").glob("*.deb"), key=lambda path: path.stat().st_mtime)
    lintian = subprocess.run(["lintian", str(package)], capture_output=True, text=True, check=False)
    assert (lintian.returncode, lintian.stdout) == (0, "")

    shutil.copy(package, system.root / "srv")
    install = ("apt-get", "install", "-y", "--no-install-recommends", f"/srv/{package.name}")
    system("apt-get", "update")
    system(*install)
    assert system.is_running()
    assert "nobody is enrolled" in system("edgefer", "people", "list").stderr
    (system.root / "etc/edgefer/edgefer.env").write_text(SETTINGS)
    system(*install, "--reinstall")
    assert (system.version(), system.is_running()) == (f"{__version__}-2", True)
    assert (system.root / "etc/edgefer/edgefer.env").read_text() == SETTINGS

    refused = system("/srv/edgefer/deploy/install.sh", check=False)
    assert refused.returncode == 64
    assert "apt" in refused.stderr
    system("apt-get", "remove", "-y", "edgefer")
    assert not system.is_running()
    assert left_of(system) == {"/etc/edgefer", "/var/lib/edgefer", "user"}
    system("apt-get", "purge", "-y", "edgefer")
    assert left_of(system) == set()


SETTINGS = "EDGEFER_DEVICE=Ada's room\nEDGEFER_MQTT__USERNAME=ada\nEDGEFER_MQTT__PORT=1\n"
PLACES = ["/opt/edgefer", "/etc/edgefer", "/var/lib/edgefer", "/usr/local/bin/edgefer", "/usr/bin/edgefer"]
PLACES += ["/etc/systemd/system/edgefer.service", "/lib/systemd/system/edgefer.service", "/etc/sysusers.d/edgefer.conf"]
PLACES += ["/etc/systemd/system/multi-user.target.wants/edgefer.service"]


def left_of(system: System) -> set[str]:
    found = {place for place in PLACES if os.path.lexists(f"{system.root}{place}")}
    return found | ({"user"} if system("id", "edgefer", check=False).returncode == 0 else set())


def a_face() -> Path:
    """A picture of a person that a package brings along."""
    from matplotlib import get_data_path

    return Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"
