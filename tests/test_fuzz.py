"""Random damage to every kind of file that is read: a right load or one line, never anything else.

FUZZ_CASES=2000 python -m pytest tests/test_fuzz.py      the long run; every kind gets so many cases

The damage is drawn from a fixed seed. TensorFlow checkpoints have a harness of their own in test_tf_checkpoint.py.
"""

import contextlib
import functools
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from cloze_data import rows, write_csv
from conftest import write_small_vocabulary
from safetensors.numpy import load_file, save_file
from t5_vocabularies import write_tokenizer
from task_files import OTHER_FORMS, texts_of, write_form, write_task
from test_own_data import write as write_own

from datasets import _rocstories
from formats.errors import BadInput, MissingInput
from formats.files import load_tensors
from formats.gpt_files import _read_gpt_config, read_pretrained
from formats.gpt_vocabulary import read_folder
from model_pytorch import ACT_FNS, LMModel, dotdict, export_openai_model
from t5_pytorch import T5, checkpoint_names, export_t5_model, load_t5_pretrained_model, read_t5_config
from tasks.gpt_tasks import GPT_TASKS
from tasks.own_data import own_examples
from tasks.race_files import _questions
from text_utils import SentencePieceEncoder, read_encoder, read_merges

CASES = int(os.environ.get("FUZZ_CASES", "100"))
SPARE = 1 << 18          # bytes a reader may take beyond twice the honest file or the honest load
SPARE_ZIP = 1 << 21      # the same where zipfile reads, by the megabyte
SPARE_NATIVE = 64 << 20  # the same for memory that Python does not see, measured for the whole process
LONGEST_MESSAGE = 1000   # characters
SECONDS = 30             # until a case counts as hanging
DIGITS = [b"9" * 19, b"9" * 400, b"9" * 5000, b"4294967295", b"2147483647", b"-1", b"0", b"1e999", b"NaN", b"1.5",
          b"null", b"true", b"\"x\"", b"[]", b"{}"]
GARBAGE = [b"\n", b"\r", b"\"", b",", b"{", b"[" * 2000, b"\\u0000", b"\\ud800", b"\\n", b"\xef\xbb\xbf", b"\xff\xfe",
           b"\xe2\x80\xa8", b"PK\x03\x04", b"\x93NUMPY", b"version https://git-lfs.github.com/spec/v1\n"]


