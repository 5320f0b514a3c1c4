"""The command line: one short function a command."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import io
import logging
import os
import re
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from edgefer import __version__, logs
from edgefer.errors import EdgeferError, InputError, SettingsError, UsageError
from edgefer.escape import escape_lines
from edgefer.settings import Settings, load_settings, show, variables

EXAMPLES = """
examples:
  edgefer demo                            faces, names and emotions, with no camera and no broker
  edgefer doctor                          does everything work here?
  edgefer enroll Ada --images ~/ada       learn a face from a folder of pictures
  edgefer enroll Ada --camera             learn the face before the camera
  edgefer analyze photo.jpg --json        one-shot, no broker
  EDGEFER_CAMERA=0 EDGEFER_MQTT__HOST=broker.local edgefer run

Everything is set by EDGEFER_ variables: `edgefer settings` lists them.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; gives its exit code (edgefer/errors.py lists them)."""
    if sys.stdout is None:  # it was closed
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # as long as the process is
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that can't show somebody's name shows the rest
    try:
        options = _parser().parse_args(arguments)
        logs.set_up()
        code: int = options.command(options)
        sys.stdout.flush()
    except EdgeferError as error:
        print(f"edgefer: {escape_lines(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `edgefer analyze ... | head`
        _drop_output()
        return 0
    except OSError as error:
        if error.errno not in (errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC):
            return _defect()
        if error.filename is None:  # what fails in a file has its name: it was `edgefer people export > FILE`
            _drop_output()
        where = "standard output" if error.filename is None else error.filename
        print(f"edgefer: {where} can't be written: {error.strerror}", file=sys.stderr)
        return InputError.exit_code
    except Exception:  # whatever it is, it wasn't foreseen
        return _defect()
    return code


def _defect() -> int:
    """Tell of the error that is being handled, which is a mistake of ours."""
    traceback.print_exc()
    print("edgefer: a defect of edgefer's own: please report what stands above", file=sys.stderr)
    return EdgeferError.exit_code


def _drop_output() -> None:
    """Nothing more goes to standard output, not even what waits to be written at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(_: argparse.Namespace) -> int:
    """The daemon: camera to MQTT, until SIGTERM; set up by EDGEFER_ variables."""
    settings = _settings()
    from edgefer import service  # noqa: PLC0415  # here and below: bad settings and `--help` need no OpenCV
    from edgefer.cameras import uri_is_a_setting  # noqa: PLC0415

    with service.stopped_by_signals() as stop, uri_is_a_setting():
        service.run(settings, stop)
    return 0


def demo(options: argparse.Namespace) -> int:
    """The daemon on a sample or a clip, with a broker of its own where none is configured."""
    from edgefer.demo import run_demo  # noqa: PLC0415

    return run_demo(_settings(), options.clip, as_json=options.json)


def analyze(options: argparse.Namespace) -> int:
    """The faces of pictures and videos, one-shot, without a broker."""
    from edgefer.analyze import analyze as analyze_files  # noqa: PLC0415

    return analyze_files(_settings(), options.files, as_json=options.json)


def enroll(options: argparse.Namespace) -> int:
    """Add a person to the gallery, from pictures or before the camera."""
    from edgefer.enroll import enroll_command  # noqa: PLC0415

    return enroll_command(
        _settings(), options.name, options.images, options.seconds, keep=options.keep_images, ignored=options.ignore
    )


def people(options: argparse.Namespace) -> int:
    """Who is known: list, remove, rename, merge, export, import, relearn, check."""
    from edgefer import people as commands  # noqa: PLC0415

    code: int = getattr(commands, options.action)(_settings(), options)
    return code


def doctor(options: argparse.Namespace) -> int:
    """What works here, what doesn't, and how to mend it."""
    from edgefer.doctor import examine  # noqa: PLC0415
    from edgefer.problems import KINDS  # noqa: PLC0415

    if options.explain:
        for known in KINDS:
            print(f"{known.part}/{known.code} ({known.status}): {known.meaning}\n    {known.fix}")
        return 0
    code = 0
    for check in examine(_settings(), offline=options.offline):
        verdict = "ok  " if check.problem is None else "FAIL" if check.exit_code else "note"
        print(f"{verdict} {check.name:<12} {escape_lines(check.problem or check.found)}", flush=True)
        code = code or check.exit_code
    return code


def bench(options: argparse.Namespace) -> int:
    """What each stage costs on this machine."""
    from edgefer.bench import bench_command  # noqa: PLC0415

    return bench_command(_settings(), options.image, as_json=options.json)


