"""Sealing of what is stored about people: AES-256-GCM with a key made from a secret by scrypt."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgefer.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE = 12  # bytes, the size that AES-GCM is made for
_CHECK = b"edgefer gallery"


@dataclass(frozen=True, slots=True)
class Seal:
    """Seals and opens small pieces of data with one secret."""

    salt: bytes
    check: bytes
    """Something sealed: whoever opens it has the right secret."""
    cipher: AESGCM

    @staticmethod
    def new(secret: str) -> Seal:
        """A seal for a store that has none yet."""
        salt = os.urandom(16)
        cipher = _cipher(secret, salt)
        nonce = os.urandom(_NONCE)
        return Seal(salt, nonce + cipher.encrypt(nonce, _CHECK, None), cipher)

    @staticmethod
    def verified(secret: str, salt: bytes, check: bytes) -> Seal:
        """The seal of a store; InputError when the secret isn't the one it was sealed with."""
        seal = Seal(salt, check, _cipher(secret, salt))
        try:
            seal.open(check)
        except InputError as error:
            raise InputError(
                "EDGEFER_GALLERY__KEY isn't the key that it was sealed with: set that one; where it is lost, move the "
                "file away and enrol again"
            ) from error
        return seal

    def close(self, data: bytes) -> bytes:
        """The data, sealed."""
        nonce = os.urandom(_NONCE)
        return nonce + self.cipher.encrypt(nonce, data, None)

    def open(self, sealed: bytes) -> bytes:
        """The data; InputError when it was changed since (or was sealed with another secret, see `verified`)."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415  # an extra

        try:
            return bytes(self.cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], None))
        except (InvalidTag, ValueError) as error:  # the latter where nearly nothing is left of it
            raise InputError("what is sealed in it was changed") from error


def load_cipher() -> type[AESGCM]:
    """AES-GCM; InputError when its package isn't installed."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  # an extra
    except ImportError as error:
        missing = "EDGEFER_GALLERY__KEY needs the package cryptography: pip install '.[seal]' in edgefer's folder"
        raise InputError(missing) from error
    return AESGCM


def _cipher(secret: str, salt: bytes) -> AESGCM:
    # 2**14 rounds of 8 blocks: 16 MiB and some 50 ms, once for each file that is opened.
    return load_cipher()(hashlib.scrypt(secret.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32))
