"""The MQTT sink against real brokers: what a subscriber receives, and what happens when the broker is no good."""

import json
import logging
import socket
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import jsonschema
import pytest
from brokers import PATIENCE_S, Broker, free_port, wait_until
from examples import BOOT_ID, face_event, frame, health, presence
from paho.mqtt.enums import MQTTProtocolVersion

from edgefer import broker as broker_module
from edgefer.broker import check_broker, client_id
from edgefer.broker_errors import why_unreachable
from edgefer.errors import BrokerError
from edgefer.messages import EventCounts
from edgefer.settings import EventsSettings, MqttSettings, Settings
from edgefer.sinks import mqtt as mqtt_module
from edgefer.sinks.mqtt import MqttSink

DOCS = Path(__file__).parent.parent / "docs"
TOPICS = "edgefer/hall-pi"

# paho leaves the socket of a failed handshake to the garbage collector; that none stays open is tested below.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed .*SSLSocket:ResourceWarning")


@pytest.fixture
def open_sink(closing):
    """Opens an MQTT sink that is closed after the test."""

    def open_sink(settings: Settings) -> MqttSink:
        sink = MqttSink(settings)
        closing.callback(sink.close, 0.0)
        return sink

    return open_sink


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.DEBUG)


def publish(sink: MqttSink, *seqs: int, age_s: float = 0) -> None:
    sink.publish(frame(time.monotonic() - age_s), [face_event(seq) for seq in seqs])


def face_seqs(received) -> list[int]:
    return [message.payload["seq"] for message in received if message.topic == f"{TOPICS}/face"]


def wait_connected(sink: MqttSink) -> None:
    wait_until(lambda: sink.delivers, "a connection")


def wait_for_problem(sink: MqttSink, *parts: str) -> str:
    def told() -> bool:
        problem = sink.state.problem
        return problem is not None and all(part in problem for part in parts)

    with suppress(AssertionError):
        wait_until(told, "a problem")
    assert told(), sink.state.problem
    return sink.state.problem or ""


def check_payload(message) -> None:
    kind = message.topic.rsplit("/", 1)[1]
    if kind == "availability":
        assert message.payload in {"online", "offline"}
        return
    schema = json.loads((DOCS / f"{kind}.schema.json").read_text())
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    checker.validate(message.payload)


# What a subscriber sees


def test_everything_arrives_in_order_complete_and_valid(mosquitto, subscribe, open_sink):
    subscriber = subscribe(mosquitto)
    sink = open_sink(mosquitto.settings())
    sink.publish(None, [presence(0)])
    for seq in range(0, 300, 3):
        publish(sink, seq, seq + 1, seq + 2)
    sink.publish(None, [presence(2), health()])
    received = subscriber.wait_for(lambda m: len(face_seqs(m)) >= 300 and has(m, "presence", count=2))
    assert face_seqs(received) == list(range(300))
    wait_until(lambda: sink.state.events == EventCounts(published=300), "the last acknowledgement")
    assert sink.state.problem is None
    for message in received:
        check_payload(message)
        assert message.retained is False
    assert {message.topic for message in received} == {
        f"{TOPICS}/{topic}" for topic in ("availability", "face", "presence", "health")
    }
    first = next(message for message in received if message.topic.endswith("/face"))
    assert first.payload["time"] == "2026-11-20T14:30:12.345Z"
    assert first.expiry_s is not None
    assert 3500 < first.expiry_s <= 3600


def has(received, topic: str, **fields) -> bool:
    return any(
        m.topic == f"{TOPICS}/{topic}" and all(m.payload.get(name) == value for name, value in fields.items())
        for m in received
    )


def test_a_late_subscriber_finds_the_state_and_no_face(mosquitto, subscribe, open_sink):
    sink = open_sink(mosquitto.settings())
    publish(sink, 0)
    sink.publish(None, [presence(1), health()])
    wait_connected(sink)
    wait_until(lambda: sink.state.events.published == 1, "the event's acknowledgement")
    wait_until(lambda: not sink._due, "the state to be sent")
    subscriber = subscribe(mosquitto)
    sink.publish(None, [presence(7)])  # live: what was retained has come by then
    found = [message for message in subscriber.wait_for(lambda m: has(m, "presence", count=7)) if message.retained]
    assert sorted(message.topic.rsplit("/", 1)[1] for message in found) == ["availability", "health", "presence"]


