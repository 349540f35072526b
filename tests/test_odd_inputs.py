"""Odd but honest data trains and evaluates; a file in another encoding is refused with its row named."""

import re

import numpy as np
import pytest
import torch
from cloze_data import options, rows, write_csv

import fast.gpt
import train
from datasets import TEST_FILE, VALID_FILE
from utils import read_log, run_script

N_ROWS = 40
LONG = " ".join(["the cat sat on the mat,"] * 300)  # 7,200 characters


def with_row(row, at=range(0, N_ROWS, 4)):
    """The usual rows with `row` (a function of a usual row) at some places, so that every split holds it."""
    return [row(r) if i in at else r for i, r in enumerate(rows(N_ROWS, 1))]


ODD = {
    "long text": with_row(lambda r: [r[0], LONG, *r[2:]]),
    "long ending": with_row(lambda r: [*r[:5], LONG, *r[6:]]),
    "empty story": with_row(lambda r: [r[0], "", "", "", "", *r[5:]]),
    "empty story and endings": with_row(lambda r: [r[0], "", "", "", "", "", "", r[7]]),
    "empty ending": with_row(lambda r: [*r[:5], "", *r[6:]]),
    "emoji-only ending": with_row(lambda r: [*r[:5], "🙂", *r[6:]]),
    "emoji-only endings": with_row(lambda r: [*r[:5], "🙂🙂", "👩‍👩‍👧", r[7]]),
    "the same ending twice": with_row(lambda r: [*r[:6], r[5], r[7]]),
    "blanks and line breaks": with_row(lambda r: [r[0], " \t ", "a\nb", " ", " c", "\n", *r[6:]]),
    "right-to-left, combining, full-width": with_row(lambda r: [r[0], "שלום", "é" * 3, "ＬＯＷ", *r[4:]]),
    "only duplicates": [rows(1)[0]] * N_ROWS,
}


@pytest.fixture
def run(tmp_path, small_vocabulary):
    """A function that trains on (bytes of or rows for) the two files and returns (arguments, evaluations, results)."""
    (tmp_path / "data").mkdir()

    def run(content, desc="tiny", **changes):
        for name in (VALID_FILE, TEST_FILE):
            path = tmp_path / "data" / name
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                write_csv(path, content)
        argv = options(tmp_path, **dict(data_dir=str(tmp_path / "data"), vocabulary=small_vocabulary, desc=desc,
                                        submit=True, analysis=True) | changes)
        train.main(argv)
        lines = [{k: v for k, v in line.items() if k != "time"}
                 for line in read_log(tmp_path / "log" / f"{desc}.jsonl")]
        predictions = (tmp_path / "submission" / "ROCStories.tsv").read_text().split("\n")[1:-1]
        return train.parse_args(argv), lines, predictions

    run.folder = tmp_path
    return run


@pytest.mark.parametrize("kind", ODD)
def test_odd_rows_train_and_evaluate(run, kind, capsys):
    args, (header, *lines), predictions = run(ODD[kind])
    assert [line["n_updates"] for line in lines] == [3, 6] and len(predictions) == N_ROWS
    for line in lines:
        assert all(np.isfinite(value) for value in line.values()) and line["va_cost"] < 2
    out, err = capsys.readouterr()
    assert "ROCStories Test Accuracy:  " in out
    assert err.count("warning: ") == ("long" in kind)
    # and the fast paths still are the plain path on such rows
    encoder = train.TextEncoder(args.encoder_path, args.bpe_path)
    n_vocab = len(encoder.encoder)
    data, n_ctx = train.load_data(args, encoder)
    model = train.DoubleHeadModel(args, n_vocab + 2, "multiple_choice", n_vocab + 3 + n_ctx, n_ctx)
    saved = torch.load(run.folder / "save" / "tiny" / "best_params", weights_only=True)
    model.load_state_dict(saved)
    model.eval()
    X, M, Y = map(torch.from_numpy, data.splits["test"].layout(slice(None)))
    with torch.no_grad():
        lm_logits, logits = model(X)
        torch.testing.assert_close(fast.gpt.choice_logits(model, X), logits, atol=1e-5, rtol=1e-5)
        chosen = torch.tensor([int(p.split("\t")[1]) for p in predictions])
        apart = (logits[:, 0] - logits[:, 1]).abs() > 1e-5  # between equal endings rounding decides
        assert torch.equal(chosen[apart], logits.argmax(1)[apart])
        assert apart.any() or kind == "the same ending twice"
        token_losses = torch.nn.functional.cross_entropy(
            lm_logits, X[:, :, 1:, 0].flatten().long(), reduction="none").view(*X.shape[:2], -1)
        lm_losses = (token_losses * M[:, :, 1:]).sum(-1) / M[:, :, 1:].sum(-1)
        want = torch.nn.functional.cross_entropy(logits, Y.long()) + 0.5 * lm_losses.mean()
        torch.testing.assert_close(fast.gpt.losses(model, X, M, Y, 0.5)[0], want, atol=1e-5, rtol=1e-5)


