"""Lists of words: how files of them are read, and the short ones that come with this program."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from lit_llm.config import UserError

ADULT_IN_HOSTS = ("porn", "hentai", "camgirl", "sexcam", "xxxvideo", "freesex", "nudegirl")
"""What stands in the names of hosts of pornography and in few others (Pornic is a town in France)."""
ADULT_WORDS = frozenset({"xxx", "porno", "pornos", "milf", "gangbang", "blowjob", "cumshot", "nsfw", "escorts"})
"""Words that stand in addresses of pornography, and in few others."""

_ENGLISH = """
arsehole asshole assholes bastard bastards bitch bitches bitching bollocks bullshit cocksucker cocksuckers
cunt cunts dickhead dickheads fag faggot faggots fags fuck fucked fucker fuckers fuckin fucking fucks gook
gooks jizz kike kikes motherfucker motherfuckers motherfucking nigga niggas nigger niggers paki pakis pussy
raghead ragheads shit shits shitty shithead slut sluts spic spics towelhead towelheads tranny trannies twat
twats wank wanker wankers wetback wetbacks whore whores
"""
ENGLISH = frozenset(_ENGLISH.split())
"""Swear words and slurs of English that have few other uses, which is why "coon", "dyke" or "retarded" are not here."""


def lines_of(path: str) -> list[tuple[int, str]]:
    """The lines of a list with their numbers, without remarks and without empty ones.

    Raises:
        UserError: the file cannot be read, is no text in UTF-8, or has no entries.
    """
    try:
        data = Path(path).read_bytes()
        text = (gzip.decompress(data) if path.endswith(".gz") else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"the list {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} is no text in UTF-8: {error}") from error
    lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), start=1)]
    entries = [(number, line) for number, line in lines if line]
    if not entries:
        raise UserError(f"the list {path} has no entries")
    return entries
