"""What a person in a notebook reads: names, signatures, docstrings, repr, settings, and answers to wrong arguments."""

import ast
import copy
import importlib
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from cloze_data import write_data_dir
from small_gpt import small_lm
from small_gpt import small_model as small_double
from small_t5 import odd_batch, small_model

from datasets import rocstories
from formats.errors import BadInput
from model_pytorch import DEFAULT_CONFIG, dotdict, export_openai_model, load_openai_pretrained_model
from t5_pytorch import export_t5_model, load_t5_pretrained_model
from utils import encode_dataset, iter_data

MODULES = ["model_pytorch", "t5_pytorch", "t5_decoding", "loss", "opt", "text_utils", "datasets", "utils", "explore",
           "analysis"]


@pytest.mark.parametrize("name", MODULES)
def test_star_imports_give_what_is_there_and_documented(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), public
        if inspect.isclass(value) and "forward" in vars(value):
            assert inspect.getdoc(value.forward), public


def test_star_imports_of_two_modules_share_no_name():
    names = [name for module in MODULES for name in importlib.import_module(module).__all__ if name != "rocstories"]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def is_typed(function):
    """Whether each argument of a function has a type; `self`, `cls`, *args and **kwargs need none."""
    named = [p for p in inspect.signature(function).parameters.values()
             if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in ("self", "cls")]
    return all(p.annotation is not p.empty for p in named)


@pytest.mark.parametrize("name", MODULES)
def test_public_signatures_have_types(name):
    module = importlib.import_module(name)
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isfunction(value):
            assert is_typed(value) and inspect.signature(value).return_annotation is not inspect.Signature.empty, public
        if inspect.isclass(value):
            for method, function in vars(value).items():
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function) and (method == "__init__" or not method.startswith("_")):
                    assert is_typed(function), (public, method)


@pytest.mark.parametrize("name", ["model_pytorch", "t5_pytorch"])
def test_every_forward_has_a_docstring_and_types(root, name):
    forwards = [node for node in ast.walk(ast.parse((root / f"{name}.py").read_text()))
                if isinstance(node, ast.FunctionDef) and node.name == "forward"]
    assert len(forwards) >= 8
    for node in forwards:
        assert ast.get_docstring(node) and node.returns is not None, node.lineno
        assert all(argument.annotation for argument in node.args.args[1:]), node.lineno


def test_repr_shows_sizes_and_rates():
    gpt, t5 = repr(small_double(attn_pdrop=0.3)), repr(small_model(dropout=0.2, tie_logits=False))
    for part in ("vocab=123, n_ctx=23", "nx=36, nf=108", "n_head=3", "act=gelu", "clf_token=99", "36, e=1e-05",
                 "p=0.3"):
        assert part in gpt, part
    for part in ("heads=3", "n_in=20, n_out=21", "20, epsilon=1e-06", "relu", "p=0.2"):
        assert part in t5, part


def test_what_loading_returns_does_not_flood_a_cell(tmp_path):
    model = small_lm()
    export_openai_model(model, str(tmp_path / "gpt"))
    report = load_openai_pretrained_model(model, n_transfer=2, n_embd=36, path=str(tmp_path / "gpt"), verbose=False)
    assert repr(report) == "{'loaded': 25 names, 'fresh': 0 names, 'left_out': 0 names}"
    assert report["loaded"][0] == "model/we:0" and dict(report) == report
    t5 = small_model()
    export_t5_model(t5, str(tmp_path / "t5"))
    report = load_t5_pretrained_model(t5, str(tmp_path / "t5"))
    assert "names" in repr(report) and len(repr(report)) < 100 and len(report["loaded"]) > 20


