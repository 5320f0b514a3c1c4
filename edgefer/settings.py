"""Every EDGEFER_ variable, its meaning and its default.

Values come from the environment, then systemd credentials ($CREDENTIALS_DIRECTORY), then, unless it is the service that
runs, a `.env` file in the current folder. docs/settings.md is generated from this file.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as UnparsableError

from edgefer.cameras import parse_uri, source_module
from edgefer.errors import SettingsError, UsageError
from edgefer.files import expand_home, read_bounded

PREFIX = "EDGEFER_"
ENV_FILE = Path(".env")
MAX_FILE_BYTES = 2**16
"""Of a .env, and of a password's file: the latter is sent whole to the broker, as an MQTT field holds no more."""
LOCAL_SCHEMES = ("file://", "images://", "v4l2://", "picamera2://", "sample://", "synthetic://")
"""Of cameras' addresses: what stands after them is a path and options, and no secret."""

Score = Annotated[float, Field(gt=0, lt=1)]


def _known_home(path: Path) -> Path:
    expanded = expand_home(path)
    if str(expanded).startswith("~"):
        raise ValueError(f"nobody here has the home {path.parts[0]}")
    return expanded


UserPath = Annotated[Path, AfterValidator(_known_home)]
"""A path in which `~` is a home: no shell has seen it in a .env or an EnvironmentFile."""


class Group(BaseModel):
    """A group of settings: its variables are EDGEFER_GROUP__NAME."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class FrameSettings(Group):
    """What is asked of the camera, and how its picture is turned upright."""

    width: Annotated[int, Field(ge=64, le=7680)] = 640
    """Width asked of a camera, in pixels; the camera may give another."""
    height: Annotated[int, Field(ge=64, le=4320)] = 480
    """Height asked of a camera, in pixels."""
    fps: Annotated[float, Field(gt=0, le=240)] = 30
    """Frames a second asked of a camera."""
    rotation: Literal[0, 90, 180, 270] = 0
    """Turn the picture clockwise by this many degrees, for a camera that is mounted so."""
    mirror: bool = False
    """Swap left and right."""

    @field_validator("rotation", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdecimal() else value


class MqttSettings(Group):
    """The broker."""

    host: Annotated[str, Field(min_length=1, max_length=255)] = "localhost"
    """Name or address of the broker."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the broker; 1883, or 8883 with TLS, when not set."""
    username: Annotated[str, Field(max_length=1024)] | None = None
    """User, where the broker asks for one."""
    password: SecretStr | None = None
    """Password of that user. A file or a systemd credential keeps it out of the process's environment."""
    password_file: UserPath | None = None
    """A file that holds the password, instead of EDGEFER_MQTT__PASSWORD."""
    tls: bool = False
    """Encrypt, and check the broker's certificate."""
    ca_file: UserPath | None = None
    """PEM file of the authority that signed the broker's certificate; the system's authorities when not set."""
    cert_file: UserPath | None = None
    """PEM file of the client certificate, where the broker asks for one."""
    key_file: UserPath | None = None
    """PEM file of the client certificate's key."""
    prefix: Annotated[str, Field(max_length=256)] = "edgefer"
    """The first part of every topic; the second is the device's name."""

    @field_validator("host")
    @classmethod
    def _bare_host(cls, value: str) -> str:
        if set("/@ []") & set(value) or value.count(":") == 1:  # ::1 has more of them
            raise ValueError("the name or address alone, without mqtt://, user, port and brackets")
        return value

    @field_validator("prefix")
    @classmethod
    def _topic(cls, value: str) -> str:
        if not all(_is_topic_level(level) for level in value.split("/")):
            raise ValueError("a topic's part may not be empty nor hold `+`, `#` or control characters")
        return value

    @field_validator("password_file", "ca_file", "cert_file", "key_file")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is not None and not os.access(value, os.R_OK):
            raise ValueError(f"{value} isn't there or can't be read")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> MqttSettings:
        passwords = [value for value in (self.password, self.password_file) if value is not None]
        is_half = (self.cert_file is None) != (self.key_file is None)
        is_idle = not self.tls and (self.ca_file or self.cert_file)
        wrong = {
            "set only one of EDGEFER_MQTT__PASSWORD and EDGEFER_MQTT__PASSWORD_FILE": len(passwords) > 1,
            "a password needs EDGEFER_MQTT__USERNAME": passwords and self.username is None,
            "EDGEFER_MQTT__CERT_FILE and EDGEFER_MQTT__KEY_FILE go together": is_half,
            "a certificate is of use only with EDGEFER_MQTT__TLS=true": is_idle,
        }
        if any(wrong.values()):
            raise ValueError("; ".join(problem for problem, is_so in wrong.items() if is_so))
        return self

    @property
    def actual_port(self) -> int:
        """The port that is connected to."""
        return self.port or (8883 if self.tls else 1883)

    def read_password(self) -> str | None:
        """The password, from wherever it is kept."""
        if self.password_file is not None:
            return read_bounded(self.password_file, MAX_FILE_BYTES).decode().rstrip("\r\n")
        return None if self.password is None else self.password.get_secret_value()