def test_online_comes_after_the_state_that_it_vouches_for(mosquitto, subscribe, open_sink):
    subscriber = subscribe(mosquitto)
    mosquitto.stop()
    sink = open_sink(mosquitto.settings())
    sink.publish(None, [health(), presence(1)])
    wait_for_problem(sink, "refused")
    mosquitto.start()
    received = subscriber.wait_for(lambda m: len(m) >= 3)
    assert [message.topic.rsplit("/", 1)[1] for message in received] == ["presence", "health", "availability"]


def test_close_brings_out_what_waits_and_then_says_offline(mosquitto, subscribe, open_sink):
    subscriber = subscribe(mosquitto)
    sink = open_sink(mosquitto.settings())
    wait_connected(sink)
    sink.publish(None, [*(face_event(seq, event="left") for seq in range(100)), presence(0)])
    sink.close(PATIENCE_S)
    received = subscriber.wait_for(lambda m: m[-1].payload == "offline")
    assert face_seqs(received) == list(range(100))
    assert subscriber.payloads("presence")[-1]["count"] == 0
    assert subscriber.payloads("availability") == ["online", "offline"]
    assert not sink._thread.is_alive()
    assert sink.state.events == EventCounts(published=100)
    found = subscribe(mosquitto, f"{TOPICS}/availability").wait_for(len)
    assert [(message.payload, message.retained) for message in found] == [("offline", True)]
    # A good-bye was said, so the broker has no last will to publish.
    assert subscriber.payloads("availability") == ["online", "offline"]


def test_what_comes_before_the_connection_stands_is_brought_out_at_close_too(mosquitto, subscribe, open_sink):
    subscriber = subscribe(mosquitto)
    sink = open_sink(mosquitto.settings())
    publish(sink, 0, 1)
    sink.close(PATIENCE_S)
    received = subscriber.wait_for(lambda m: len(m) >= 4)
    assert [message.payload for message in received if message.topic.endswith("availability")] == ["online", "offline"]
    assert face_seqs(received) == [0, 1]


def test_the_last_will_is_published_when_the_connection_breaks(mosquitto, subscribe, open_sink, cable):
    subscriber = subscribe(mosquitto)
    laid = cable(mosquitto.port)
    sink = open_sink(mosquitto.settings(port=laid.port))
    sink.publish(None, [presence(1)])
    subscriber.wait_for(lambda m: has(m, "presence", count=1) and m[-1].payload == "online")
    laid.pull()
    subscriber.wait_for_payload("availability", lambda payload: payload == "offline")
    wait_for_problem(sink, f"localhost:{laid.port}")
    publish(sink, 0)
    laid.plug_in()
    subscriber.wait_for(face_seqs)
    assert subscriber.payloads("availability") == ["online", "offline", "online"]
    assert len(subscriber.payloads("presence")) >= 2, "the broker may have forgotten it meanwhile"
    wait_connected(sink)


# A broker that comes and goes


def test_being_on_the_way_to_the_broker_is_no_problem_until_it_takes_long(open_sink, monkeypatch):
    monkeypatch.setattr(broker_module, "ANSWER_TIMEOUT_S", PATIENCE_S)
    with socket.create_server(("localhost", 0)) as silent:  # its kernel takes the connection, and nobody answers
        sink = open_sink(Settings(device="hall-pi", mqtt={"port": silent.getsockname()[1]}))
        assert not sink.delivers
        assert sink.state.problem is None
        monkeypatch.setattr(mqtt_module, "AWAY_AFTER_S", 0.0)
        assert sink.state.problem.startswith(f"no connection to the broker at localhost:{silent.getsockname()[1]}")


def test_a_loss_that_the_first_retry_mends_is_logged_and_no_problem(mosquitto, open_sink, cable, monkeypatch, caplog):
    monkeypatch.setattr(mqtt_module, "LAST_RETRY_S", 0.0)  # so long a connection has stood that is usually well
    monkeypatch.setattr(mqtt_module, "FIRST_RETRY_S", 3.0)
    laid = cable(mosquitto.port)
    sink = open_sink(mosquitto.settings(port=laid.port))
    wait_connected(sink)
    laid.pull()
    laid.plug_in()
    wait_until(lambda: "lost the broker at" in caplog.text and not sink.delivers, "the loss")
    assert sink.state.problem is None
    wait_connected(sink)
    assert sum("takes our messages" in record.message for record in caplog.records) == 2


