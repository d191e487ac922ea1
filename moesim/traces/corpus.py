"""Text of several domains to train on: what a machine has, or the folders that the user names."""

from __future__ import annotations

import ast
import gettext
import gzip
import hashlib
import sysconfig
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from moesim.errors import FileError, UserError

PIECE = 4096
FILE_LIMIT = 65_536
LEAST = 65_536
HELD_OUT = 20


@dataclass(frozen=True)
class Domain:
    """One kind of text, in pieces of at most `PIECE` bytes."""

    name: str
    description: str
    pieces: tuple[bytes, ...]

    def split(self) -> tuple[list[bytes], list[bytes]]:
        """Pieces to train on, and pieces held out: a `HELD_OUT`-th of the bytes, spread over the text."""
        train: list[bytes] = []
        held_out: list[bytes] = []
        size = held = 0
        for piece in self.pieces:
            if held * HELD_OUT <= size:
                held_out.append(piece)
                held += len(piece)
            else:
                train.append(piece)
            size += len(piece)
        return train, held_out


@dataclass(frozen=True)
class Corpus:
    """Text of several domains; `absent` names those of which there was too little, `unread` counts unread files."""

    domains: tuple[Domain, ...]
    absent: tuple[str, ...] = ()
    unread: int = 0

    @property
    def digest(self) -> str:
        """A short name of the content."""
        state = hashlib.blake2b(digest_size=8)
        for domain in self.domains:
            state.update(domain.name.encode())
            for piece in domain.pieces:
                state.update(len(piece).to_bytes(4, "little") + piece)
        return state.hexdigest()


def _raw(path: Path) -> bytes:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return file.read(FILE_LIMIT)


def _translations(path: Path) -> bytes:
    if path.suffix != ".mo":
        return _raw(path)
    with path.open("rb") as file:
        catalog = gettext.GNUTranslations(file)
    texts = vars(catalog)["_catalog"].items()
    return "\n".join(text for key, text in texts if key and isinstance(text, str)).encode()


def _docstrings(path: Path) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_bytes())
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, nodes))
    return "\n\n".join(text for text in found if text).encode()


def _below(patterns: Iterable[str], roots: Iterable[Path | None]) -> list[Path]:
    return [path for root in roots if root is not None for pattern in patterns for path in root.glob(pattern)]


def _library(kind: str = "stdlib") -> Path:
    return Path(sysconfig.get_path(kind))


def _package(name: str) -> Path | None:
    found = find_spec(name)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def _sources_of_library() -> list[Path]:
    outside = {"test", "tests", "site-packages", "idle_test", "pydoc_data"}
    return [path for path in _library().glob("**/*.py") if not outside & set(path.parts)]


def _translated_files() -> list[Path]:
    found = _below(["locale/*/LC_MESSAGES/*.mo", "man/*/man*/*.gz"], [SHARE])
    return [path for path in found if not path.parts[4].startswith("en")]


def _unicode_table() -> bytes:
    """A table that every machine has: code, category, bidirectional class and name of characters."""
    named = ((chr(code), unicodedata.name(chr(code), "")) for code in range(0x20, 0x3100))
    lines = (
        f"{ord(sign):04X};{name};{unicodedata.category(sign)};{unicodedata.bidirectional(sign)}"
        for sign, name in named
        if name
    )
    return "\n".join(lines).encode()


def _nothing() -> bytes:
    return b""


@dataclass(frozen=True)
class Kind:
    """Where the text of a domain is found on a machine, how a file of it is read, and what can be made without one."""

    name: str
    description: str
    find: Callable[[], list[Path]]
    read: Callable[[Path], bytes] = _raw
    made: Callable[[], bytes] = field(default=_nothing)