class EventsSettings(Group):
    """How often, and for how long, events are worth sending."""

    interval_s: Annotated[float, Field(ge=0.1, le=3600)] = 5
    """Seconds between `updated` events of a face that stays in view and doesn't change."""
    expiry_s: Annotated[float, Field(ge=1, le=604800)] = 3600
    """Seconds after which an event that couldn't be sent is dropped, and a broker drops it (MQTT 5)."""
    store: bool = True
    """Keep events that wait for longer than a second in the state folder, so that they outlive a restart."""


class DetectorSettings(Group):
    """Finding faces."""

    model: Annotated[str, Field(min_length=1)] | None = None
    """A shipped model's name or a path to a .tflite with its card; when not set, `near`, and `far` for pictures
    (`analyze`, `enroll --images`, `people relearn`)."""
    min_score: Score | None = None
    """How sure the detector must be of a face; the card's threshold when not set."""
    min_face_px: Annotated[float, Field(ge=0)] = 0
    """Faces smaller than this (the side of the square of the box's area, in pixels of the frame) are left out."""


class IdentitySettings(Group):
    """Telling who it is."""

    enabled: bool = True
    """Compare faces with the people who were enrolled."""
    model: Annotated[str, Field(min_length=1)] = "identity-112"
    """A shipped model's name, or a path to a .tflite with its card."""
    threshold: Score | None = None
    """The similarity from which a face is somebody known; the card's thresholds, of tracks and of single pictures, when
    not set. Higher is stricter."""


class EmotionSettings(Group):
    """Reading emotions."""

    enabled: bool = True
    """Read the emotion of each face."""
    model: Annotated[str, Field(min_length=1)] = "emotion-48"
    """A shipped model's name, or a path to a .tflite with its card."""


class GallerySettings(Group):
    """The people we know."""

    key: SecretStr | None = None
    """A secret that seals the stored faces with AES-GCM (needs the `seal` extra); best as a systemd credential."""


def sink_names() -> list[str]:
    """Every sink that there is: the modules of sinks/."""
    return sorted(path.stem for path in (Path(__file__).parent / "sinks").glob("[a-z]*.py"))


def _is_topic_level(text: str) -> bool:
    return bool(text) and text.isprintable() and not set("+#") & set(text)