def test_what_waits_for_a_broker_arrives_as_replayed(mosquitto, subscribe, open_sink, monkeypatch):
    monkeypatch.setattr(mqtt_module, "REPLAYED_AFTER_S", 2 * PATIENCE_S)
    subscriber = subscribe(mosquitto)
    mosquitto.stop()
    sink = open_sink(mosquitto.settings())
    for seq in range(50):
        # Their `time` is another year altogether: late is what the monotonic clock says.
        publish(sink, seq, age_s=2 * PATIENCE_S + 1)
    publish(sink, 50)
    problem = wait_for_problem(sink, f"localhost:{mosquitto.port} can't be reached: connection refused")
    assert "EDGEFER_MQTT__HOST" in problem
    assert sink.state.events == EventCounts(waiting=51)
    mosquitto.start()
    received = subscriber.wait_for(lambda m: len(face_seqs(m)) >= 51)
    faces = subscriber.payloads("face")
    assert face_seqs(received) == list(range(51))
    assert [face["replayed"] for face in faces] == [True] * 50 + [False]
    assert {face["boot_id"] for face in faces} == {BOOT_ID}
    wait_until(lambda: sink.state.events == EventCounts(published=51, replayed=50), "the acknowledgements")


def test_late_is_later_than_two_seconds():
    assert mqtt_module.REPLAYED_AFTER_S == 2  # DESIGN promises it to subscribers


def test_nothing_is_lost_when_the_broker_is_restarted(mosquitto, subscribe, open_sink):
    subscriber = subscribe(mosquitto)
    sink = open_sink(mosquitto.settings())
    wait_connected(sink)
    enough = threading.Event()
    published = []

    def keep_publishing() -> None:
        while not enough.is_set():
            publish(sink, len(published))
            published.append(len(published))
            time.sleep(0.001)

    publisher = threading.Thread(target=keep_publishing)
    publisher.start()
    try:
        for _ in range(2):
            wait_until(lambda: sink.state.events.published > 100 and sink.delivers, "a busy connection")
            mosquitto.stop()
            wait_for_problem(sink, "localhost")
            mosquitto.start()
            wait_connected(sink)
    finally:
        enough.set()
        publisher.join()
    received = subscriber.wait_for(lambda m: len(set(face_seqs(m))) >= len(published))
    seqs = face_seqs(received)
    assert set(seqs) == set(published)
    # What was sent again comes again from a point on, in order; whatever comes first of each is in order.
    assert list(dict.fromkeys(seqs)) == published
    wait_until(lambda: sink.state.events.waiting == 0, "the acknowledgements")
    counts = sink.state.events
    assert (counts.published, counts.expired, counts.dropped) == (len(published), 0, 0)


def test_a_broker_that_hangs_is_told_and_gets_everything_later(mosquitto, subscribe, open_sink, monkeypatch):
    monkeypatch.setattr(mqtt_module, "SILENT_AFTER_S", 0.3)
    monkeypatch.setattr(broker_module, "STALL_S", 0.2)
    subscriber = subscribe(mosquitto)
    sink = open_sink(mosquitto.settings())
    wait_connected(sink)
    mosquitto.pause()
    publish(sink, *range(5))
    wait_for_problem(sink, "has acknowledged nothing")
    publish(sink, *range(5, 100))
    time.sleep(0.3)  # time enough to send them into the silence, if it would
    monkeypatch.setattr(mqtt_module, "REPLAYED_AFTER_S", 0)
    mosquitto.resume()
    received = subscriber.wait_for(lambda m: len(face_seqs(m)) >= 100)
    assert face_seqs(received) == list(range(100))
    # What was on its way when the broker hung can't be called back; nothing more was sent into the silence.
    assert all(face["replayed"] for face in subscriber.payloads("face")[5:])
    wait_connected(sink)
    assert subscriber.payloads("availability") == ["online"]


