"""The settings: what is accepted, what is refused, and how it is told."""

import os
from pathlib import Path

import pytest

from edgefer.errors import SettingsError
from edgefer.settings import Settings, load_settings, variables


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_STATE_HOME")


def refusal(monkeypatch, **values: str) -> str:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert caught.value.exit_code == 78
    return str(caught.value)


def test_defaults_need_no_variable():
    settings = load_settings()
    assert settings.device == os.uname().nodename
    assert (settings.camera, settings.sinks, settings.threads) == ("auto", "mqtt", 1)
    assert (settings.mqtt.actual_port, settings.events.interval_s, settings.events.expiry_s) == (1883, 5, 3600)


def test_values_come_nested_from_the_environment(monkeypatch):
    monkeypatch.setenv("EDGEFER_MQTT__HOST", "broker.local")
    monkeypatch.setenv("EDGEFER_MQTT__TLS", "true")
    monkeypatch.setenv("EDGEFER_FRAME__ROTATION", "90")
    monkeypatch.setenv("EDGEFER_LOG_LEVEL", "DEBUG")
    settings = load_settings()
    assert (settings.mqtt.host, settings.mqtt.actual_port) == ("broker.local", 8883)
    assert (settings.frame.rotation, settings.log_level) == (90, "debug")


def test_environment_wins_over_credentials_over_env_file(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text(
        "EDGEFER_DEVICE=file\nEDGEFER_MQTT__USERNAME=file\nEDGEFER_MQTT__PREFIX=file\nOTHER=1\n"
    )
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "EDGEFER_MQTT__PASSWORD").write_text("hidden\n")
    (credentials / "EDGEFER_MQTT__USERNAME").write_text("credential")
    (credentials / "another.secret").write_text("not ours")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    monkeypatch.setenv("EDGEFER_DEVICE", "environment")
    settings = load_settings()
    assert (settings.device, settings.mqtt.username, settings.mqtt.prefix) == ("environment", "credential", "file")
    assert settings.mqtt.read_password() == "hidden"