def damaged(data, rng, others):
    """Return `data` with one to three kinds of damage."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(DAMAGES)(data, rng, others)
    return data


def cut_short(data, rng, others):
    return data[:rng.randrange(len(data) + 1)]


def flip_bits(data, rng, others):
    changed = bytearray(data)
    # headers are short and all else hangs on them
    reach = len(data) if rng.random() < 0.5 else min(len(data), 200)
    for _ in range(rng.choice((1, 2, 5, 40)) if data else 0):
        changed[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data, rng, others):
    filler = rng.choice((b"\0", b"\xff")) * rng.choice((1, 2, 4, 8, 100))
    at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.choice((0, 4, 8, 16, 64))
    return data[:at] + filler + data[at + len(filler):]


def huge_number(data, rng, others):
    places = list(re.finditer(rb"\d+", data[:100_000]))
    if not places:
        return data + rng.choice(DIGITS)
    place = rng.choice(places)
    return data[:place.start()] + rng.choice(DIGITS) + data[place.end():]


def insert_garbage(data, rng, others):
    at = rng.randrange(len(data) + 1)
    filler = rng.choice((rng.choice(GARBAGE), rng.randbytes(rng.choice((1, 7, 300)))))
    return data[:at] + filler + data[at:]


def repeat_block(data, rng, others):
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:b] + data[a:b] + data[b:]


def drop_block(data, rng, others):
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + data[min(b, a + rng.choice((1, 8, 1000))):]


def another_file(data, rng, others):
    return rng.choice(others)


DAMAGES = [cut_short, flip_bits, overwrite, huge_number, insert_garbage, repeat_block, drop_block, another_file]


# The kinds of files: what writes an honest one, what reads it, and what a load has to satisfy


def make_csv(folder):
    write_csv(folder / "stories.csv", [*rows(30), ["x", 'Said, "no".', "", "Zoë ☃", "🙂", "a\nb", "c", "2"]])


def read_csv(folder):
    return _rocstories(str(folder / "stories.csv"))


def right_csv(loaded, honest):
    st, ct1, ct2, y = loaded
    assert len(st) == len(ct1) == len(ct2) == len(y) > 0 and set(y.tolist()) <= {0, 1}
    for text in (*st, *ct1, *ct2):
        assert "\0" not in text
        text.encode()


def make_form(form):
    """A function that writes the training file of a task in one of its forms, and what belongs to it."""
    def make(folder):
        name = write_form(folder / "all", form)
        for path in GPT_TASKS[name].files(str(folder / "all"))["train"]:
            os.replace(path, folder / os.path.basename(path))
        shutil.rmtree(folder / "all")
    return make


def read_form(form):
    name = OTHER_FORMS[form][0] if form in OTHER_FORMS else form
    return lambda folder: GPT_TASKS[name].read(str(folder), "train")


def right_split(loaded, honest):
    """As many texts and labels as there are examples, all of them Unicode; labels of the task."""
    assert len(loaded) == len(loaded.labels) == len(loaded.index) > 0 and (np.diff(loaded.index) > 0).all()
    for texts in loaded.texts.values():
        assert len(texts) == len(loaded)
        for text in texts:
            assert "\0" not in text
            text.encode()
    assert loaded.texts.keys() == honest.texts.keys()
    if any(label not in honest.labels for label in loaded.labels):  # another score, or the right number as text
        assert all(0 <= float(label) <= 5 for label in loaded.labels)


def make_race(folder):
    write_task(folder / "all", "race")
    (folder / "all" / "RACE" / "train" / "high" / "1.txt").rename(folder / "1.txt")
    shutil.rmtree(folder / "all")


def right_race(loaded, honest):
    for article, question, options, answer in loaded:
        assert answer in "ABCD" and len(options) == 4
        for text in (article, question, *options):
            assert "\0" not in text
            text.encode()


def make_own(name):
    def make(folder):
        write_own(folder / name, ["text1", "text2", "label"], [[*texts_of(i), f"class {i % 3}"] for i in range(30)])
    return make


def read_own_of(name):
    return lambda folder: own_examples("similarity", str(folder / name), str(folder / name))


def right_own(loaded, honest):
    task, splits = loaded
    for split in splits.values():
        assert set(split.labels) <= set(task.classes) or task.score_range is not None
        for text in (*split.texts["text1"], *split.texts["text2"], *split.labels):
            assert "\0" not in text
            text.encode()


def make_released(folder):
    torch.manual_seed(5)
    cfg = dotdict(n_embd=12, n_head=2, n_layer=2, afn="gelu", embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
    export_openai_model(LMModel(cfg, 93 + 16, 16), str(folder))


def read_released(folder):
    loaded = {name: np.asarray(value) for name, value in read_pretrained(str(folder)).arrays.items()}
    for value in loaded.values():
        value.view(np.uint32).max()  # touch every page
    return loaded


def right_weights(loaded, honest):
    assert list(loaded) == list(honest)
    for name, value in loaded.items():
        assert value.dtype == np.float32 and value.shape == honest[name].shape


def make_hub(folder):
    (folder / "released").mkdir()
    make_released(folder / "released")
    arrays = {}
    for name, value in read_pretrained(str(folder / "released")).arrays.items():
        name = {"positions": "positions_embed.weight", "tokens": "tokens_embed.weight"}.get(name, name)
        name = re.sub(r"\.[wg]$", ".weight", re.sub(r"\.b$", ".bias", name))
        arrays[name] = np.asarray(value)
    for file in (folder / "released").iterdir():
        file.unlink()
    (folder / "released").rmdir()
    save_file(arrays, folder / "model.safetensors")


def right_hub(loaded, honest):
    """As in the honest file, unless the damage only changed the number of layers or rows in a way that fits."""
    assert {"positions", "tokens"} <= loaded.keys()
    for name in honest:
        assert name in loaded and loaded[name].dtype == np.float32 and loaded[name].shape == honest[name].shape


@functools.cache
def tiny_t5():
    torch.manual_seed(3)
    return T5(dim=8, enc_num_tokens=40, enc_depth=2, enc_heads=2, enc_dim_head=3, enc_mlp_mult=2, dec_num_tokens=40,
              dec_depth=1, dec_heads=2, dec_dim_head=3, dec_mlp_mult=2)


def make_t5(folder):
    arrays = {checkpoint_names(name)[1]: p.detach().numpy() + 1 for name, p in tiny_t5().named_parameters()}
    save_file(arrays, folder / "model.safetensors")


def read_t5(folder):
    """A refused file leaves the model as it was."""
    model = tiny_t5()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    try:
        report = load_t5_pretrained_model(model, str(folder))
    except ValueError:
        assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
        raise
    model.load_state_dict(before)
    return report


def right_t5(loaded, honest):
    assert loaded == honest and honest["loaded"] and not honest["fresh"]


def make_t5_bin(folder, **options):
    """The same as PyTorch's file, without and with parts of it that are no tensors of the model."""
    tensors = {checkpoint_names(name)[1]: p.detach() + 1 for name, p in tiny_t5().named_parameters()}
    with open(folder / "pytorch_model.bin", "wb") as f:
        torch.save({**tensors, "lm_head.weight": tensors["shared.weight"]}, f, **options)