def test_a_half_open_connection_is_noticed_and_ends_up_online(mosquitto, subscribe, open_sink, cable, monkeypatch):
    monkeypatch.setattr(broker_module, "KEEPALIVE_S", 1)
    subscriber = subscribe(mosquitto)
    laid = cable(mosquitto.port)
    sink = open_sink(mosquitto.settings(port=laid.port))
    wait_connected(sink)
    laid.lose()
    publish(sink, 0, 1)
    received = subscriber.wait_for(lambda m: len(set(face_seqs(m))) >= 2)
    assert list(dict.fromkeys(face_seqs(received))) == [0, 1]
    wait_connected(sink)
    # The broker ended the lost connection, with its last will, before it let the new one in.
    assert "already connected, closing old connection" in mosquitto.log
    assert subscriber.payloads("availability")[-1] == "online"
    found = subscribe(mosquitto, f"{TOPICS}/availability").wait_for(len)
    assert found[0].payload == "online"


@pytest.fixture
def with_room(mosquitto, subscribe, open_sink, cable, monkeypatch):
    """A sink on a cable that can make the broker seem full, and a subscriber beyond."""
    monkeypatch.setattr(mqtt_module, "FULL_RETRY_S", 0.2)
    subscriber, laid = subscribe(mosquitto), cable(mosquitto.port)
    sink = open_sink(mosquitto.settings(port=laid.port))
    wait_connected(sink)
    return sink, laid, subscriber


def test_a_full_broker_is_told_and_gets_everything_once_it_has_room(with_room):
    sink, laid, subscriber = with_room
    laid.fill()
    publish(sink, *range(50))
    wait_for_problem(sink, "is full: quota exceeded; give it more room")
    assert sink.state.events == EventCounts(waiting=50)
    laid.fill(full=False)
    wait_until(lambda: sink.state.events.published == 50, "the acknowledgements")
    assert sink.state.events.dropped == 0
    wait_connected(sink)
    # This broker took what it was made to refuse, so some came again; whatever comes first of each is in order.
    assert list(dict.fromkeys(face_seqs(subscriber.messages))) == list(range(50))
    assert subscriber.payloads("availability") == ["online"]


def test_a_full_broker_gets_what_it_is_to_retain_again_once_it_has_room(with_room):
    sink, laid, subscriber = with_room
    laid.fill(messages=1)
    sink.publish(None, [presence(3)])
    # This broker took what it was made to refuse, so it comes twice.
    subscriber.wait_for(lambda _: [told["count"] for told in subscriber.payloads("presence")] == [3, 3])
    wait_until(lambda: sink.state.problem is None, "the problem to be over")
    laid.fill()
    sink.close(PATIENCE_S)
    # The second one is our last will.
    subscriber.wait_for(lambda _: subscriber.payloads("availability") == ["online", "offline", "offline"])


def test_what_a_full_broker_refused_comes_before_all_that_was_not_on_its_way_with_it_and_is_marked(
    mosquitto, subscribe, open_sink, cable, monkeypatch
):
    monkeypatch.setattr(mqtt_module, "FULL_RETRY_S", PATIENCE_S)
    monkeypatch.setattr(mqtt_module, "REPLAYED_AFTER_S", 2 * PATIENCE_S)
    monkeypatch.setattr(broker_module, "STALL_S", PATIENCE_S)
    subscriber = subscribe(mosquitto)
    laid = cable(mosquitto.port)
    sink = open_sink(mosquitto.settings(port=laid.port))
    wait_connected(sink)
    laid.fill(messages=1)
    mosquitto.pause()
    publish(sink, *range(50))
    wait_until(lambda: sink._last_sent == 20, "all that may be on its way at once")
    mosquitto.resume()
    wait_until(lambda: sink.state.events == EventCounts(published=19, waiting=31), "the others' acknowledgements")
    laid.fill(messages=1)
    monkeypatch.setattr(mqtt_module, "FULL_RETRY_S", 0.1)
    received = subscriber.wait_for(lambda m: len(face_seqs(m)) >= 52)
    # This broker took what it was made to refuse, so 0 came three times.
    assert face_seqs(received) == [*range(20), 0, 0, *range(20, 50)]
    assert [face["replayed"] for face in subscriber.payloads("face")] == [False] * 20 + [True] * 2 + [False] * 30


