"""Log lines: with fields to a journal's socket, readable elsewhere, and never too many."""

import io
import logging
import os
import socket
import struct
import subprocess
import sys

import pytest
from brokers import wait_until

from edgefer import logs

log = logging.getLogger("edgefer.test")


def fields(datagram: bytes) -> dict[str, str]:
    """An entry, taken apart as the journal does."""
    told = {}
    while datagram:
        name, _, rest = datagram.partition(b"\n")
        (length,) = struct.unpack_from("<Q", rest)
        told[name.decode()] = rest[8 : 8 + length].decode()
        assert rest[8 + length : 9 + length] == b"\n"
        datagram = rest[9 + length :]
    return told


@pytest.fixture
def journal(tmp_path):
    """A journal's end of the socket, and a handler that writes to it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "journal"))
    listener.settimeout(10)
    handler = logs.JournalHandler(tmp_path / "journal")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield lambda: fields(listener.recv(65536))
    log.removeHandler(handler)
    handler.close()
    listener.close()


def test_a_line_goes_to_the_journal_with_its_fields(journal):
    log.error("the camera is %s", "gone", extra={"EDGEFER_CODE": "lost", "EDGEFER_CAMERA": "v4l2:///dev/video0"})
    told = journal()
    assert told["MESSAGE"] == "the camera is gone"
    assert (told["EDGEFER_CODE"], told["EDGEFER_CAMERA"]) == ("lost", "v4l2:///dev/video0")
    assert (told["PRIORITY"], told["LOGGER"], told["SYSLOG_IDENTIFIER"]) == ("3", "edgefer.test", "edgefer")
    assert told["CODE_FUNC"] == "test_a_line_goes_to_the_journal_with_its_fields"
    assert "EDGEFER_TRACK" not in told


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", "7"), ("info", "6"), ("warning", "4"), ("error", "3"), ("critical", "2")]
)
def test_levels_are_syslogs(journal, level, priority):
    getattr(log, level)("hello")
    assert journal()["PRIORITY"] == priority


def test_a_line_cannot_forge_another_field(journal):
    log.info("hello\nPRIORITY=0\nEDGEFER_CODE=none\n\0", extra={"EDGEFER_CAMERA": "x\nMESSAGE=forged"})
    told = journal()
    assert told["MESSAGE"] == "hello\nPRIORITY=0\nEDGEFER_CODE=none\n\0"
    assert told["PRIORITY"] == "6"
    assert told["EDGEFER_CAMERA"] == "x\nMESSAGE=forged"
    assert "EDGEFER_CODE" not in told


def test_an_error_comes_with_its_traceback_and_a_long_line_is_cut(journal):
    try:
        int("some reason")
    except ValueError:
        log.exception("it failed")
    assert "ValueError: invalid literal for int() with base 10: 'some reason'" in journal()["MESSAGE"]
    log.info("x" * 1_000_000)
    assert journal()["MESSAGE"] == "x" * logs.LONGEST


def test_no_journal_is_an_error_at_once(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        logs.JournalHandler(tmp_path / "none")


def line_from(path: str, seconds: float, text: str = "again") -> logging.LogRecord:
    record = logging.LogRecord("edgefer", logging.INFO, path, 7, "%s", (text,), None)
    record.created = seconds
    return record


def test_what_comes_too_often_is_left_out_and_counted():
    limit = logs.RateLimit()
    written = [limit.filter(line_from("a.py", second / 10)) for second in range(100)]
    assert written == [True] * logs.BURST + [False] * (100 - logs.BURST)
    assert limit.filter(line_from("b.py", 10))  # another place isn't concerned
    later = line_from("a.py", logs.BURST_S + 1, "once more")
    assert limit.filter(later)
    assert later.getMessage() == f"once more ({100 - logs.BURST} more like this were left out)"
    after_that = line_from("a.py", logs.BURST_S + 2)
    assert limit.filter(after_that)
    assert after_that.getMessage() == "again"


def test_a_clock_that_is_set_back_silences_nothing():
    limit = logs.RateLimit()
    for _ in range(2 * logs.BURST):
        limit.filter(line_from("a.py", 3600))
    assert limit.filter(line_from("a.py", 5))


def test_the_count_is_told_though_nothing_more_is_logged(monkeypatch, closing):
    monkeypatch.setattr(logs, "BURST_S", 0.5)
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.addFilter(logs.RateLimit())
    log.addHandler(handler)
    closing.callback(log.removeHandler, handler)
    for number in range(3 * logs.BURST):
        log.warning("the broker says no, %d", number)
    wait_until(lambda: "left out" in lines.getvalue(), "the count")
    written = lines.getvalue().splitlines()
    assert len(written) == logs.BURST + 1
    assert written[-1] == f"the broker says no, {logs.BURST} ({2 * logs.BURST} more like this were left out)"


@pytest.mark.parametrize("under_systemd", [True, False])
def test_a_process_knows_whether_its_lines_go_to_the_journal(tmp_path, under_systemd):
    code = (
        "import logging, pathlib; from edgefer import logs; logs.set_up(journal=pathlib.Path('/nonexistent'))\n"
        "logging.getLogger('edgefer').warning('two\\nlines')"
    )
    with (tmp_path / "log").open("w") as file:
        stream = f"{os.fstat(file.fileno()).st_dev}:{os.fstat(file.fileno()).st_ino}"
        environment = os.environ | {"JOURNAL_STREAM": stream if under_systemd else "1:2"}
        subprocess.run([sys.executable, "-c", code], env=environment, stderr=file, check=True, timeout=60)
    # One entry stays one line: what a name or a broker says can't forge another.
    expected = "<4>edgefer: two\\nlines\n" if under_systemd else "WARNING edgefer: two\\nlines\n"
    assert (tmp_path / "log").read_text() == expected