def make_t5_older_bin(folder):
    make_t5_bin(folder, _use_new_zipfile_serialization=False)


def make_parts(folder):
    """The Hub's GPT in two parts with an index."""
    make_hub(folder)
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {}
    for part, names in enumerate((sorted(arrays)[:15], sorted(arrays)[15:]), 1):
        file = f"model-{part:05d}-of-00002.safetensors"
        save_file({name: arrays[name] for name in names}, folder / file)
        where.update(dict.fromkeys(names, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def make_t5_config(folder):
    export_t5_model(tiny_t5(), folder)
    (folder / "model.safetensors").unlink()


def read_config_of_t5(folder):
    return read_t5_config(str(folder))


def right_t5_config(loaded, honest):
    assert loaded.keys() >= honest.keys() and loaded["feed_forward"] in ("relu", "gated-gelu")
    for name, value in honest.items():
        assert type(loaded[name]) is type(value) or name == "dropout", (name, loaded[name])
        assert type(value) is not int or name == "dropout" or 0 < loaded[name] < 1 << 24, (name, loaded[name])
    assert 0 <= loaded["dropout"] < 1 and 0 <= loaded.get("epsilon", 0) < 1


def make_gpt_config(folder):
    make_released(folder)
    for file in [file for file in folder.iterdir() if file.name != "config.json"]:
        file.unlink()


def read_config_of_gpt(folder):
    return _read_gpt_config(str(folder), (16, 93, 12, 2))


def right_gpt_config(loaded, honest):
    assert loaded.get("n_head", 12) in (1, 2, 3, 4, 6, 12) and loaded.get("afn", "gelu") in ACT_FNS
    assert all(0 <= rate < 1 for rate in loaded.get("dropouts", {}).values())


def make_encoder(folder):
    write_small_vocabulary(folder)
    (folder / "vocab_40000.bpe").unlink()


def read_vocabulary(folder):
    return read_encoder(str(folder / "encoder_bpe_40000.json"))


def right_encoder(loaded, honest):
    assert all(type(piece) is str for piece in loaded) and sorted(loaded.values()) == list(range(len(loaded)))


def make_merges(folder):
    write_small_vocabulary(folder)
    (folder / "encoder_bpe_40000.json").unlink()


def read_bpe(folder):
    return read_merges(str(folder / "vocab_40000.bpe"))


def right_merges(loaded, honest):
    assert all(len(pair) == 2 and all(pair) for pair in loaded)  # none: a vocabulary of characters alone
    assert sorted(loaded.values()) == list(range(len(loaded)))


def make_gpt_tokenizer(folder):
    encoder, merges = map(Path, write_small_vocabulary(folder))
    content = {"added_tokens": [], "model": {
        "type": "BPE", "end_of_word_suffix": "</w>", "vocab": json.loads(encoder.read_text()),
        "merges": [line.split(" ") for line in merges.read_text().splitlines()[1:]]}}
    encoder.unlink()
    merges.unlink()
    (folder / "tokenizer.json").write_text(json.dumps(content))


def make_hub_vocabulary(folder):
    for path, name in zip(write_small_vocabulary(folder), ("vocab.json", "merges.txt"), strict=True):
        os.rename(path, folder / name)


def right_vocabulary(loaded, honest):
    """Two files, or two parts of one, that check each other: damage can change single characters alone."""
    made = {a + b for a, b in loaded[1]}
    assert made <= loaded[0].keys()
    unmade = {piece for piece in loaded[0] if len(piece.removesuffix("</w>")) != 1} - made
    assert "<unk>" in unmade and all(re.fullmatch(r"<.*>|\[.*\]|_.*_", piece) for piece in unmade)
    right_encoder(loaded[0], honest[0])
    right_merges(loaded[1], honest[1])


def make_spiece(folder, **options):
    text = ["a cat sat on the mat", "the newer the lower", "it was glad, it's new", "low lower lowest ☃"] * 5
    with open(folder / "spiece.model", "wb") as f:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text), model_writer=f, vocab_size=60, hard_vocab_limit=False, pad_id=0, eos_id=1,
            unk_id=2, bos_id=-1, minloglevel=2, **options)


