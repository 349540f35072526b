"""Reader of WMT's translation data: pairs of files with a sentence a line, and the .sgm files of the test sets."""

import os
import re

from formats.errors import BadInput, MissingInput, warn_once
from formats.files import read_text

__all__ = ["CORPORA", "pairs", "read_wmt"]

# task -> split -> how the names of its files begin, as T5's code chose them; each stands for one file or for several
CORPORA = {
    "wmt_ende": {"train": ("europarl-v7", "commoncrawl", "news-commentary-v13"), "valid": ("newstest2013",),
                 "test": ("newstest2014",)},
    "wmt_enfr": {"train": ("europarl-v7", "commoncrawl", "undoc", "news-commentary-v10", "giga-fren"),
                 "valid": ("newsdiscussdev2015", "newstest2014"), "test": ("newsdiscusstest2015",)},
    "wmt_enro": {"train": ("europarl-v8", "setimes"), "valid": ("newsdev2016",), "test": ("newstest2016",)}}


def read_wmt(folder: str, split: str, task: str, languages: tuple[str, str]) -> list[dict]:
    """Read a split, "train", "valid" or "test", of a task of CORPORA.

    Args:
        folder: it, or the folders in it, holds <split>.en and <split>.<other>; else the files of WMT, whose names begin
            as CORPORA says and end in .en, -src.en.sgm and so on. A corpus that is not there is left out, with a word.
        languages: (source, target), parts of the files' names.
    Returns:
        dicts of language -> sentence.
    Raises:
        MissingInput, BadInput: no files, one side missing, or of another length.
    """
    files = sorted(os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    found, absent = [], []
    starts = (split,) if _sides(files, split, languages)[0] else CORPORA[task][split]
    for start in starts:
        sources, targets = _sides(files, start, languages)
        if not sources and not targets:
            absent.append(start)
            continue
        if len(sources) != len(targets):
            side, other = (languages if len(sources) > len(targets) else languages[::-1])
            raise MissingInput(f"{folder}: {start}* has {len(sources)} files in {languages[0]} and {len(targets)} in "
                               f"{languages[1]}; for each of {side} one of {other} is needed")
        for paths in zip(sources, targets, strict=True):
            found += pairs(paths, languages)
    if not found:
        raise MissingInput(f"{folder}: holds no files of the split {split}; expected {split}.{languages[0]} and "
                           f"{split}.{languages[1]}, or WMT's {', '.join(start + '*' for start in starts)}")
    if absent:
        warn_once(f"{folder}: without {', '.join(absent)} the {split} split is smaller than the paper's")
    return found


def _sides(files, start, languages):
    """The paths of a corpus in the two languages, in the same order."""
    named = [path for path in files if os.path.basename(path).lower().startswith(start)]
    return [[path for path in named if re.search(rf"\.{language}(\.sgm)?$", path)] for language in languages]


def pairs(paths: tuple[str, str], languages: tuple[str, str]) -> list[dict]:
    """The sentences of two files side by side; pairs with an empty side are left out, as in the original.

    Raises:
        BadInput: they have not the same number of sentences.
    """
    sides = [_sentences(path) for path in paths]
    if len(sides[0]) != len(sides[1]):
        raise BadInput(f"{paths[0]}: has {len(sides[0])} sentences, but {paths[1]} {len(sides[1])}; they do not belong "
                       "together, or one is cut short")
    return [dict(zip(languages, pair, strict=True)) for pair in zip(*sides, strict=True) if all(pair)]


def _sentences(path):
    """The lines of a file, which end at line feeds alone; of a .sgm file the texts of its segments as they stand."""
    text = read_text(path, "WMT's files are UTF-8").removeprefix("\ufeff")
    if path.endswith(".sgm"):
        return re.findall(r"<seg[^>]*>(.*?)</seg>", text)
    return text.removesuffix("\n").split("\n")