def settings(_: argparse.Namespace) -> int:
    """Every variable: value, default, meaning."""
    values, problem = None, None
    try:
        values = load_settings()
    except SettingsError as error:
        problem = error
    for variable in variables():
        shown = variable.default
        if values is not None:
            shown = show(functools.reduce(getattr, variable.path, values))
        elif given := os.environ.get(variable.name):
            shown = "**********" if variable.secret else show(given)
        changed = variable.default and shown != variable.default
        print(f"{variable.name}={shown}" + (f"   (default: {variable.default})" if changed else ""))
        print(f"    {variable.meaning}" + (f" [{variable.values}]" if variable.values else ""))
    if problem:
        raise problem
    return 0


def _settings() -> Settings:
    loaded = load_settings()
    logging.getLogger("edgefer").setLevel(loaded.log_level.upper())
    return loaded


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        hint = "; what holds a space is put in quotes" if re.match("unrecognized arguments: [^-]", message) else ""
        raise UsageError(f"{message}{hint}\n{self.format_usage().strip()}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="edgefer",
        description="Faces, names and emotions from a camera to MQTT.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edgefer {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: object) -> argparse.ArgumentParser:
        text = command.__doc__ or ""
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    add("run", run)
    demo_parser = add("demo", demo)
    demo_parser.add_argument(
        "clip", nargs="?", help="a video, or a camera's URI; two sample pictures in motion otherwise"
    )
    demo_parser.add_argument("--json", action="store_true", help="print the payloads as they come")
    analyze_parser = add("analyze", analyze)
    analyze_parser.add_argument("files", nargs="+", metavar="FILE", help="a picture, a video, or a folder of pictures")
    analyze_parser.add_argument("--json", action="store_true", help="JSON lines, one a picture or video frame")
    enroll_parser = add("enroll", enroll)
    enroll_parser.usage = (
        "%(prog)s NAME (--images PATH [PATH ...] | --camera [--seconds SECONDS]) [--keep-images] [--ignore]"
    )
    enroll_parser.add_argument("name", metavar="NAME", help="the person's name, as it will be published")
    source = enroll_parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", nargs="+", type=Path, metavar="PATH", help="pictures, or folders of pictures")
    source.add_argument("--camera", action="store_true", help="whoever is before the camera, alone")
    enroll_parser.add_argument(
        "--seconds", type=_seconds, default=5.0, help="how long to look, with --camera (%(default)g)"
    )
    enroll_parser.add_argument(
        "--keep-images", action="store_true", help="keep pictures of the face, for `people relearn` with a later model"
    )
    enroll_parser.add_argument(
        "--ignore", action="store_true", help="never report by name: a poster, a statue, a face on a box"
    )
    _add_people(add("people", people))
    doctor_parser = add("doctor", doctor)
    doctor_parser.add_argument(
        "--explain", action="store_true", help="every problem that `health` can tell of, and what to do about it"
    )
    doctor_parser.add_argument("--offline", action="store_true", help="look at neither the camera nor the broker")
    bench_parser = add("bench", bench)
    bench_parser.add_argument("image", nargs="?", type=Path, help="a picture with one face; a sample picture otherwise")
    bench_parser.add_argument("--json", action="store_true", help="one JSON object")
    add("settings", settings)
    return parser


def _add_people(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="_")

    def add(command: str, action: str, text: str, **arguments: str) -> argparse.ArgumentParser:
        added = commands.add_parser(command, help=text, description=text)
        added.set_defaults(action=action)
        for argument, meaning in arguments.items():
            added.add_argument(argument, metavar=argument.upper(), help=meaning)
        return added

    listing = add("list", "list_people", "Everybody who is enrolled.")
    add(
        "remove",
        "remove",
        "Forget a person: faces, pictures, and what still goes round with the name.",
        name="whom (-- NAME where it begins with a dash)",
    )
    add("rename", "rename", "Give a person another name.", name="the name so far", to="the new one")
    add("merge", "merge", "Make one person of two.", name="who is INTO too", into="whose name is kept")
    add("export", "export", "Write everybody's faces as JSON, unsealed: personal data.").add_argument(
        "file", nargs="?", type=Path, help="for its owner only; standard output otherwise"
    )
    importing = add("import", "import_", "Add people from JSON: an export, or names with their embeddings.")
    importing.add_argument("file", type=Path, help='an export, or {"Ada": [numbers], "Grace": [[numbers], [numbers]]}')
    importing.add_argument("--model-id", help="the model that made the embeddings, where the file doesn't say")
    add("relearn", "relearn_people", "Learn anew, with the model in use, whose pictures were kept.")
    checking = add("check", "check", "How well people are told apart, from each other and from strangers.")
    for one in (listing, checking):
        one.add_argument("--json", action="store_true", help="as JSON")


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= 60:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to 60")


if __name__ == "__main__":
    sys.exit(main())