SHARE = Path("/usr/share")
PROSE = ("**/README*", "**/NEWS*", "**/INTRO*", "**/FAQ*", "**/*.md", "**/*.txt", "**/LICENSE*")
KINDS = (
    Kind("code", "sources of the Python standard library", _sources_of_library),
    Kind(
        "english",
        "licences, and read-me files, news and guides of installed packages",
        lambda: [
            *_below(["*"], [SHARE / "common-licenses"]),
            *_below(PROSE, [SHARE / "doc"]),
            *_below(["**/*.md", "**/LICENSE*"], [_library("purelib")]),
        ],
    ),
    Kind(
        "languages",
        "message catalogues and manual pages in languages other than English",
        _translated_files,
        _translations,
    ),
    Kind("manuals", "manual pages (roff) and the Python reference's topics",
         lambda: _below(["man/man*/*.gz"], [SHARE]) + _below(["pydoc_data/topics.py"], [_library()])),
    Kind(
        "data",
        "tables: CSV and JSON files, character maps, the Unicode character table",
        lambda: _below(["**/*.csv", "**/*.json"], [_library("purelib")]) + _below(["i18n/charmaps/*.gz"], [SHARE]),
        made=_unicode_table,
    ),
    Kind(
        "mathematics",
        "documentation strings of SciPy, NumPy, SymPy and mpmath",
        lambda: [
            path
            for path in _below(["**/*.py"], map(_package, ("scipy", "numpy", "sympy", "mpmath")))
            if "tests" not in path.parts
        ],
        _docstrings,
    ),
)  # fmt: skip


def gather(folder: Path | None = None, limit: int = 400_000) -> Corpus:
    """Text of several domains, at most `limit` bytes each: the subfolders of `folder`, or what the machine has.

    The same files give the same text. Files that cannot be read are counted and left out.
    """
    if folder is None:
        kinds: tuple[Kind, ...] = KINDS
    elif not folder.is_dir():
        raise FileError(f"{folder}: no such folder; text is read from a folder with a subfolder for each domain")
    else:
        kinds = tuple(map(_user_kind, sorted(path for path in folder.iterdir() if path.is_dir())))
    if not kinds:
        raise UserError(f"{folder}: holds no subfolder; each domain's text is a subfolder of its name")
    read = [_read(kind, limit) for kind in kinds]
    domains = tuple(domain for domain, _ in read if sum(map(len, domain.pieces)) >= LEAST)
    absent = tuple(domain.name for domain, _ in read if sum(map(len, domain.pieces)) < LEAST)
    if not domains or (folder is not None and absent):
        raise UserError(f"too little text: {', '.join(absent)}; a domain needs {LEAST:,} bytes")
    return Corpus(domains, absent, sum(unread for _, unread in read))


def export(corpus: Corpus, folder: Path) -> None:
    """Write a corpus as a folder that `gather` reads, to carry it to another machine."""
    for domain in corpus.domains:
        (folder / domain.name).mkdir(parents=True, exist_ok=True)
        for number, piece in enumerate(domain.pieces):
            (folder / domain.name / f"{number:05d}.txt").write_bytes(piece)


def _user_kind(folder: Path) -> Kind:
    return Kind(folder.name, "the user's text", lambda: [path for path in folder.rglob("*") if path.is_file()])


def _read(kind: Kind, limit: int) -> tuple[Domain, int]:
    """Files in the order of a hash of their names' ends, so that a limited text is a mixture of all of them."""
    paths = sorted(
        {path for path in kind.find() if path.is_file()},
        key=lambda path: (hashlib.blake2b("/".join(path.parts[-3:]).encode()).digest(), path),
    )
    made = kind.made()[: limit // 4]
    pieces = [made[start : start + PIECE] for start in range(0, len(made), PIECE)]
    size, unread, seen = len(made), 0, set()
    for path in paths:
        if size >= limit:
            break
        try:
            text = kind.read(path)[: min(FILE_LIMIT, limit - size)]
        except (OSError, EOFError, ValueError, LookupError, SyntaxError, RecursionError, zlib.error):
            unread += 1
            continue
        digest = hashlib.blake2b(text).digest()
        if b"\0" in text or digest in seen:
            unread += b"\0" in text
            continue
        seen.add(digest)
        size += len(text)
        pieces += [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    return Domain(kind.name, kind.description, tuple(pieces)), unread
