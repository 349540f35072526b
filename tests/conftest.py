"""Puts the repository's root on the import path and names the folders tests read from."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)


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
