"""Why there is no broker, and what to do about it, in one sentence for people.

Each names the variable to look at. None holds a secret, nor anything that the other end chose to say.
"""

from __future__ import annotations

import socket
import ssl

from paho.mqtt.reasoncodes import ReasonCode

from edgefer.settings import MqttSettings


def where(settings: MqttSettings) -> str:
    """The broker, for people."""
    return f"the broker at {settings.host}:{settings.actual_port}"


CHECK_ADDRESS = "check EDGEFER_MQTT__HOST and EDGEFER_MQTT__PORT"
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME, _WRONG_ADDRESS = 9, 10, 62, 64
"""X509_V_ERR_... of OpenSSL's x509_vfy.h."""


def why_unreachable(error: Exception, settings: MqttSettings, patience_s: float) -> str:
    """What an error of the socket or of TLS means, when the broker was given `patience_s` seconds."""
    broker = where(settings)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _why_untrusted(error, settings)
    if isinstance(error, ssl.SSLError) or (settings.tls and isinstance(error, ConnectionResetError)):
        return (
            f"{broker} doesn't speak TLS as we do ({reason_of(error)}); check EDGEFER_MQTT__PORT (usually 8883) "
            "and EDGEFER_MQTT__CERT_FILE, or set EDGEFER_MQTT__TLS=false"
        )
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return f"the name of {broker} can't be resolved ({reason_of(error)}); check EDGEFER_MQTT__HOST and the network"
    if isinstance(error, TimeoutError):
        return f"{broker} doesn't answer within {patience_s:.0f} s; {CHECK_ADDRESS}, the network and the firewall"
    return f"{broker} can't be reached: {reason_of(error).lower()}; is it running there? Otherwise {CHECK_ADDRESS}"


def why_refused(reason: ReasonCode, settings: MqttSettings) -> str:
    """What a refused login means."""
    refusal = f"{where(settings)} refuses us: {reason.getName().lower()}"
    if reason not in ("Bad user name or password", "Not authorized"):
        return f"{refusal}; the broker's log says more"
    if settings.username is None:
        return f"{refusal}; set EDGEFER_MQTT__USERNAME and EDGEFER_MQTT__PASSWORD (or EDGEFER_MQTT__PASSWORD_FILE)"
    password = "EDGEFER_MQTT__PASSWORD_FILE" if settings.password_file else "EDGEFER_MQTT__PASSWORD"
    return f"{refusal}; check EDGEFER_MQTT__USERNAME={settings.username}, {password}, and what that user is allowed"


def what_it_may_want(settings: MqttSettings) -> str:
    """What a broker may miss that hangs up without a word."""
    if not settings.tls:
        return f"if that port is for TLS, set EDGEFER_MQTT__TLS=true; else {CHECK_ADDRESS}"
    if settings.cert_file is None:
        return "if it asks for a client certificate, set EDGEFER_MQTT__CERT_FILE and EDGEFER_MQTT__KEY_FILE"
    return f"it may not accept EDGEFER_MQTT__CERT_FILE={settings.cert_file}"


def reason_of(error: Exception) -> str:
    """The heart of an error's text, without file names and numbers."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _why_untrusted(error: ssl.SSLCertVerificationError, settings: MqttSettings) -> str:
    if error.verify_code == _NOT_YET_VALID:
        advice = "check this machine's clock"
    elif error.verify_code == _EXPIRED:
        advice = "the broker needs a new one; if it has, check this machine's clock"
    elif error.verify_code in {_WRONG_NAME, _WRONG_ADDRESS}:
        advice = "set EDGEFER_MQTT__HOST to the name in the certificate"
    else:
        advice = "set EDGEFER_MQTT__CA_FILE to the certificate of the authority that signed it"
    return f"the certificate of {where(settings)} isn't trusted: {error.verify_message}; {advice}"