def _default_state_dir() -> Path:
    # systemd gives one folder, or several with colons between; ours is the first.
    if folder := os.environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(folder)
    return expand_home(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "edgefer"


class Settings(BaseSettings):
    """All settings of edgefer."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="ignore",  # a .env may hold other programs' variables; our own unknown names are found by load_settings
        frozen=True,
        use_attribute_docstrings=True,
    )

    device: Annotated[str, Field(max_length=64)] = Field(default_factory=socket.gethostname)
    """The name of this machine in topics and events; the host's name when not set. Not with `+`, `#` or `/`."""
    camera: Annotated[str, Field(min_length=1, max_length=4096)] = "auto"
    """The camera's URI, as docs/cameras.md lists them; `auto` takes the first camera found."""
    state_dir: UserPath = Field(default_factory=_default_state_dir)
    """Where people and waiting events are kept; $STATE_DIRECTORY, else edgefer/ in the XDG state folder."""
    sinks: str = "mqtt"
    """Where events go: `mqtt`, `stdout` (JSON lines), or both with a comma between."""
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    """Threads a model runs on. One is best where one face is in view; two help a Pi with many."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is logged."""
    frame: FrameSettings = FrameSettings()
    mqtt: MqttSettings = MqttSettings()
    events: EventsSettings = EventsSettings()
    detector: DetectorSettings = DetectorSettings()
    identity: IdentitySettings = IdentitySettings()
    emotion: EmotionSettings = EmotionSettings()
    gallery: GallerySettings = GallerySettings()

    @field_validator("device")
    @classmethod
    def _topic(cls, value: str) -> str:
        if not _is_topic_level(value) or "/" in value:
            raise ValueError(
                "the name is a part of every topic: it may not be empty nor hold `/`, `+`, `#` or control characters"
            )
        return value

    @field_validator("camera")
    @classmethod
    def _is_one(cls, value: str) -> str:
        try:
            if value != "auto":
                uri = parse_uri(value)
                if "://" in value:  # most settings need no OpenCV
                    source_module(uri.scheme)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("sinks")
    @classmethod
    def _known_once(cls, value: str) -> str:
        names, known = value.split(","), sink_names()
        if not set(names) <= set(known) or len(set(names)) < len(names):
            raise ValueError(f"one or more of {', '.join(known)}, each once, with a comma between")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over credentials over .env."""
        credentials = NestedSecretsSettingsSource(
            file_secret_settings, secrets_dir=_credentials_folder(), secrets_dir_missing="ok"
        )
        # An empty one counts as not set, as in the environment: the unit's default where root has written no secret.
        credentials.env_vars = {name: value for name, value in credentials.env_vars.items() if value}
        return init_settings, env_settings, credentials, dotenv_settings


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable: its name, its place in the settings, what it means, its values, its default, and its group's title.

    `secret` ones are never shown; `is_open` ones may be shown whole: an address can hold a password too.
    """

    name: str
    path: tuple[str, ...]
    meaning: str
    values: str
    default: str
    secret: bool
    group: str

    @property
    def is_open(self) -> bool:
        """Whether its value may be shown as it is."""
        return not self.secret and self.path not in (("camera",), ("mqtt", "host"))


def variables() -> Iterator[Variable]:
    """Every variable, in the order of the settings above."""
    yield from _variables(Settings, (), "")


def _variables(model: type[BaseModel], path: tuple[str, ...], group: str) -> Iterator[Variable]:
    for name, field in model.model_fields.items():
        here = (*path, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables(field.annotation, here, (field.annotation.__doc__ or "").strip())
            continue
        yield Variable(
            name=PREFIX + "__".join(here).upper(),
            path=here,
            meaning=field.description or "",
            values=_values(TypeAdapter(field.rebuild_annotation()).json_schema()),
            default="" if field.default_factory or field.default is None else show(field.default),
            secret=SecretStr in (field.annotation, *get_args(field.annotation)),
            group=group,
        )


_signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _values(schema: dict[str, object]) -> str:
    """Which values a variable takes, from the JSON Schema of its type; empty where any text will do."""
    if "anyOf" in schema:  # a value or none
        return _values(cast("list[dict[str, object]]", schema["anyOf"])[0])
    if "enum" in schema:
        return ", ".join(map(str, cast("list[object]", schema["enum"])))
    kind = {"boolean": "true, false", "integer": "whole number", "number": "number"}.get(str(schema.get("type")), "")
    limits = [f"{sign} {schema[limit]:g}" for limit, sign in _signs.items() if limit in schema]
    return " ".join([kind, ", ".join(limits)]).strip()


def show(value: object) -> str:
    """A value as it is written in a variable; asterisks for a secret, and for what may be one in an address."""
    if isinstance(value, bool):
        return str(value).lower()
    text = "" if value is None else str(value)
    _, scheme, rest = re.split("^([A-Za-z][A-Za-z0-9+.-]*://|)", text, maxsplit=1)
    if scheme.lower() in LOCAL_SCHEMES:
        return text
    user, at, address = rest.rpartition("@")
    if at and (scheme or ":" in user):
        rest = f"***@{address}"
    # What is asked of a network camera, be it in the path (/user=admin&password=...), and the properties of a pipeline.
    return scheme + re.sub("([?#=]).*", r"\1***", rest, flags=re.DOTALL)


def load_settings(**overrides: object) -> Settings:
    """The settings of this process; SettingsError lists everything that is wrong with them.

    `overrides` are what a command fixes for itself; they win over every variable.
    """
    problems: list[str] = []
    try:
        if _env_file() is not None:
            problems += _lost_lines(read_bounded(ENV_FILE, MAX_FILE_BYTES).decode())
        problems += _unknown_names()
        overrides["_env_file"] = _env_file()
        settings = Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        # What is in a group's own name, EDGEFER_MQTT={...}, says nothing more: there is no such setting.
        unknown = tuple(problem.partition(" ")[0].upper() for problem in problems)
        problems += [
            _explain(details)
            for details in error.errors()
            if not details["loc"] or f"{PREFIX}{details['loc'][0]}".upper() not in unknown
        ]
    except UnparsableError:
        pass  # a group's own name, EDGEFER_MQTT: it was found among the unknown ones
    except UnicodeDecodeError as error:
        problems.append(f"{ENV_FILE.absolute()} or a credential isn't text: {error.reason}")
    except OSError as error:
        problems.append(f"{error.filename} can't be read: {error.strerror}")
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise SettingsError(
            f"{len(problems)} problem(s) with the settings (`edgefer settings` lists them all):\n{listed}"
        )
    return settings


def _lost_lines(env_file: str) -> Iterator[str]:
    """Settings in a .env that say nothing as they are written; what other programs have there is theirs."""
    for binding in parse_stream(io.StringIO(env_file)):
        lost = binding.original.string
        if binding.error and PREFIX in lost:
            line = binding.original.line + lost[: lost.index(PREFIX)].count("\n")
            yield f"{ENV_FILE.absolute()}, line {line}: no NAME=value, or a quote stays open"


def _unknown_names() -> Iterator[str]:
    known = [variable.name for variable in variables()]
    credentials = _credentials_folder()
    places: list[tuple[str, list[str]]] = [("the environment", list(os.environ))]
    if credentials is not None and credentials.is_dir():
        places.append((str(credentials), [path.name for path in credentials.iterdir()]))
    if (env_file := _env_file()) is not None:
        places.append((str(env_file), list(dotenv_values(env_file))))
    for place, names in places:
        for name in names:
            if name.upper().startswith(PREFIX) and name.upper() not in known:
                members = [variable for variable in known if variable.startswith(f"{name.upper()}__")]
                nearest = members or difflib.get_close_matches(name.upper(), known, 1)
                hint = f"; did you mean {', '.join(nearest)}?" if nearest else ""
                yield f"{name} (in {place}): there is no such setting{hint}"


def _env_file() -> Path | None:
    # The service's settings are root's to make: what lies in the folder that `sudo edgefer` is run in isn't.
    return ENV_FILE if "STATE_DIRECTORY" not in os.environ and ENV_FILE.is_file() else None


def _credentials_folder() -> Path | None:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(folder) if folder else None


def _explain(details: ErrorDetails) -> str:
    message = details["msg"].removeprefix("Value error, ")
    variable = next((v for v in variables() if v.path == details["loc"][: len(v.path)]), None)
    if variable is None:  # of a group as a whole: the message names its variables
        return message
    given = f"={details['input']}" if variable.is_open else ""
    return f"{variable.name}{given}: {message}"
