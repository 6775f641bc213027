"""How the bytes of a text are spelled in a vocabulary."""

from __future__ import annotations


def _byte_level_characters() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in characters)
    characters.update({byte: chr(0x100 + index) for index, byte in enumerate(others)})
    return [characters[byte] for byte in range(256)]


BYTE_TO_CHARACTER: list[str] = _byte_level_characters()
"""The printable character that stands for each byte in a byte-level vocabulary (GPT-2, Radford et al. 2019): printable
Latin-1 stands for itself, the other bytes are U+0100, U+0101, ... in order."""

CHARACTER_TO_BYTE: dict[str, int] = {character: byte for byte, character in enumerate(BYTE_TO_CHARACTER)}


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary; one that holds other characters stands for itself."""
    if not all(character in CHARACTER_TO_BYTE for character in token):
        return token.encode()
    return bytes(CHARACTER_TO_BYTE[character] for character in token)


def fallback_token(byte: int) -> str:
    """The token of one byte in a vocabulary with byte fallback: `<0x0A>`."""
    return f"<0x{byte:02X}>"


FALLBACK_TOKENS: dict[str, int] = {fallback_token(byte): byte for byte in range(256)}