def test_what_an_earlier_start_has_left_goes_to_its_own_device_as_replayed(mosquitto, subscribe, open_sink):
    subscriber = subscribe(mosquitto)
    mosquitto.stop()
    settings = mosquitto.settings()
    sink = open_sink(settings)
    publish(sink, 1, 2)
    sink.close(0.1)
    mosquitto.start()
    sink = open_sink(settings.model_copy(update={"device": "kitchen-pi"}))
    sink.publish(frame(time.monotonic()), [face_event(7, device="kitchen-pi", boot_id="another")])
    received = subscriber.wait_for(lambda m: sum(message.topic.endswith("/face") for message in m) >= 3)
    faces = [(m.topic, m.payload["seq"], m.payload["replayed"]) for m in received if m.topic.endswith("/face")]
    assert faces == [
        (f"{TOPICS}/face", 1, True),
        (f"{TOPICS}/face", 2, True),
        ("edgefer/kitchen-pi/face", 7, False),
    ]
    for message in received:
        check_payload(message)
    wait_until(lambda: sink.state.events == EventCounts(published=3, replayed=2), "the counts")


def test_what_is_too_old_is_given_up_and_the_rest_carries_what_is_left_of_its_time(mosquitto, subscribe, open_sink):
    subscriber = subscribe(mosquitto)
    settings = mosquitto.settings().model_copy(update={"events": EventsSettings(expiry_s=100)})
    sink = open_sink(settings)
    publish(sink, 0, age_s=101)
    publish(sink, 1, age_s=60)
    received = subscriber.wait_for(face_seqs)
    assert face_seqs(received) == [1]
    [face] = [message for message in received if message.topic.endswith("/face")]
    assert face.expiry_s is not None
    assert face.expiry_s <= 40
    wait_until(lambda: sink.state.events == EventCounts(published=1, replayed=1, expired=1), "the counts")


# Logins


def test_a_refused_login_is_told_and_never_online_until_it_is_mended(run_mosquitto, subscribe, open_sink, caplog):
    mosquitto = run_mosquitto(password="correct horse")
    subscriber = subscribe(mosquitto)
    sink = open_sink(mosquitto.settings(password="battery staple"))
    publish(sink, 0)
    problem = wait_for_problem(sink, "refuses us", "EDGEFER_MQTT__USERNAME=ada", "EDGEFER_MQTT__PASSWORD")
    wait_until(lambda: mosquitto.log.count("not authori") >= 2, "another try")
    assert sink.state.problem == problem
    assert sink.state.events == EventCounts(waiting=1)
    assert subscriber.messages == []
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == [problem]
    mosquitto.set_password("battery staple")
    subscriber.wait_for(face_seqs)
    wait_connected(sink)
    assert "staple" not in caplog.text
    assert "horse" not in caplog.text


def test_a_password_file_is_read_anew_at_each_try(run_mosquitto, open_sink, tmp_path):
    mosquitto = run_mosquitto(password="correct horse")
    file = tmp_path / "password"
    file.write_text("battery staple\n")
    sink = open_sink(mosquitto.settings(password=None, password_file=file))
    wait_for_problem(sink, "refuses us", "EDGEFER_MQTT__PASSWORD_FILE")
    file.unlink()
    wait_for_problem(sink, f"EDGEFER_MQTT__PASSWORD_FILE={file} can't be read: No such file")
    file.write_text("correct horse\n")
    wait_connected(sink)


def test_a_missing_login_names_the_variables(run_mosquitto):
    mosquitto = run_mosquitto(password="correct horse")
    with pytest.raises(BrokerError, match="set EDGEFER_MQTT__USERNAME and EDGEFER_MQTT__PASSWORD") as caught:
        check_broker(mosquitto.settings(username=None, password=None))
    assert caught.value.exit_code == 69
    check_broker(mosquitto.settings())


def test_a_topic_that_is_forbidden_is_told(run_mosquitto, open_sink, tmp_path, caplog):
    rules = tmp_path / "rules"
    rules.write_text(f"topic write {TOPICS}/availability\ntopic write {TOPICS}/presence\n")
    mosquitto = run_mosquitto(options=(f"acl_file {rules}",))
    sink = open_sink(mosquitto.settings())
    sink.publish(None, [presence(0)])
    wait_connected(sink)
    publish(sink, 0)
    wait_for_problem(sink, f"refuses messages on {TOPICS}/face: not authorized")
    publish(sink, 1)
    # mosquitto hangs up on what it refuses; the sink goes on, and tells why rather than that.
    wait_until(lambda: sink.state.events == EventCounts(dropped=2), "both to be given up")
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


# TLS


