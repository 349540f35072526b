"""tf_checkpoint.py: bit-exact on checkpoints that TensorFlow wrote, one clear line on anything else."""

import os
import random
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from tf_writer import BFLOAT16, FLOAT32, INT32, STRING, entry, field, table, varint

import utils
from formats import tf_checkpoint

CASES = ("t5_v1_0", "t5_v1_1")
PREFIX = "model.ckpt-1000000"
FUZZ_CASES = int(os.environ.get("FUZZ_CASES", 150))

HEADER = (b"", field(1, 1))
VALUES = np.arange(15, dtype="<f4").tobytes()
RIGHT = (b"encoder/w", entry(FLOAT32, [3, 5], 0, 0, VALUES))


def written(folder, index, data=VALUES):
    """Write a checkpoint of one shard and return its folder."""
    (folder / "m.index").write_bytes(index)
    (folder / "m.data-00000-of-00001").write_bytes(data)
    return folder


@pytest.fixture
def case(golden, tmp_path):
    """A copy of the v1.0 checkpoint that may be damaged."""
    return shutil.copytree(golden / "t5" / "t5_v1_0" / "checkpoint", tmp_path / "case")


def same_bytes(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def assert_one_line(error, *words):
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000, message
    for word in words:
        assert word in message, (word, message)


# What is right


@pytest.mark.parametrize("name", CASES)
def test_golden_bit_for_bit(golden, name):
    folder = golden / "t5" / name / "checkpoint"
    dtype = {"t5_v1_0": torch.float32, "t5_v1_1": torch.bfloat16}[name]
    with np.load(golden / "t5" / name / "golden.npz") as reference:
        expected = {key.removeprefix("param/"): reference[key] for key in reference if key.startswith("param/")}
    tensors = tf_checkpoint.read_checkpoint(folder)
    assert list(tensors) == sorted(expected)
    for variable, value in expected.items():
        assert tensors[variable].dtype == dtype
        assert tensors[variable].shape == value.shape
        assert same_bytes(tensors[variable].float()) == value.tobytes(), variable
    for path in (folder / PREFIX, str(folder / PREFIX) + ".index"):
        again = tf_checkpoint.read_checkpoint(path)
        assert all(torch.equal(again[key], tensors[key]) for key in tensors) and len(again) == len(tensors)


def test_list_variables_reads_no_data(case):
    expected = {name: (t.dtype, tuple(t.shape)) for name, t in tf_checkpoint.read_checkpoint(case).items()}
    for shard in case.glob("*.data-*"):
        shard.unlink()
    assert tf_checkpoint.list_variables(case) == expected
    assert list(tf_checkpoint.list_variables(case / PREFIX)) == list(expected)


def test_several_blocks_shards_and_odd_offsets(tmp_path):
    bf16 = np.array([0x3F80, 0xC000, 0x4040], "<u2").tobytes()  # 1, -2, 3: six bytes, so what follows is at 6
    shards = [bf16 + VALUES, b"", b"\xff\xff" + VALUES[:8]]
    blocks = [
        [(b"", field(1, 3)), (b"a/bf16", entry(BFLOAT16, [3], 0, 0, bf16))],
        [(b"a/f32", entry(FLOAT32, [5, 3], 0, 6, VALUES)), (b"a/f32_slot_v", entry(FLOAT32, [9], 1, 0, b"")),
         (b"a/f32_slot_vc", b""), (b"a/f32_slot_vr", b""), (b"a/slot_vx", entry(FLOAT32, [2], 2, 2, VALUES[:8]))],
        [(b"global_step", entry(9, [], 1, 0, b"")), (b"scalar", entry(FLOAT32, [], 0, 10, VALUES[4:8]))]]
    (tmp_path / "m.index").write_bytes(table(blocks))
    for number, data in enumerate(shards):
        (tmp_path / f"m.data-{number:05d}-of-00003").write_bytes(data)
    tensors = tf_checkpoint.read_checkpoint(tmp_path)
    assert {name: t.tolist() for name, t in tensors.items()} == {
        "a/bf16": [1, -2, 3], "a/f32": [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14]],
        "a/slot_vx": [0, 1], "scalar": 1}
    assert all(t.data_ptr() % t.element_size() == 0 for t in tensors.values())


