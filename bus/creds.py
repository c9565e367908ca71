"""NATS credentials files: a user JWT, and the seed of the Ed25519 key that answers the broker's challenge.

Source: NATS "JWT and NKeys in depth"; the key encoding is that of github.com/nats-io/nkeys: base32 of two prefix
bytes, 32 seed bytes and a CRC-16/XMODEM in little-endian order.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from ..errors import DefinitionError

__all__ = ["Credentials", "decode_seed"]

_JWT = re.compile(r"-+BEGIN NATS USER JWT-+\s+(\S+)\s+-+END NATS USER JWT-+")
_SEED = re.compile(r"-+BEGIN USER NKEY SEED-+\s+(\S+)\s+-+END USER NKEY SEED-+")
_HINT = "make it anew with `nsc generate creds`, or correct HARK_BUS__CREDENTIALS"


def decode_seed(text: str) -> bytes:
    """Return the 32 bytes of a seed written as ``SU…``.

    Raises:
        ValueError: not such a seed, or its checksum is wrong. The message never shows it.
    """
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error as exc:
        raise ValueError("the seed is not base32") from exc
    if len(raw) != 36 or not text.startswith("SU"):
        raise ValueError("the seed is not a user's")
    if binascii.crc_hqx(raw[:-2], 0) != int.from_bytes(raw[-2:], "little"):
        raise ValueError("the checksum of the seed is wrong")
    return raw[2:34]


class Credentials:
    """A ``.creds`` file. It is read at every (re)connect, so that a renewed one is taken up.

    Raises:
        DefinitionError: from every method, if the file is missing or not such a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Read it once, to fail early."""
        self._read()

    def jwt(self) -> bytearray:
        """Return who we are."""
        return bytearray(self._read()[0].encode())

    def sign(self, nonce: str) -> bytes:
        """Return the answer to the broker's challenge, in base64."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return base64.b64encode(Ed25519PrivateKey.from_private_bytes(self._read()[1]).sign(nonce.encode()))

    def _read(self) -> tuple[str, bytes]:
        try:
            text = self.path.read_text()
        except OSError as exc:
            raise DefinitionError(
                f"the credentials file {self.path} cannot be read: {exc}", hint=_HINT
            ) from exc
        jwt, seed = _JWT.search(text), _SEED.search(text)
        if jwt is None or seed is None:
            raise DefinitionError(f"{self.path} is no NATS credentials file", hint=_HINT)
        try:
            return jwt[1], decode_seed(seed[1])
        except ValueError as exc:
            raise DefinitionError(f"{self.path} is no NATS credentials file: {exc}", hint=_HINT) from exc