def test_a_long_text_is_cut_as_the_original_cuts_it_and_counted_once(run, capsys):
    args, _, _ = run(ODD["long text"], n_ctx=100)
    warning = [line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if "warning" in line]
    assert len(warning) == 1 and "20 of 80 stories" in warning[0] and "longer than 48 tokens" in warning[0]
    encoder = train.TextEncoder(args.encoder_path, args.bpe_path)
    data, n_ctx = train.load_data(args, encoder)
    X, M, _ = data.splits["test"].layout(slice(None))
    story = encoder.encode([" ".join(ODD["long text"][0][1:5])], verbose=False)[0]
    assert len(story) > 1000 and n_ctx <= 100
    ending = encoder.encode([ODD["long text"][0][5]], verbose=False)[0]
    want = [93, *story[:48], 94, *ending[:48], 95]  # _start_, _delimiter_, _classify_ follow the 93 pieces
    assert X[0, 0, :len(want), 0].tolist() == want and M[0, 0].sum() == len(want)


def test_signs_outside_the_vocabulary_become_unk(run):
    args, _, _ = run(ODD["emoji-only ending"])
    splits, _ = train.load_data(args, train.TextEncoder(args.encoder_path, args.bpe_path))
    row = splits[2][0][0, 0, :, 0].tolist()
    assert row[row.index(94):row.index(95) + 1] == [94, 0, 95]


def test_an_empty_story_leaves_the_special_tokens_and_the_ending(run):
    args, _, _ = run(ODD["empty story and endings"])
    splits, _ = train.load_data(args, train.TextEncoder(args.encoder_path, args.bpe_path))
    assert splits[2][0][0, 0, :4, 0].tolist() == [93, 94, 95, 0] and splits[2][1][0, 0].sum() == 3


def test_duplicates_are_kept(run):
    data = with_row(lambda r: rows(1)[0])
    _, _, predictions = run(data)
    assert len(predictions) == N_ROWS
    twins = {predictions[i].split("\t")[1] for i in range(0, N_ROWS, 4)}
    assert len(twins) == 1


def csv_bytes(tmp_path, data, **kwargs):
    write_csv(tmp_path / "x.csv", data, **kwargs)
    return (tmp_path / "x.csv").read_bytes()


def test_line_ends_and_a_byte_order_mark_change_nothing(run):
    unix = csv_bytes(run.folder, rows(N_ROWS, 1), lineterminator="\n")
    crlf = csv_bytes(run.folder, rows(N_ROWS, 1), lineterminator="\r\n")
    assert b"\r" not in unix and b"\r\n" in crlf
    contents = {"unix": unix, "crlf": crlf, "bom": b"\xef\xbb\xbf" + unix, "both": b"\xef\xbb\xbf" + crlf,
                "last line open": unix[:-1], "blank lines": unix.replace(b"\n", b"\n\n")}
    outcomes = {}
    for desc, content in contents.items():
        _, (header, *lines), predictions = run(content, desc=desc)
        outcomes[desc] = header["data"], lines, predictions
    assert all(outcome == outcomes["unix"] for outcome in outcomes.values())


@pytest.mark.parametrize("odd, row", [(35, 37), (0, 2)])
@pytest.mark.parametrize("encoding, byte", [("latin-1", "0xe9"), ("cp1252", "0xe9"), ("mac-roman", "0x8e")])
def test_another_encoding_is_refused_with_its_row_named(run, capfd, odd, row, encoding, byte):
    data = rows(N_ROWS, 1)
    data[odd][3] = "The café was new."
    content = csv_bytes(run.folder, data, encoding=encoding)
    try:
        status = run_script(lambda argv: run(content))
    finally:
        lines = [line for line in capfd.readouterr().err.split("\n") if line.strip()]
    assert status == 2 and len(lines) == 1
    assert re.search(f"{re.escape(VALID_FILE)}: row {row} is not UTF-8 .*{byte}.*save the file as UTF-8", lines[0])
    assert not (run.folder / "log").exists()
