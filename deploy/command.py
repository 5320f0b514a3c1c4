#!/usr/bin/python3 -I
"""The command `edgefer` of an installed machine: run by root, it acts as the service's user on its people and settings.

It may read what root may (pictures in somebody's home, the secrets in /etc/edgefer/credentials), but writes as the
service's user: it leaves no file that the service can't read. Anybody else is told to use sudo.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import sys
from pathlib import Path

USER = "edgefer"
ENV_FILE = Path("/etc/edgefer/edgefer.env")
CREDENTIALS = Path("/etc/edgefer/credentials")
STATE = Path("/var/lib/edgefer")
RUNTIME = Path("/run/edgefer")
COMMAND = Path(__file__).resolve().parent / "bin" / "edgefer"
"""The version whose part this file is."""
OPEN_COMMANDS = {"demo", "bench"}
"""These touch neither the service's people nor its settings."""
HELP = {"-h", "--help", "--version"}


def main(arguments: list[str]) -> int:
    """Become the edgefer that was asked for; returns only where that isn't allowed."""
    words = [str(COMMAND), *arguments]
    if os.geteuid() == 0:
        become_service(words)
    is_open = not arguments or arguments[0] in OPEN_COMMANDS or HELP & set(arguments)
    if is_open or os.environ.get("EDGEFER_STATE_DIR") or os.geteuid() == _user_id():
        os.execv(COMMAND, words)
    print(
        f"edgefer: `{arguments[0]}` works on the people and settings of the service, which are root's to use:\n"
        f"  sudo edgefer {shlex.join(arguments)}\n"
        "or set EDGEFER_STATE_DIR to a folder of your own to keep people apart from the service's.",
        file=sys.stderr,
    )
    return 64


def become_service(words: list[str]) -> None:
    """Become the service's user, who keeps one right of root's: to read every file."""
    if _user_id() is None:
        sys.exit(f"edgefer: there is no user {USER}: run install.sh again")
    # What was given on the command line (sudo EDGEFER_CAMERA=0 edgefer doctor) wins over the file, as in a shell.
    environment = read_environment(ENV_FILE) | os.environ
    environment |= {
        "HOME": str(STATE),
        "USER": USER,
        "LOGNAME": USER,
        "STATE_DIRECTORY": str(STATE),
        "RUNTIME_DIRECTORY": str(RUNTIME),
        "CREDENTIALS_DIRECTORY": str(CREDENTIALS),
    }
    os.umask(0o077)
    right = "-all,+dac_read_search"
    setpriv = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--no-new-privs"]
    setpriv += [f"--inh-caps={right}", f"--ambient-caps={right}", f"--bounding-set={right}", "--"]
    os.execvpe(setpriv[0], setpriv + words, environment)


def read_environment(path: Path) -> dict[str, str]:
    """The variables of a file as systemd's EnvironmentFile= reads it; none where it isn't there."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return {}
    values = {}
    for line in text.replace("\\\n", "").splitlines():
        name, equals, rest = line.partition("=")
        if equals and not name.lstrip().startswith(("#", ";")):
            values[name.strip()] = _value(rest)
    return values


def _value(text: str) -> str:
    """Quotes count at the start and after one another; elsewhere they are letters, as in `Ada's room`."""
    value = ""
    while quoted := re.match(r"""\s*(?:'([^']*)'|"((?:\\.|[^"\\])*)")""", text):
        value += quoted[1] if quoted[1] is not None else re.sub(r'\\(["\\`$])', r"\1", quoted[2])
        text = text[quoted.end() :]
    return value + re.sub(r"\\(.)", r"\1", text.strip())


def _user_id() -> int | None:
    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
