"""Changes a real input into one that is nearly right: keys and values of its tree, rows of its table, or plain bytes.

`random` is the only source of choices, so that hypothesis can shrink them and the coverage-guided fuzzer seed them.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

import yaml

from . import arrays
from .trees import EXTREMES, LINES_PARSED, MOST, Words, changed_tree, parsed, read_json

_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
PIECES = (
    *(
        b"&a ",
        b"*a",
        b"<<: *a\n",
        b"!!python/object:os.system ",
        b"!!binary ",
        b"- ",
        b": ",
        b"? ",
        b"|\n",
        b">\n",
        b"#",
        b"%",
    ),
    *(
        b"---\n",
        b"...\n",
        b"\t",
        b"\0",
        b"\xff",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"\n",
        b",",
        b'"',
        b"'",
    ),
    *(
        b"[" * 100,
        b"{" * 100,
        b"[1, ",
        b"{a: ",
        b"}",
        b"]",
        b"0x",
        b"1e999",
        b"nan",
        b"-",
        b"null",
        b"[]",
        b"{}",
        b"9" * 400,
    ),
    *(b"..", b"=", b"/", b"\\", b"1e5", b".5", b"99999999999999999999", b"2026-01-01", b"true", b" "),
)


def mutate(data: bytes, random: Random, words: Words) -> bytes:
    """`data` with one to five changes; every fifth time, or where nothing else is known of it, changes of bytes."""
    for _ in range((1, 1, 1, 2, 2, 3, 5)[random.randrange(7)]):
        data = _once(data, random, words)
    return data[:MOST]


def _once(data: bytes, random: Random, words: Words) -> bytes:
    if random.randrange(5) == 0:
        return changed_bytes(data, random, words)
    for structured in (arrays.changed, changed_pairs, changed_document, changed_lines, changed_table):
        found = structured(data, random, words)
        if found is not None:
            return found
    return changed_bytes(data, random, words)


def changed_document(data: bytes, random: Random, words: Words) -> bytes | None:
    """The document with its tree changed, written as it was: JSON where it was JSON."""
    document = parsed(data)
    if not document:
        return None
    try:
        document = changed_tree(document, random, words)  # an alias may hold itself
        if data.lstrip()[:1] in (b"{", b"["):
            return json.dumps(document, default=str).encode()
        return yaml.dump(document, Dumper=_DUMPER, sort_keys=False, allow_unicode=True).encode()
    except (TypeError, ValueError, yaml.YAMLError, RecursionError):
        return None


def changed_lines(data: bytes, random: Random, words: Words) -> bytes | None:
    """Lines of JSON with one of them changed."""
    lines = data.split(b"\n")
    place = random.randrange(min(len(lines), LINES_PARSED))
    row = read_json(lines[place])
    if not row:
        return None
    lines[place] = json.dumps(changed_tree(row, random, words), default=str).encode()
    return b"\n".join(lines)


def changed_table(data: bytes, random: Random, words: Words) -> bytes | None:
    """Comma-separated text with one cell changed, or one column dropped or doubled."""
    lines = data.split(b"\n")
    if b"," not in lines[0] or len(lines) < 2:
        return None
    place = random.randrange(min(len(lines), LINES_PARSED))
    cells = lines[place].split(b",")
    column = random.randrange(len(cells))
    how = random.randrange(4)
    if how < 2:
        cells[column] = _cell(random, words)
        lines[place] = b",".join(cells)
        return b"\n".join(lines)
    rows = [line.split(b",") for line in lines]
    for row in rows:
        if column < len(row):
            row[column : column + 1] = [row[column]] * 2 if how == 2 else []
    return b"\n".join(b",".join(row) for row in rows)


def _cell(random: Random, words: Words) -> bytes:
    value = random.choice(EXTREMES) if random.randrange(2) else random.choice(words.values)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.replace("\n", " ").encode()


def changed_pairs(data: bytes, random: Random, words: Words) -> bytes | None:
    """Lines of `key=value` (overrides, a page's link) with one of them changed, dropped, doubled or brought in."""
    lines = data.split(b"\n")
    pairs = [place for place, line in enumerate(lines) if 0 < line.find(b"=") < line.find(b":") % (1 << 30)]
    if not pairs or len(pairs) < len(lines) - 1 - (not lines[-1]):
        return None
    place = random.choice(pairs)
    how = random.randrange(6)
    if how == 0:
        del lines[place]
    elif how == 1:
        other = random.choice(words.seeds).split(b"\n")
        lines.insert(place, random.choice(other))
    elif how == 2:
        lines.insert(place, lines[place])
    else:
        path, _, value = lines[place].rpartition(b"=")
        if how == 3:
            path = random.choice(random.choice(words.seeds).split(b"\n")).rpartition(b"=")[0] or path
        elif how == 4:
            path = path.rpartition(b".")[0] or path
        lines[place] = path + b"=" + (value if how == 3 else _cell(random, words))
    return b"\n".join(lines)


def changed_bytes(data: bytes, random: Random, words: Words) -> bytes:
    """Plain bytes: bits, cuts, doubled parts, pieces of syntax, a part of another seed, lines in another order."""
    how = random.randrange(8)
    begin = random.randrange(len(data) + 1)
    end = min(len(data), begin + 1 + random.randrange(1 << random.randrange(10)))
    if how == 0 and begin < len(data):
        return data[:begin] + bytes([data[begin] ^ 1 << random.randrange(8)]) + data[begin + 1 :]
    if how == 1:
        return data[:begin] + data[end:]
    if how == 2:
        return data[:end] + data[begin:end] * random.randrange(1, 20) + data[end:]
    if how == 3:
        return data[:begin]
    if how == 4:
        other = random.choice(words.seeds)
        place = random.randrange(len(other) + 1)
        return data[:begin] + other[place : place + random.randrange(1, 400)] + data[begin:]
    if how == 5:
        lines = data.split(b"\n")
        one, two = random.randrange(len(lines)), random.randrange(len(lines))
        lines[one], lines[two] = lines[two], lines[one][random.randrange(3) :]
        return b"\n".join(lines)
    return data[:begin] + random.choice(PIECES) + data[begin if how == 6 else end :]
