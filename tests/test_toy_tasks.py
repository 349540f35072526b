"""A small model, pre-trained on toy stories, learns a toy set to clearly above chance, from its files to the report."""

import pretrain
import train
from toy import glue, stories

SIZES = {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_ctx": 104}


def words(**options):
    return [word for name, value in options.items() for word in ([f"--{name}"] if value is True else
                                                                 [f"--{name}", str(value)])]


def test_whether_a_story_goes_well_is_learned(tmp_path, capsys):
    text, model = str(tmp_path / "stories.txt"), str(tmp_path / "model")
    folders = dict(log_dir=tmp_path / "log", save_dir=tmp_path / "save", save_every=0)
    stories.write_text(text, 3000, 42)
    pretrain.main(words(desc="pretrained", text=text, model_dir=model, n_merges=1400, n_chars=80, n_batch=10, n_iter=1,
                        lr=4e-3, n_warmup=60, init_std=0.06, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, held_out=0.02,
                        **SIZES, **folders))
    glue.write_data_dir(str(tmp_path / "glue"), n_train=600, n_dev=200, n_test=50, sets=("SST-2",))
    outcome = train.main(words(desc="sst2", dataset="sst2", data_dir=tmp_path / "glue", model_dir=model, n_transfer=2,
                               n_batch=16, n_gpu=1, n_iter=4, lr=4e-3, lm_coef=0, submit=True, analysis=True,
                               submission_dir=tmp_path / "submission", **SIZES, **folders))
    assert outcome.accuracies["valid"] > 70  # chance: 50, with 3.5 points of deviation; the best possible: 100
    out = capsys.readouterr().out
    assert f"SST-2 Valid Accuracy: {outcome.accuracies['valid']:.2f}" in out and "acc 91.3" in out
    right = [label for _, label in glue.examples("SST-2", 50, 7, "test")]
    lines = (tmp_path / "submission" / "SST-2.tsv").read_text().splitlines()[1:]
    assert [int(line.split("\t")[0]) for line in lines] == list(range(50))
    assert sum(int(line.split("\t")[1]) == label for line, label in zip(lines, right, strict=True)) > 32