def make_t5_tokenizer(folder):
    (folder / "rules.tsv").write_text("FB01\t66 69\n")  # one rule, as the usual ones are many times the rest
    make_spiece(folder, normalization_rule_tsv=str(folder / "rules.tsv"))
    (folder / "rules.tsv").unlink()
    write_tokenizer(folder / "spiece.model", folder)
    (folder / "spiece.model").unlink()


def read_spiece(folder):
    encoder = SentencePieceEncoder.from_folder(str(folder))
    ids = encoder.encode(["the cat <extra_id_3> sat, it's ½ ﬁne ☃", ""], verbose=False)
    return encoder.n_tokens, ids, encoder.decode(ids[0])


def right_spiece(loaded, honest):
    n_tokens, ids, text = loaded
    assert all(0 <= i < n_tokens for i in ids[0]) and ids[1] == [] and isinstance(text, str)


def make_checkpoint(folder):
    torch.manual_seed(1)
    model = torch.nn.Linear(5, 7)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    with open(folder / "checkpoint", "wb") as f:  # torch would write the name of save_tensors's temporary file into it
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "n_updates": 3,
                    "best_score": -1.5, "orders": torch.arange(12).view(3, 4),
                    "options": {"lr": 0.1, "desc": "x", "resume": False, "opt": None}}, f)


def read_checkpoint(folder):
    return load_tensors(str(folder / "checkpoint"))


def right_checkpoint(loaded, honest):
    """Its zip format has checksums: what loads is what was saved, bit for bit."""
    assert repr(loaded) == repr(honest)