def test_the_state_file_names_the_newest(case):
    for file in list(case.glob(PREFIX + ".*")):
        shutil.copy(file, case / file.name.replace("1000000", "2000000"))
    state = case / "checkpoint"
    for newest in ("1000000", "2000000"):
        state.write_text(f'model_checkpoint_path: "model.ckpt-{newest}"\n'
                         'all_model_checkpoint_paths: "model.ckpt-1000000"\n'
                         'all_model_checkpoint_paths: "model.ckpt-2000000"\n')
        (case / f"model.ckpt-{3000000 - int(newest)}.index").rename(case / "hidden")
        assert len(tf_checkpoint.read_checkpoint(case)) == 47
        (case / "hidden").rename(case / f"model.ckpt-{3000000 - int(newest)}.index")
    state.unlink()
    with pytest.raises(utils.BadInput) as error:
        tf_checkpoint.read_checkpoint(case)
    assert_one_line(error, str(case), "model.ckpt-1000000, model.ckpt-2000000", "give the prefix")
    (case / "model.ckpt-2000000.index").unlink()
    assert len(tf_checkpoint.read_checkpoint(case)) == 47


def test_writing_to_a_tensor_changes_no_file(case):
    before = {file.name: file.read_bytes() for file in case.iterdir()}
    for tensor in tf_checkpoint.read_checkpoint(case).values():
        tensor.zero_()
    assert {file.name: file.read_bytes() for file in case.iterdir()} == before


