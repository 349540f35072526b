"""Puts the repository's root on the import path and names the folders tests read from."""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# Small products gain nothing from threads, and on a busy machine lose much: one thread each, scripts included.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)


@pytest.fixture(autouse=True)
def warnings_again():
    """What one test was warned of, the next one hears too."""
    from formats.errors import warn_once
    warn_once.cache_clear()


@pytest.fixture(scope="session")
def root():
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def golden():
    """The folder with the reference numbers that the original TensorFlow code produced."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def openai_vocabulary():
    """The folder with OpenAI's two vocabulary files; the test is skipped where nobody supplied them."""
    for folder in (ROOT / "model", ROOT.parent / "shared" / "model"):
        if (folder / "encoder_bpe_40000.json").is_file() and (folder / "vocab_40000.bpe").is_file():
            return folder
    pytest.skip("OpenAI's encoder_bpe_40000.json and vocab_40000.bpe are in neither model/ nor ../shared/model/")


@pytest.fixture(scope="session")
def t5_vocabulary():
    """The path of the released T5 models' spiece.model; the test is skipped where nobody supplied it."""
    for folder in (ROOT / "model" / "t5", ROOT.parent / "shared" / "model" / "t5"):
        if (folder / "spiece.model").is_file():
            return folder / "spiece.model"
    pytest.skip("the released T5 models' spiece.model is in neither model/t5/ nor ../shared/model/t5/")


@pytest.fixture(scope="session")
def small_vocabulary(tmp_path_factory):
    """(encoder path, merges path) of a vocabulary of single characters and five merges."""
    return write_small_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def write_small_vocabulary(folder):
    """Write a vocabulary of single characters and five merges; return its two paths as strings."""
    merges = ["l o", "lo w</w>", "e r", "n e", "ne w"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-"
    pieces = ["<unk>", *letters, *(c + "</w>" for c in letters), *(m.replace(" ", "") for m in merges), "\n</w>"]
    paths = folder / "encoder_bpe_40000.json", folder / "vocab_40000.bpe"
    paths[0].write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}), encoding="utf-8")
    paths[1].write_text("#version: 0.2\n" + "".join(m + "\n" for m in merges), encoding="utf-8")
    return tuple(map(str, paths))