def test_tls_with_the_right_authority(run_mosquitto, authority, subscribe, open_sink):
    mosquitto = run_mosquitto(authority=authority)
    subscriber = subscribe(mosquitto)
    sink = open_sink(mosquitto.settings())
    publish(sink, *range(200))
    assert face_seqs(subscriber.wait_for(lambda m: len(face_seqs(m)) >= 200)) == list(range(200))
    sink.close(PATIENCE_S)
    assert subscriber.wait_for(lambda m: m[-1].payload == "offline")


def test_tls_refuses_a_broker_of_another_authority(run_mosquitto, authority, tmp_path):
    from brokers import Authority

    mosquitto = run_mosquitto(authority=authority)
    with pytest.raises(BrokerError, match=r"isn't trusted: .*; set EDGEFER_MQTT__CA_FILE"):
        check_broker(mosquitto.settings(ca_file=Authority(tmp_path).certificate))
    with pytest.raises(BrokerError, match=r"isn't trusted: .*; set EDGEFER_MQTT__CA_FILE"):
        check_broker(mosquitto.settings(ca_file=None))


def test_tls_refuses_a_broker_of_another_name(run_mosquitto, authority):
    mosquitto = run_mosquitto(authority=authority, options=("bind_address 127.0.0.1",))
    with pytest.raises(BrokerError, match="set EDGEFER_MQTT__HOST to the name in the certificate"):
        check_broker(mosquitto.settings(host="127.0.0.1"))


def test_a_client_certificate_lets_us_in(run_mosquitto, authority, open_sink):
    mosquitto = run_mosquitto(authority=authority, client_certificates=True)
    sink = open_sink(mosquitto.settings())
    wait_for_problem(sink, "set EDGEFER_MQTT__CERT_FILE and EDGEFER_MQTT__KEY_FILE")
    certificate, key = authority.issue("hall-pi")
    check_broker(mosquitto.settings(cert_file=certificate, key_file=key))


def test_a_file_that_is_no_certificate_is_named(run_mosquitto, authority, tmp_path):
    mosquitto = run_mosquitto(authority=authority)
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    with pytest.raises(BrokerError, match=f"EDGEFER_MQTT__CA_FILE={junk} holds no certificate"):
        check_broker(mosquitto.settings(ca_file=junk))
    mine, other = authority.issue("mine"), authority.issue("other")
    locked = tmp_path / "locked.key"
    lock = ["openssl", "ec", "-aes256", "-passout", "pass:secret", "-in", mine.key, "-out", locked]
    subprocess.run(lock, check=True, capture_output=True)
    for key in (other.key, junk, locked):
        with pytest.raises(BrokerError, match=f"EDGEFER_MQTT__KEY_FILE={key} must be a certificate and its key"):
            check_broker(mosquitto.settings(cert_file=mine.certificate, key_file=key))


def test_tls_against_a_plain_port_and_the_other_way_round(run_mosquitto, mosquitto, authority):
    with pytest.raises(BrokerError, match="EDGEFER_MQTT__TLS=false"):
        check_broker(mosquitto.settings(tls=True))
    with pytest.raises(BrokerError, match="EDGEFER_MQTT__TLS=true"):
        check_broker(run_mosquitto(authority=authority).settings(tls=False, ca_file=None))


@pytest.mark.parametrize(
    ("code", "advice"),
    [(9, "check this machine's clock"), (10, "the broker needs a new one"), (18, "EDGEFER_MQTT__CA_FILE")],
)
def test_what_is_wrong_with_a_certificate_leads_to_its_mending(code, advice):
    error = ssl.SSLCertVerificationError("certificate verify failed")
    error.verify_code, error.verify_message = code, "some words of OpenSSL's"
    assert advice in why_unreachable(error, MqttSettings(tls=True), 5)


# Other brokers


def test_a_broker_of_mqtt_3_only(run_amqtt, subscribe, open_sink, caplog):
    amqtt = run_amqtt()
    subscriber = subscribe(amqtt, version=MQTTProtocolVersion.MQTTv311)
    sink = open_sink(amqtt.settings())
    sink.publish(None, [presence(1), health()])
    publish(sink, *range(50))
    received = subscriber.wait_for(lambda m: len(face_seqs(m)) >= 50)
    assert face_seqs(received) == list(range(50))
    wait_connected(sink)
    assert "with MQTT 3.1.1" in caplog.text
    for message in received:
        check_payload(message)
    sink.close(PATIENCE_S)
    subscriber.wait_for_payload("availability", lambda payload: payload == "offline")


