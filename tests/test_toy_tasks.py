"""A small model, pre-trained on toy stories, learns a toy set to clearly above chance, from its files to the report."""

import pytest

import pretrain
import train
from toy import glue, stories

SIZES = {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_ctx": 104}


def words(**options):
    return [word for name, value in options.items() for word in ([f"--{name}"] if value is True else
                                                                 [f"--{name}", str(value)])]


@pytest.fixture(scope="module")
def fine_tune(tmp_path_factory):
    """A function that fine-tunes the pre-trained model on a toy set and returns the Outcome and its folder."""
    folder = tmp_path_factory.mktemp("toy")
    text, model = str(folder / "stories.txt"), str(folder / "model")
    files = dict(log_dir=folder / "log", save_dir=folder / "save", save_every=0)
    stories.write_text(text, 3000, 42)
    pretrain.main(words(desc="pretrained", text=text, model_dir=model, n_merges=1400, n_chars=80, n_batch=10, n_iter=1,
                        lr=4e-3, n_warmup=60, init_std=0.06, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, held_out=0.02,
                        **SIZES, **files))

    def fine_tune(name, n_topics, n_iter, **changes):
        glue.write_data_dir(str(folder / name), n_train=600, n_dev=200, n_test=50, n_topics=n_topics)
        return folder, train.main(words(
            desc=name, dataset=name, data_dir=folder / name, model_dir=model, n_transfer=2, n_batch=16, n_gpu=1,
            n_valid=50, n_iter=n_iter, lr=4e-3, submit=True, analysis=True, submission_dir=folder / "submission",
            **SIZES, **files, **changes))

    return fine_tune


def test_whether_a_story_goes_well_is_learned(fine_tune, capsys):
    folder, outcome = fine_tune("sst2", None, 4, lm_coef=0)
    assert outcome.accuracies["valid"] > 70  # chance: 50, with 3.5 points of deviation; the best possible: 100
    out = capsys.readouterr().out
    assert f"SST-2 Valid Accuracy: {outcome.accuracies['valid']:.2f}" in out and "acc 91.3" in out
    right = [label for _, label in glue.examples("SST-2", 50, 7, "test")]
    lines = (folder / "submission" / "SST-2.tsv").read_text().splitlines()[1:]
    assert [int(line.split("\t")[0]) for line in lines] == list(range(50))
    assert sum(int(line.split("\t")[1]) == label for line, label in zip(lines, right, strict=True)) > 32


@pytest.mark.parametrize("name, metric, n_iter, least", [("rte", "Accuracy", 8, 70), ("mrpc", "F1", 8, 80)])
def test_what_two_texts_have_to_do_with_each_other_is_learned(fine_tune, name, metric, n_iter, least, capsys):
    _, outcome = fine_tune(name, 2, n_iter, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, clf_pdrop=0)
    assert outcome.accuracies["valid"] > least  # chance: accuracy 50, F1 at most 67; the best possible: 100
    assert f" Valid {metric}: {outcome.accuracies['valid']:.2f}" in capsys.readouterr().out
