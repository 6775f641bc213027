import bz2
import gzip
import json
import tracemalloc

import pytest
import zstandard
from web_archives import http, record

from lit_llm.config.recipe import SourceConfig
from lit_llm.data.sources.document import Skipped
from lit_llm.data.sources.opening import open_source

MEGABYTES = 12
LONG = b"a line of words, " * (MEGABYTES * 2**20 // 17)
FILES = {
    "a.txt": (LONG, 0, 1),
    "b.txt": (b"good<|endoftext|>" + LONG + b"<|endoftext|>good", 2, 1),
    "a.txt.gz": (gzip.compress(LONG, 1), 0, 1),
    "a.txt.zst": (zstandard.compress(LONG), 0, 1),
    "a.py": (LONG, 0, 1),
    "a.html": (b"<p>" + LONG, 0, 1),
    "a.jsonl": (b'{"text": "good"}\n{"text": "' + LONG + b'"}\n{"text": "good"}', 2, 1),
    "a.jsonl.zst": (zstandard.compress(b'{"text": "' + LONG + b'"}\n{"text": "good"}'), 1, 1),
    "wide.jsonl": (("\ufeff" + json.dumps({"text": LONG.decode()}) + '\n{"text": "good"}').encode("utf-16-le"), 1, 1),
    "a.json": (b'[{"text": "good"}, {"text": "' + LONG + b'"}]', 1, 1),
    "many.json": (b"[" + b'{"text": "good and long enough"},' * 20_000 + b'{"text": "good"}]', 20_001, 0),
    "a.warc": (record(1, http(LONG)) + record(2, http(b"<p>good")), 1, 1),
    "a.warc.gz": (gzip.compress(record(1, http(LONG)), 1) + gzip.compress(record(2, http(b"<p>good"))), 1, 1),
    "a.xml.bz2": (b"<mediawiki><page><text>" + LONG + b"</text></page></mediawiki>", 0, 1),
    "head.xml": (b"<mediawiki>" + LONG, 0, 0),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_too_long_is_not_held(tmp_path, name):
    data, *wanted = FILES[name]
    (tmp_path / name).write_bytes(bz2.compress(data, 1) if name.endswith(".bz2") else data)
    source = open_source(SourceConfig(str(tmp_path / name), max_document_bytes=100_000))
    [unit] = source.units()
    list(source.read(unit))
    tracemalloc.start()
    try:
        good = skipped = 0
        for each in source.read(unit):
            skipped += isinstance(each, Skipped)
            good += not isinstance(each, Skipped)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * 2**20 < len(LONG) / 2
    assert (good, skipped) == tuple(wanted)