KINDS = {
    "csv": (make_csv, read_csv, right_csv),
    **{f"task {form}": (make_form(form), read_form(form), right_split)
       for form in (*GPT_TASKS, *OTHER_FORMS) if form not in ("rocstories", "race")},
    "race": (make_race, lambda folder: list(_questions(str(folder / "1.txt"))), right_race),
    **{f"own {kind}": (make_own(f"own.{kind}"), read_own_of(f"own.{kind}"), right_own) for kind in (
        "csv", "tsv", "jsonl")},
    "released": (make_released, read_released, right_weights),
    "hub": (make_hub, read_released, right_hub),
    "parts": (make_parts, read_released, right_hub),
    "gpt config": (make_gpt_config, read_config_of_gpt, right_gpt_config),
    "t5": (make_t5, read_t5, right_t5),
    "t5 bin": (make_t5_bin, read_t5, right_t5),
    "t5 older bin": (make_t5_older_bin, read_t5, right_t5),
    "t5 config": (make_t5_config, read_config_of_t5, right_t5_config),
    "encoder": (make_encoder, read_vocabulary, right_encoder),
    "merges": (make_merges, read_bpe, right_merges),
    "vocabulary of the Hub": (make_hub_vocabulary, read_folder, right_vocabulary),
    "tokenizer of a GPT": (make_gpt_tokenizer, read_folder, right_vocabulary),
    "spiece": (make_spiece, read_spiece, right_spiece),
    "tokenizer of a T5": (make_t5_tokenizer, read_spiece, right_spiece),
    "checkpoint": (make_checkpoint, read_checkpoint, right_checkpoint),
}