def test_settings_stay_settings_and_the_default_stays_the_default():
    before = dict(DEFAULT_CONFIG)
    made = [DEFAULT_CONFIG | {"n_layer": 3}, DEFAULT_CONFIG.copy(), copy.deepcopy(DEFAULT_CONFIG),
            pickle.loads(pickle.dumps(DEFAULT_CONFIG)), copy.copy(DEFAULT_CONFIG)]
    made += [settings | {} for settings in made] + [pickle.loads(pickle.dumps(made[0])), made[0].copy()]
    for settings in made:
        assert type(settings) is dotdict and settings.n_embd == 768
        settings.n_layer = 5
        settings["n_head"] = 2
        assert (settings.n_layer, settings.n_head) == (5, 2)
    assert dict(DEFAULT_CONFIG) == before

    def by_in_place_or(default=DEFAULT_CONFIG):
        default |= {"n_layer": 1}

    changes = [by_in_place_or, lambda: DEFAULT_CONFIG.update(n_layer=1), lambda: DEFAULT_CONFIG.pop("n_layer"),
               lambda: DEFAULT_CONFIG.__setitem__("n_layer", 1), lambda: setattr(DEFAULT_CONFIG, "n_layer", 1),
               lambda: delattr(DEFAULT_CONFIG, "n_layer"), lambda: DEFAULT_CONFIG.setdefault("x", 1)]
    for change in changes:
        with pytest.raises(BadInput, match=r"^DEFAULT_CONFIG is shared by all models; change a copy of it"):
            change()
    assert dict(DEFAULT_CONFIG) == before


def test_a_message_names_the_argument_that_is_wrong(tmp_path, capsys):
    data_dir, gpt, t5 = write_data_dir(tmp_path / "data"), small_lm(), small_model()
    src, tgt = odd_batch()

    class Encoder:
        def encode(self, texts):
            from text_utils import numbered
            return [[len(text)] for text in numbered(texts, False)]

    answers = {
        r"^n_valid is 40, allowed is 1 to 39": lambda: rocstories(data_dir, n_valid=40),
        r"^iter_data got arrays of 3, 4 rows": lambda: list(iter_data([1, 2, 3], np.ones(4))),
        r"^iter_data got arrays of no rows": lambda: list(iter_data()),
        r"^n_batch is 0, expected 1 or more": lambda: list(iter_data([1], n_batch=0)),
        r"^texts\[0\] is NoneType": lambda: encode_dataset(([None, "a"], ["b", "c"]), encoder=Encoder()),
        r"^texts\[1\] is float 'nan'": lambda: encode_dataset((["a", math.nan], ["b", "c"]), encoder=Encoder()),
        r"^x is ndarray, expected a tensor": lambda: gpt(np.ones((1, 2, 2), int)),
        r"^x is int64 \[1, 5\], expected int \[..., length, 2\]": lambda: gpt(torch.ones(1, 5).long()),
        r"^src has token ids from 0 to 53, expected 0 to 52": lambda: t5(src.clone().fill_(53).tril(), tgt),
        r"^tgt has token ids from -100 to": lambda: t5(src, tgt.masked_fill(tgt == 0, -100)),
        r"^src is float32 \[3, 11\], expected int \[batch, length\]": lambda: t5(src.float(), tgt),
        r"^tgt is int64 \[7\], expected int \[batch, length\]": lambda: t5(src, tgt[0]),
        r"^src is list, expected a tensor": lambda: t5.encode(src.tolist()),
    }
    for message, call in answers.items():
        with pytest.raises(BadInput, match=message):
            call()
    capsys.readouterr()
    rocstories(data_dir, n_valid=30)
    assert "has 40 stories: n_valid 30 leaves 10 to train on" in capsys.readouterr().err


def test_a_default_is_told_once_and_only_where_there_is_one():
    from utils import OneLineParser
    parser = OneLineParser(prog="p")
    parser.add_argument("--a", type=int, default=7, help="first")
    parser.add_argument("--b", help="second (default: as many as there are)")
    parser.add_argument("--c", help="third")
    parser.add_argument("--d", action="store_true", help="fourth")
    parser.add_argument("--e", type=int, default=0, help="fifth")
    text = parser.format_help()
    assert "default: None" not in text and "default: False" not in text and text.count("default:") == 3
    assert "first (default: 7)" in text and "fifth (default: 0)" in text