OLDER_BROKERS = {
    "refuses as 3.1.1 does": b"\x20\x02\x00\x01",
    "refuses as 5 does": b"\x20\x03\x00\x84\x00",
    "hangs up": b"",
}


@pytest.mark.parametrize("answer", OLDER_BROKERS.values(), ids=OLDER_BROKERS)
def test_an_older_broker_is_spoken_to_in_its_own_version(mosquitto, subscribe, open_sink, cable, caplog, answer):
    subscriber = subscribe(mosquitto)
    laid = cable(mosquitto.port, answer_to_mqtt5=answer)
    sink = open_sink(mosquitto.settings(port=laid.port))
    publish(sink, 0)
    received = subscriber.wait_for(face_seqs)
    wait_connected(sink)
    assert "with MQTT 3.1.1" in caplog.text
    assert [message.expiry_s for message in received if message.topic.endswith("face")] == [None]


@pytest.mark.parametrize(
    ("connack", "window"), [(b"\x20\x06\x00\x00\x03\x21\x00\x03", 3), (b"\x20\x03\x00\x00\x00", 20)]
)
def test_no_more_is_on_its_way_than_the_broker_wants(connack, window, open_sink, monkeypatch):
    monkeypatch.setattr(broker_module, "STALL_S", PATIENCE_S)
    received = bytearray()

    def take_everything_and_acknowledge_nothing() -> None:
        with suppress(OSError):
            while True:
                client, _ = server.accept()
                client.recv(4096)
                client.sendall(connack)
                while data := client.recv(65536):
                    received.extend(data)
                client.close()

    with socket.create_server(("localhost", 0)) as server:
        threading.Thread(target=take_everything_and_acknowledge_nothing, daemon=True).start()
        sink = open_sink(Settings(device="hall-pi", mqtt={"port": server.getsockname()[1]}))
        publish(sink, *range(50))
        wait_until(lambda: received.count(f"{TOPICS}/".encode()) == window, "a full window")
        time.sleep(0.2)
        assert received.count(f"{TOPICS}/".encode()) == window
        sink.close(0.0)
        wait_until(lambda: not sink._thread.is_alive(), "the thread's end")
        server.shutdown(socket.SHUT_RDWR)


NOT_BROKERS = {
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n" * 5,
    "http": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" * 5,
    "a short connack": b"\x20\x00",
    "an unknown refusal": b"\x20\x03\x00\xee\x00",
    "a connack with broken properties": b"\x20\x05\x00\x00\x02\xff\xff",
    "an endless length": b"\x20\xff\xff\xff\xff\xff",
    "a broken disconnect": b"\xe0\x03\x01\x02\x03",
    "an unasked acknowledgement": b"\x40\x02\x00\x01" * 3,
    "a message that is no text": b"\x30\x05\x00\x02\xff\xfe\x00",
    "zeros": bytes(64),
}


@pytest.mark.parametrize("answer", NOT_BROKERS.values(), ids=NOT_BROKERS)
def test_something_that_is_no_broker_is_told_and_nothing_more(answer, open_sink, caplog):
    with socket.create_server(("localhost", 0)) as server:
        threading.Thread(target=answer_everybody, args=(server, answer), daemon=True).start()
        settings = Settings(device="hall-pi", mqtt={"port": server.getsockname()[1]})
        with pytest.raises(BrokerError, match=r"^the broker at localhost:\d+ "):
            check_broker(settings)
        sink = open_sink(settings)
        wait_for_problem(sink, "the broker at localhost:", "EDGEFER_MQTT__")
        assert "defect" not in caplog.text
        sink.close(PATIENCE_S)
        server.shutdown(socket.SHUT_RDWR)


def test_a_message_that_nobody_asked_for_and_that_is_huge_is_not_waited_for():
    def promise_much() -> None:
        client, _ = server.accept()
        with client, suppress(OSError):
            client.recv(4096)
            client.sendall(b"\x30\xff\xff\xff\x7f" + bytes(1000))  # 256 MB are to come
            client.recv(4096)

    with socket.create_server(("localhost", 0)) as server:
        threading.Thread(target=promise_much, daemon=True).start()
        with pytest.raises(BrokerError, match=r"^the broker at localhost:\d+ sends a message larger than 64 KiB"):
            check_broker(Settings(device="hall-pi", mqtt={"port": server.getsockname()[1]}))


def answer_everybody(server: socket.socket, answer: bytes) -> None:
    with suppress(OSError):
        while True:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(answer)