def test_a_huge_foreign_file_is_not_read_into_memory(tmp_path):
    with open(tmp_path / "m.index", "wb") as f:
        f.truncate(8 << 30)  # sparse: takes no space
    tracemalloc.start()
    with pytest.raises(utils.BadInput):
        tf_checkpoint.read_checkpoint(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


# What is wrong with the files


def test_missing_paths(tmp_path, case):
    with pytest.raises(utils.MissingInput) as error:
        tf_checkpoint.read_checkpoint(tmp_path / "nowhere")
    assert_one_line(error, str(tmp_path / "nowhere") + ".index", "not found", "folder", "prefix")
    with pytest.raises(utils.MissingInput):
        tf_checkpoint.read_checkpoint("\0")
    (tmp_path / "empty").mkdir()
    with pytest.raises(utils.MissingInput) as error:
        tf_checkpoint.list_variables(tmp_path / "empty")
    assert_one_line(error, str(tmp_path / "empty"), "no .index file")
    (case / (PREFIX + ".data-00000-of-00002")).unlink()
    with pytest.raises(utils.MissingInput) as error:
        tf_checkpoint.read_checkpoint(case)
    assert_one_line(error, "data-00000-of-00002: not found", "expects 2", "found model.ckpt-1000000.data-00001-of")


def test_data_files_of_another_shard_count(case):
    (case / (PREFIX + ".data-00000-of-00002")).rename(case / (PREFIX + ".data-00000-of-00003"))
    with pytest.raises(utils.MissingInput) as error:
        tf_checkpoint.read_checkpoint(case)
    assert_one_line(error, "expects 2 data file(s)", PREFIX + ".data-00000-of-00003")


def test_a_folder_or_a_pipe_in_place_of_a_file(case):
    (case / "checkpoint").unlink()
    (case / "a.index").mkdir()
    os.mkfifo(case / "b.index")
    assert len(tf_checkpoint.read_checkpoint(case)) == 47
    for path in ("a", "b"):
        with pytest.raises(utils.MissingInput):
            tf_checkpoint.read_checkpoint(case / path)


@pytest.mark.parametrize("state", [
    "../case/model.ckpt-1000000", "/etc/model.ckpt-1000000", "x\\model", "model\0.ckpt", "a\x1b[2J"])
def test_a_state_file_that_leads_out_of_the_folder(case, state):
    (case / "checkpoint").write_text(f'model_checkpoint_path: "{state}"\n')
    with pytest.raises(utils.BadInput) as error:
        tf_checkpoint.read_checkpoint(case)
    assert_one_line(error, str(case / "checkpoint"), "plain name", "give the prefix", PREFIX)


@pytest.mark.parametrize("state", [
    b"", b"\xff\xfe\0", b"\n" * 300000 + b"x", b" " * (1 << 21), b'model_checkpoint_path: "'])
def test_a_foreign_state_file(case, state):
    (case / "checkpoint").write_bytes(state)
    with pytest.raises(utils.BadInput) as error:
        tf_checkpoint.read_checkpoint(case)
    assert_one_line(error, str(case / "checkpoint"), "expected what TensorFlow writes", PREFIX)


def test_a_state_file_that_names_an_absent_checkpoint(case):
    for name in ("model.ckpt-7", "..", ""):
        (case / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\r\n')
        with pytest.raises(utils.MissingInput) as error:
            tf_checkpoint.read_checkpoint(case)
        assert_one_line(error, f"{name}.index: not found", "found " + PREFIX)


@pytest.mark.parametrize("cut", [0, 1, 47, 48, 100, 4000, 4809])
def test_truncated_index(case, cut):
    index = case / (PREFIX + ".index")
    for damaged in (index.read_bytes()[:cut], index.read_bytes()[4810 - cut:]):
        index.write_bytes(damaged)
        with pytest.raises(utils.BadInput) as error:
            tf_checkpoint.list_variables(case)
        assert_one_line(error, str(index), "expected the index of a TensorFlow V2 checkpoint", "download")


def test_flipped_bytes_of_an_index(case):
    index = case / (PREFIX + ".index")
    right = index.read_bytes()
    before = tf_checkpoint.list_variables(case)
    for at in range(0, len(right), 7):
        index.write_bytes(right[:at] + bytes([right[at] ^ 4]) + right[at + 1:])
        try:
            assert tf_checkpoint.list_variables(case) == before
            assert at in range(4729, 4742) or at >= 4762  # the meta-index, which is empty; the footer's padding
        except utils.BadInput as error:
            assert str(index) in str(error)


def test_damaged_data(case):
    shard = case / (PREFIX + ".data-00001-of-00002")
    right = shard.read_bytes()
    last = right.rindex(tf_checkpoint.read_checkpoint(case)["shared/embedding"].numpy().tobytes()[-64:]) + 64
    for damaged, words in (
            (right[:last - 1], f"has {last - 1} bytes, expected at least {last} for the variable shared/embedding"),
            (b"", "has 0 bytes"), (right[:100000], "has 100000 bytes"), (right[1:] + b"\0", "checksum"),
            (bytes([right[0] ^ 1]) + right[1:], "bytes 0 to 4096, variable decoder/block_000/layer_000/Self"),
            (right[:last - 1] + bytes([right[last - 1] ^ 128]) + right[last:], "variable shared/embedding, lack")):
        shard.write_bytes(damaged)
        with pytest.raises(utils.BadInput) as error:
            tf_checkpoint.read_checkpoint(case)
        assert_one_line(error, str(shard), words, "download")


def test_data_of_another_checkpoint(case, golden):
    other = golden / "t5" / "t5_v1_1" / "checkpoint" / (PREFIX + ".index")
    shutil.copy(other, case / (PREFIX + ".index"))
    with pytest.raises(utils.BadInput) as error:
        tf_checkpoint.read_checkpoint(case)
    assert_one_line(error, PREFIX + ".data-0000", "another")


# What is wrong inside an index whose checksums are right


@pytest.mark.parametrize(("pairs", "words"), [
    ([RIGHT], "not with a header"),
    ([(b"", field(1, 0)), RIGHT], "0 shards"),
    ([(b"", field(1, 1 << 40)), RIGHT], "shards"),
    ([(b"", field(1, b"text")), RIGHT], "not the message"),
    ([(b"", b"\xff" * 20), RIGHT], "cut off"),
    ([(b"", varint(1 << 3) + b"\xff" * 12 + b"\1"), RIGHT], "cut off"),
    ([(b"", field(1, 1) + field(2, 1)), RIGHT], "big-endian"),
    ([HEADER], "no variable"),
    ([HEADER, (b"global_step", b""), (b"w_slot_v", b""), (b"w_slot_vr", b"")], "no variable"),
    ([HEADER, (b"b", RIGHT[1]), (b"a", RIGHT[1])], "not in order"),
    ([HEADER, (b"a", RIGHT[1]), (b"a", RIGHT[1])], "not in order"),
    ([HEADER, (b"\xff\xfe", RIGHT[1])], "not text"),
    ([HEADER, (b"a\nb", RIGHT[1])], "not text"),
    ([HEADER, (b"n" * 1025, RIGHT[1])], "lengths"),
    ([HEADER, (b"\0\x01w\0\x01", RIGHT[1])], "partitioned"),
    ([HEADER, (b"w", RIGHT[1] + field(7, b""))], "partitioned"),
    ([HEADER, (b"w", entry(STRING, [3], 0, 0, VALUES))], "string"),
    ([HEADER, (b"w", entry(INT32, [15], 0, 0, VALUES))], "int32"),
    ([HEADER, (b"w", entry(77, [15], 0, 0, VALUES))], "77"),
    ([HEADER, (b"w", entry(FLOAT32, [15], 1, 0, VALUES))], "shard 1"),
    ([HEADER, (b"w", entry(FLOAT32, [4, 5], 0, 0, VALUES))], "[4, 5]"),
    ([HEADER, (b"w", entry(BFLOAT16, [3, 5], 0, 0, VALUES))], "bfloat16"),
    ([HEADER, (b"w", entry(FLOAT32, [15] + [1] * 8, 0, 0, VALUES))], "do not fit"),
    ([HEADER, (b"w", entry(FLOAT32, [1 << 62, 1 << 62, 4], 0, 0, VALUES))], "do not fit"),
    ([HEADER, (b"w", entry(FLOAT32, [(1 << 64) - 1], 0, 0, VALUES))], "do not fit"),
    ([HEADER, (b"w", entry(FLOAT32, [0, 1 << 63], 0, 0, b""))], "do not fit"),
    ([HEADER, (b"w", entry(FLOAT32, [15], 0, 0, VALUES)[:-2])], "not the message"),
    ([HEADER, (b"w", field(1, 1) + varint(2 << 3 | 2) + varint(1 << 60))], "not the message"),
    ([HEADER, (b"w", varint(9 << 3 | 3))], "not the message"),
    ([HEADER, (b"w", b"")], "of type 0"),
])
def test_wrong_index(tmp_path, pairs, words):
    folder = written(tmp_path, table([pairs]))
    with pytest.raises(utils.BadInput) as error:
        tf_checkpoint.read_checkpoint(folder)
    assert_one_line(error, str(folder / "m.index"), words, "expected the index", "download")


def test_values_outside_the_data_file(tmp_path):
    for offset, size in ((4, 60), ((1 << 64) - 1, 60), (0, 4 << 60)):
        index = table([[HEADER, (b"w", entry(FLOAT32, [size // 4], 0, offset, VALUES, size))]])
        folder = written(tmp_path, index)
        with pytest.raises(utils.BadInput) as error:
            tf_checkpoint.read_checkpoint(folder)
        assert_one_line(error, "m.data-00000-of-00001: has 60 bytes", f"at least {offset + size}")


@pytest.mark.parametrize(("change", "words"), [
    (lambda contents: contents[:-4] + b"\xff" * 4, "too short"),
    (lambda contents: b"", "too short"),
    (lambda contents: b"\x05" + contents[1:], "lengths"),  # shares 5 bytes with no key at all
    (lambda contents: b"\0\0" + varint(1 << 62) + contents[3:], "lengths"),
])
def test_wrong_block(tmp_path, change, words):
    folder = written(tmp_path, table([[HEADER, RIGHT]], change=change))
    with pytest.raises(utils.BadInput) as error:
        tf_checkpoint.read_checkpoint(folder)
    assert_one_line(error, str(folder / "m.index"), words)


def test_a_block_outside_the_index(tmp_path):
    index = table([[HEADER, RIGHT]])
    for offset, size in ((0, len(index)), (1 << 63, 3), (3, 1 << 63)):
        handle = (b"\0\0" + varint(offset) + varint(size)).ljust(40, b"\0")
        with pytest.raises(utils.BadInput) as error:
            tf_checkpoint.read_checkpoint(written(tmp_path, index[:-48] + handle + index[-8:]))
        assert_one_line(error, str(tmp_path / "m.index"), f"reaches to byte {offset + size} of {len(index)}")


def test_compressed_block(tmp_path):
    with pytest.raises(utils.BadInput) as error:
        tf_checkpoint.read_checkpoint(written(tmp_path, table([[HEADER, RIGHT]], kind=1)))
    assert_one_line(error, str(tmp_path / "m.index"), "compressed (kind 1, expected 0)")


# Random damage: FUZZ_CASES=2000 for the long run


def damaged(data, rng, others):
    """Return `data` truncated, flipped, overwritten with huge numbers or zeros, or swapped."""
    at = rng.randrange(len(data) + 1)
    few = rng.choice((1, 2, 5, 9, 40))
    kind = rng.randrange(7)
    if kind == 0:
        return data[:at]
    if kind == 1:
        changed = bytearray(data)
        for _ in range(few if data else 0):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 6:
        return rng.choice(others)
    filler = (b"\xff" * few, b"\xff" * 9 + b"\1", b"\0" * few, rng.randbytes(few))[kind - 2]
    return data[:at] + filler + data[at + rng.choice((0, len(filler))):]


def load_or_refuse(folder, limit):
    """Return read_checkpoint's result, or None where it refuses in one line; nothing else may happen."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        assert tf_checkpoint.list_variables(folder)
        return tf_checkpoint.read_checkpoint(folder)
    except (utils.BadInput, utils.MissingInput) as error:
        assert "\n" not in str(error) and str(folder) in str(error)
        return None
    finally:
        assert tracemalloc.get_traced_memory()[1] - before < limit


@pytest.fixture
def tracing():
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_fuzz_damaged_files_load_right_or_are_refused(golden, tmp_path, tracing):
    rng = random.Random(20260101)
    outcomes = {"loaded": 0, "refused": 0}
    for number in range(FUZZ_CASES):
        source = golden / "t5" / CASES[number % 2] / "checkpoint"
        files = {file.name: file.read_bytes() for file in source.iterdir()}
        right = {name: same_bytes(t) for name, t in tf_checkpoint.read_checkpoint(source).items()}
        folder = shutil.copytree(source, tmp_path / str(number))
        # The index and the data in equal parts, the small files now and then.
        name = rng.choice(sorted(files) + [PREFIX + ".index", PREFIX + ".data-00001-of-00002"])
        (folder / name).write_bytes(damaged(files[name], rng, list(files.values())))
        tensors = load_or_refuse(folder, 2 * sum(map(len, files.values())) + (1 << 17))
        outcomes["refused" if tensors is None else "loaded"] += 1
        if tensors is not None:
            assert {name: same_bytes(t) for name, t in tensors.items()} == right
        del tensors
        shutil.rmtree(folder)
    assert outcomes["refused"] > outcomes["loaded"] > 0 or FUZZ_CASES < 50, outcomes


def test_fuzz_an_index_with_right_checksums(tmp_path, tracing):
    rng = random.Random(20260102)
    pieces = [rng.randbytes(4 * length) for length in (6, 35, 1, 20)]
    pairs, offset = [], 0
    for number, piece in enumerate(pieces):
        kind, length = (FLOAT32, len(piece) // 4) if number % 2 else (BFLOAT16, len(piece) // 2)
        pairs.append((b"encoder/block_%03d/w" % number, entry(kind, [length], 0, offset, piece)))
        offset += len(piece)
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(FUZZ_CASES):
        folder = written(tmp_path, table([[HEADER, *pairs[:2]], pairs[2:]], change=lambda contents: (
            damaged(contents, rng, pieces) if rng.random() < 0.7 else contents)), b"".join(pieces))
        tensors = load_or_refuse(folder, 1 << 18)
        outcomes["refused" if tensors is None else "loaded"] += 1
        for tensor in (tensors or {}).values():  # names and shapes may be others now, the values not
            assert same_bytes(tensor) in pieces
    assert outcomes["refused"] > outcomes["loaded"] > 0 or FUZZ_CASES < 50, outcomes
