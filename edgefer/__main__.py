"""The command line: one short function a command."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from edgefer import __version__
from edgefer.errors import EdgeferError, SettingsError, UsageError
from edgefer.settings import Settings, load_settings, show, variables

if TYPE_CHECKING:
    from edgefer.gallery import Gallery

EXAMPLES = """
examples:
  edgefer demo                            faces, names and emotions, with no camera and no broker
  edgefer doctor                          does everything work here?
  edgefer enroll Ada --images ~/ada       learn a face from a folder of pictures
  edgefer analyze photo.jpg --json        one-shot, no broker
  EDGEFER_CAMERA=0 EDGEFER_MQTT__HOST=broker.local edgefer run

Everything is set by EDGEFER_ variables: `edgefer settings` lists them.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; gives its exit code (edgefer/errors.py lists them)."""
    try:
        options = _parser().parse_args(arguments)
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
        code: int = options.command(options)
        sys.stdout.flush()
    except EdgeferError as error:
        print(f"edgefer: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `edgefer analyze ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def run(_: argparse.Namespace) -> int:
    """The daemon: camera to MQTT, until SIGTERM."""
    from edgefer import service  # noqa: PLC0415  # here and below: `settings` and `--help` need no OpenCV

    settings = _settings()
    with service.stopped_by_signals() as stop:
        try:
            service.run(settings, stop)
        except UsageError as error:  # of the camera's URI, which is a setting here
            raise SettingsError(f"EDGEFER_CAMERA: {error}") from error
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
    """Add a person to the gallery."""
    from edgefer.enroll import enroll_images  # noqa: PLC0415

    used = 0
    for tried in enroll_images(_settings(), options.name, options.images):
        print(f"{tried.path}: {'used' if tried.refused is None else f'refused: {tried.refused}'}", flush=True)
        used += tried.refused is None
    print(f"{options.name}: {used} face(s) enrolled")
    return 0


def people(options: argparse.Namespace) -> int:
    """Who is known: list them, remove one."""
    code: int = options.action(options)
    return code


def people_list(_: argparse.Namespace) -> int:
    """Everybody who is enrolled."""
    with _gallery(_settings()) as gallery:
        people = gallery.people()
    for person in people:
        print(f"{person.name:<32} {person.templates} face(s)")
    if not people:
        print("nobody is enrolled; `edgefer enroll NAME --images PATH...` adds somebody", file=sys.stderr)
    return 0


def people_remove(options: argparse.Namespace) -> int:
    """Forget a person."""
    with _gallery(_settings()) as gallery:
        removed = gallery.remove(options.name)
    if not removed:
        raise UsageError(f"nobody named {options.name!r} is enrolled; `edgefer people list` shows who is")
    print(f"{options.name}: {removed} face(s) removed")
    return 0


def doctor(options: argparse.Namespace) -> int:
    """What works here, what doesn't, and how to mend it."""
    from edgefer.doctor import examine  # noqa: PLC0415

    code = 0
    for check in examine(_settings(), offline=options.offline):
        print(
            f"{'ok  ' if check.problem is None else 'FAIL'} {check.name:<12} {check.problem or check.found}", flush=True
        )
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


def _gallery(settings: Settings) -> closing[Gallery]:
    from edgefer.gallery import open_gallery  # noqa: PLC0415
    from edgefer.vision.model import find_card  # noqa: PLC0415

    return closing(open_gallery(settings, find_card(settings.identity.model)))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}")


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
    analyze_parser.add_argument("files", nargs="+", metavar="FILE", help="a picture or a video")
    analyze_parser.add_argument("--json", action="store_true", help="JSON lines, one a picture or video frame")
    enroll_parser = add("enroll", enroll)
    enroll_parser.add_argument("name", help="the person's name, as it will be published")
    enroll_parser.add_argument(
        "--images", nargs="+", required=True, type=Path, metavar="PATH", help="pictures, or folders of pictures"
    )
    groups = add("people", people).add_subparsers(title="commands", required=True, metavar="COMMAND")
    groups.add_parser("list", help=people_list.__doc__).set_defaults(action=people_list)
    remove_parser = groups.add_parser("remove", help=people_remove.__doc__)
    remove_parser.add_argument("name")
    remove_parser.set_defaults(action=people_remove)
    doctor_parser = add("doctor", doctor)
    doctor_parser.add_argument("--offline", action="store_true", help="look at neither the camera nor the broker")
    bench_parser = add("bench", bench)
    bench_parser.add_argument("image", nargs="?", type=Path, help="a picture with one face; a sample picture otherwise")
    bench_parser.add_argument("--json", action="store_true", help="one JSON object")
    add("settings", settings)
    return parser


if __name__ == "__main__":
    sys.exit(main())