def test_no_file_descriptor_is_left_open(mosquitto, open_sink):
    sink = open_sink(mosquitto.settings())  # whatever is opened once, is open now
    wait_connected(sink)
    sink.close(PATIENCE_S)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for settings in (mosquitto.settings(), mosquitto.settings(tls=True), mosquitto.settings(port=free_port())):
        for _ in range(5):
            with suppress(BrokerError):
                check_broker(settings)
            MqttSink(settings).close(PATIENCE_S)
    wait_until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before, "every descriptor to be closed")


def test_a_name_that_nobody_knows():
    with pytest.raises(BrokerError, match=r"the name of the broker at no\.such\.host\.invalid:1883 can't be resolved"):
        check_broker(Settings(mqtt={"host": "no.such.host.invalid"}))
    with pytest.raises(BrokerError, match="can't be resolved"):
        check_broker(Settings(mqtt={"host": "a" * 70 + ".example"}))


# Several daemons


def test_the_client_id_is_stable_and_differs_between_daemons():
    settings = Settings(device="Hall Pi ä", camera="0")
    assert client_id(settings) == client_id(Settings(device="Hall Pi ä", camera="0"))
    assert client_id(settings).startswith("edgefer-Hall_Pi__-")
    others = [settings, Settings(device="Hall Pi ä", camera="1"), Settings(device="other", camera="0")]
    assert len({client_id(other) for other in others}) == 3


def test_a_daemon_that_is_thrown_out_by_its_double_says_so(mosquitto, open_sink):
    first = open_sink(mosquitto.settings())
    wait_connected(first)
    open_sink(mosquitto.settings())
    wait_for_problem(first, "lost the broker at", "whether another edgefer has the same EDGEFER_DEVICE")


def test_the_check_leaves_a_running_daemon_alone(mosquitto, subscribe, open_sink):
    subscriber = subscribe(mosquitto)
    sink = open_sink(mosquitto.settings())
    wait_connected(sink)
    check_broker(mosquitto.settings())
    publish(sink, 0)
    subscriber.wait_for(face_seqs)
    assert subscriber.payloads("availability") == ["online"]


# The end


def test_close_returns_though_the_broker_hangs(mosquitto, subscribe, open_sink, caplog):
    subscriber = subscribe(mosquitto)
    sink = open_sink(mosquitto.settings())
    wait_connected(sink)
    mosquitto.pause()
    publish(sink, *range(30))
    sink.close(0.3)
    assert "30 face event(s) didn't reach the broker" in caplog.text
    wait_until(lambda: not sink._thread.is_alive(), "the thread's end")
    mosquitto.resume()
    # No good-bye was said, so the last will speaks.
    subscriber.wait_for_payload("availability", lambda payload: payload == "offline")


def test_close_returns_while_a_broker_never_answers(open_sink):
    with socket.create_server(("localhost", 0)) as server:
        sink = open_sink(Settings(mqtt={"port": server.getsockname()[1]}))
        client, _ = server.accept()
        with client:
            publish(sink, 0)
            sink.close(0.1)
            assert sink.state.events == EventCounts(waiting=1)


def test_close_returns_while_there_is_no_broker(open_sink, caplog):
    sink = open_sink(Settings(mqtt={"port": free_port()}))
    publish(sink, 0)
    wait_for_problem(sink, "connection refused")
    sink.close(PATIENCE_S)
    sink.close(PATIENCE_S)
    assert not sink._thread.is_alive()
    assert "1 face event(s) didn't reach the broker" in caplog.text
    publish(sink, 1)


def test_a_message_that_cannot_be_made_is_a_told_defect_and_the_sink_goes_on(mosquitto, subscribe, open_sink, caplog):
    subscriber = subscribe(mosquitto)
    sink = open_sink(mosquitto.settings())
    wait_connected(sink)
    sink.publish(None, [health(camera="not a camera's health")])
    wait_for_problem(sink, "please report it")
    sink.publish(None, [health()])
    publish(sink, 0)
    subscriber.wait_for(face_seqs)


def test_every_broker_fixture_keeps_its_promises(mosquitto, subscribe):
    assert isinstance(mosquitto, Broker)
    mosquitto.pause()
    mosquitto.resume()
    mosquitto.stop()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("localhost", mosquitto.port), 1)
    mosquitto.start()
    subscribe(mosquitto)