@pytest.fixture(scope="module")
def honest_files(tmp_path_factory):
    """{kind: (folder, {file name: bytes})}"""
    files = {}
    for kind, (make, _, _) in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        make(folder)
        files[kind] = folder, {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    return files


class Hang(BaseException):
    """Not an Exception, so that no reader can take it for a damaged file."""


@contextlib.contextmanager
def time_limit():
    def hang(number, frame):
        raise Hang(f"more than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def peaks(read):
    """Call read() and return (its value or the error it answers with, bytes of Python's memory at the peak)."""
    tracemalloc.start()
    try:
        with time_limit(), contextlib.redirect_stderr(io.StringIO()):
            try:
                value = read()
            except (BadInput, MissingInput) as error:
                value = error.with_traceback(None)
        return value, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def replace(path, data):
    """Write a new file in place of `path`: one that is still mapped into memory must not change."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_load_right_or_are_refused_in_one_line(honest_files, kind):
    folder, files = honest_files[kind]
    _, read, right = KINDS[kind]
    others = [data for _, contents in honest_files.values() for name, data in contents.items()
              if kind != "checkpoint" or name != "pytorch_model.bin"]  # which is a file of tensors as good as another
    read(folder)  # what is imported or cached once
    honest, honest_peak = peaks(lambda: read(folder))
    right(honest, honest)
    rng = random.Random(f"20180611 {kind}")
    outcomes = {"loaded": 0, "refused": 0}
    for number in range(CASES):
        name = rng.choice(list(files))
        data = damaged(files[name], rng, others)
        replace(folder / name, data)
        size = sum(len(contents) for contents in files.values()) - len(files[name]) + len(data)
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            value, peak = peaks(lambda: read(folder))
            if isinstance(value, Exception):
                message = str(value)
                assert "\n" not in message and "\r" not in message and str(folder) in message, message
                assert len(message) < LONGEST_MESSAGE + len(str(folder)), message[:2000]
                message.encode()
            else:
                right(value, honest)
            # an honest load of Python objects may take several times its file, so that counts as honest too
            limit = 2 * max(size, honest_peak) + (SPARE_ZIP if kind in ("checkpoint", "t5 bin") else SPARE)
            if peak > limit:  # what a library imports at its first error is taken once and no more
                peak = peaks(lambda: read(folder))[1]
            assert peak < limit, f"{peak:,} bytes for a file of {size:,}"
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident)
            assert grown < 2 * size + SPARE_NATIVE, f"the process grew by {grown:,} bytes for a file of {size:,}"
        except BaseException:
            print(f"case {number} of {kind}, {name}: {data[:300]!r}")
            raise
        outcomes["refused" if isinstance(value, Exception) else "loaded"] += 1
        del value
        replace(folder / name, files[name])
    print(f"{kind}: {outcomes}")
    assert outcomes["refused"] > 0 and (outcomes["loaded"] > 0 or CASES < 50), outcomes


def in_directory(data, record, at, value):
    """Overwrite bytes of a record's entry in a zip file's central directory."""
    start = data.rindex(b"PK\1\2", 0, data.rindex(record))
    return data[:start + at] + value + data[start + at + len(value):]


FOUND = {  # what long runs have found, each once an error of another kind or a wrong load
    "a header NumPy's tokenizer stumbles over": ("released", "params_3.npy", lambda d: d.replace(b"}", b"(", 1)),
    "a damaged zip file for parameters": ("released", "params_3.npy", lambda d: b"PK\3\4" + d[4:]),
    "a merge twice": ("merges", "vocab_40000.bpe", lambda d: d + d.split(b"\n")[2] + b"\n"),
    "a letter of a checkpoint's key": ("checkpoint", "checkpoint", lambda d: d.replace(b"weight_d", b"weight_D", 1)),
    "a number in a checkpoint": ("checkpoint", "checkpoint", lambda d: d.replace(b"G\xbf\xf8", b"G\xbf\xf9", 1)),
    "a checkpoint's tensor of no bytes": (
        "checkpoint", "checkpoint", lambda d: in_directory(d, b"archive/data/7", 20, b"\0" * 8)),
    "a checkpoint's tensor marked as a folder": (
        "checkpoint", "checkpoint", lambda d: in_directory(d, b"archive/data/7", 38, b"\x10")),
    "a NumPy header of half a gigabyte": ("released", "params_3.npy", lambda d: d[:6] + b"\3\0\0\0\0\x20" + d[12:]),
    "an index that names a file of 5,000 letters": (
        "parts", "model.safetensors.index.json", lambda d: d.replace(b"00002.safe", b"0" * 5000 + b".safe", 1)),
    "an older .bin with a string of 256 megabytes": (
        "t5 older bin", "pytorch_model.bin", lambda d: d.replace(b"X\r\0\0\0", b"X\r\0\0\x10", 1)),
    "an older .bin with more values than bytes": (
        "t5 older bin", "pytorch_model.bin", lambda d: d.replace(b"M@\1N", b"J\0\0\0\x7fN", 1)),
    "a tensor of a .bin compressed": ("t5 bin", "pytorch_model.bin", lambda d: in_directory(
        d, b"archive/data/0", 10, b"\x08\0")),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_long_runs_have_found(honest_files, what):
    kind, name, damage = FOUND[what]
    folder, files = honest_files[kind]
    data = damage(files[name])
    assert data != files[name]
    replace(folder / name, data)
    try:
        value, peak = peaks(lambda: KINDS[kind][1](folder))
    finally:
        replace(folder / name, files[name])
    assert isinstance(value, BadInput) and name in str(value) and "\n" not in str(value)
    assert peak < 1 << 22


@pytest.mark.parametrize("kind, name", [
    ("encoder", "encoder_bpe_40000.json"), ("merges", "vocab_40000.bpe"), ("released", "params_shapes.json")])
def test_a_large_binary_file_for_a_text_takes_no_more_than_its_size(honest_files, kind, name):
    folder, files = honest_files[kind]
    data = np.random.default_rng(0).bytes(4 << 20)
    replace(folder / name, data)
    try:
        value, peak = peaks(lambda: KINDS[kind][1](folder))
    finally:
        replace(folder / name, files[name])
    assert isinstance(value, BadInput) and peak < 2 * len(data)


def test_the_damage_is_the_same_every_time():
    data = json.dumps({"a": list(range(300))}).encode()
    draws = [[damaged(data, random.Random(seed), [b"other"]) for seed in range(50)] for _ in range(2)]
    assert draws[0] == draws[1] and len(set(draws[0])) > 40
