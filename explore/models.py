"""A pre-trained model with its encoder, from a folder or the Hub."""

import torch

from formats.hub import local_folder
from model_pytorch import LMModel
from t5_pytorch import T5
from text_utils import SentencePieceEncoder, TextEncoder


def load_gpt(name: str, revision: str | None = None,
             dtype: torch.dtype | None = None) -> tuple[LMModel, TextEncoder]:
    """Return a GPT in evaluation mode, and its encoder.

    Args:
        name: a folder in OpenAI's format or the Hub's, or `owner/name` of a repository on the Hub.
        revision: branch, tag or commit of the repository.
        dtype: of the parameters; torch.bfloat16 takes half of the memory. None: float32.
    Raises:
        MissingInput, BadInput: see LMModel.from_pretrained and TextEncoder.from_folder.
    """
    folder = local_folder(name, revision)
    return LMModel.from_pretrained(folder, dtype=dtype), TextEncoder.from_folder(folder)


def load_t5(name: str, revision: str | None = None,
            dtype: torch.dtype | None = None) -> tuple[T5, SentencePieceEncoder]:
    """Return a T5 in evaluation mode, and its encoder; as load_gpt.

    Raises:
        MissingInput, BadInput: see T5.from_pretrained and SentencePieceEncoder.from_folder.
    """
    folder = local_folder(name, revision)
    return T5.from_pretrained(folder, dtype=dtype), SentencePieceEncoder.from_folder(folder)