def test_an_empty_credential_counts_as_not_set(monkeypatch, tmp_path):
    (tmp_path / "EDGEFER_MQTT__PASSWORD").write_text("\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert load_settings().mqtt.read_password() is None


def test_the_service_takes_nothing_from_a_file_in_the_current_folder(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("EDGEFER_MQTT__HOST=evil.example\nEDGEFER_HOTS=1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    assert load_settings().mqtt.host == "localhost"


def test_password_file_is_read_without_its_newline(monkeypatch, tmp_path):
    (tmp_path / "password").write_text("pa ss\n")
    monkeypatch.setenv("EDGEFER_MQTT__USERNAME", "ada")
    monkeypatch.setenv("EDGEFER_MQTT__PASSWORD_FILE", str(tmp_path / "password"))
    assert load_settings().mqtt.read_password() == "pa ss"


def test_every_problem_is_listed_at_once_in_the_variables_name(monkeypatch):
    message = refusal(
        monkeypatch,
        EDGEFER_MQTT__PORT="99999",
        EDGEFER_EVENTS__INTERVAL_S="often",
        EDGEFER_FRAME__ROTATION="45",
        EDGEFER_DETECTOR__MIN_SCORE="2",
        EDGEFER_MQTT__HOTS="x",
    )
    assert message.startswith("5 problem(s)")
    for part in ("EDGEFER_MQTT__PORT=99999", "EDGEFER_EVENTS__INTERVAL_S=often", "EDGEFER_FRAME__ROTATION=45"):
        assert part in message
    assert "EDGEFER_DETECTOR__MIN_SCORE=2" in message
    assert (
        "EDGEFER_MQTT__HOTS (in the environment): there is no such setting; did you mean EDGEFER_MQTT__HOST?" in message
    )


def test_all_that_doesnt_fit_together_is_listed_at_once(monkeypatch, tmp_path):
    (tmp_path / "ca.crt").touch()
    message = refusal(monkeypatch, EDGEFER_MQTT__PASSWORD="x", EDGEFER_MQTT__CA_FILE=str(tmp_path / "ca.crt"))
    assert "a password needs EDGEFER_MQTT__USERNAME; a certificate is of use only with" in message


def test_a_groups_name_is_no_variable(monkeypatch):
    assert "did you mean EDGEFER_GALLERY__KEY?" in refusal(monkeypatch, EDGEFER_GALLERY="x")
    monkeypatch.delenv("EDGEFER_GALLERY")
    told = refusal(monkeypatch, EDGEFER_MQTT='{"port": "x", "bogus": 1}')
    assert told.startswith("1 problem(s)"), "what is in it says nothing more"


def test_an_env_file_that_is_not_text_is_told(monkeypatch, tmp_path):
    (tmp_path / ".env").write_bytes(b"EDGEFER_DEVICE=caf\xe9")
    assert f"{tmp_path}/.env or a credential isn't text" in refusal(monkeypatch)


def test_a_line_of_an_env_file_that_says_nothing_is_told(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text('\nset -a\nEDGEFER_DEVICE=hall\n\n\nEDGEFER_MQTT__HOST="abc\n')
    told = refusal(monkeypatch)
    assert f"{tmp_path}/.env, line 6: no NAME=value, or a quote stays open" in told
    assert told.startswith("1 problem"), "what is another program's is let be"
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert load_settings().mqtt.host == "localhost", "the service doesn't read it"


@pytest.mark.parametrize("host", ["broker:1883", "[::1]", "mqtt://broker"])
def test_a_host_is_no_address_with_a_port(monkeypatch, host):
    assert "EDGEFER_MQTT__HOST: the name or address alone" in refusal(monkeypatch, EDGEFER_MQTT__HOST=host)
    monkeypatch.setenv("EDGEFER_MQTT__HOST", "::1")
    assert load_settings().mqtt.host == "::1"


def test_a_home_is_understood_without_a_shell(monkeypatch):
    monkeypatch.setenv("EDGEFER_STATE_DIR", "~/faces")
    assert load_settings().state_dir == Path.home() / "faces"


@pytest.mark.parametrize("place", ["env file", "credential"])
def test_unknown_names_are_found_everywhere(monkeypatch, tmp_path, place):
    if place == "env file":
        (tmp_path / ".env").write_text("EDGEFER_CAMERRA=0\n")
    else:
        (tmp_path / "EDGEFER_CAMERRA").write_text("0")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert "did you mean EDGEFER_CAMERA?" in refusal(monkeypatch)


def test_no_secret_is_shown(monkeypatch):
    message = refusal(
        monkeypatch, EDGEFER_MQTT__PASSWORD="topsecret", EDGEFER_MQTT__PORT="x", EDGEFER_GALLERY__KEY="topsecret"
    )
    assert "topsecret" not in message
    monkeypatch.setenv("EDGEFER_MQTT__PORT", "1883")
    assert "topsecret" not in refusal(monkeypatch)  # a password without a user
    assert "EDGEFER_MQTT__USERNAME" in refusal(monkeypatch)


@pytest.mark.parametrize("name", ["a/b", "a+b", "#", "", "tab\t", "x" * 65])
def test_a_device_is_one_level_of_a_topic(monkeypatch, name):
    monkeypatch.setenv("EDGEFER_DEVICE", name)
    if name:  # an empty variable counts as not set
        assert "EDGEFER_DEVICE" in refusal(monkeypatch)
    else:
        assert load_settings().device == os.uname().nodename


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"EDGEFER_MQTT__CA_FILE": "/nowhere.pem"}, "EDGEFER_MQTT__CA_FILE=/nowhere.pem: /nowhere.pem isn't there"),
        ({"EDGEFER_MQTT__CA_FILE": "/etc/passwd"}, "EDGEFER_MQTT__TLS=true"),
        ({"EDGEFER_MQTT__TLS": "1", "EDGEFER_MQTT__CERT_FILE": "/etc/passwd"}, "EDGEFER_MQTT__KEY_FILE go together"),
        ({"EDGEFER_MQTT__PREFIX": "home//x"}, "EDGEFER_MQTT__PREFIX=home//x"),
        (
            {
                "EDGEFER_MQTT__USERNAME": "a",
                "EDGEFER_MQTT__PASSWORD": "b",
                "EDGEFER_MQTT__PASSWORD_FILE": "/etc/passwd",
            },
            "only one of",
        ),
    ],
)
def test_what_does_not_go_together_is_told(monkeypatch, values, told):
    assert told in refusal(monkeypatch, **values)


def test_state_dir_follows_systemd_then_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert load_settings().state_dir == Path("/xdg/edgefer")
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}:/second")
    assert load_settings().state_dir == tmp_path


def test_every_variable_says_what_it_means():
    listed = list(variables())
    assert len({variable.name for variable in listed}) == len(listed) > 30
    assert [v.name for v in listed if not v.meaning.endswith(".")] == []
    values = {v.name: v.values for v in listed}
    assert values["EDGEFER_FRAME__ROTATION"] == "0, 90, 180, 270"
    assert values["EDGEFER_MQTT__PORT"] == "whole number >= 1, <= 65535"
    assert values["EDGEFER_MQTT__TLS"] == "true, false"
    assert {v.name for v in listed if v.secret} == {"EDGEFER_MQTT__PASSWORD", "EDGEFER_GALLERY__KEY"}


def test_settings_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        Settings().device = "other"
