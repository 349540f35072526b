"""The benchmark measures something, and all sides of a row do the same work."""

import json
from argparse import Namespace

import pytest
import torch

import benchmark
from benchmarks import cases, machine, measure, ours
from benchmarks.cases import TINY, Case, Work
from benchmarks.rows import ROWS, agree, require_equal, sides
from formats.errors import BadInput
from utils import run_script


def test_a_row_in_processes_of_its_own(tmp_path, capsys):
    pytest.importorskip("transformers")
    out = tmp_path / "results.json"
    benchmark.main(["--quick", "--no_compile", "--rows", "gpt-train", "--precision", "fp32", "--pairs", "2",
                    "--out", str(out)])
    printed = capsys.readouterr().out
    assert "gpt-train, fp32, 2 rounds" in printed and "transformers (eager)" in printed and "torch 2" in printed
    result = json.loads(out.read_text())
    assert result["about"]["threads"] == torch.get_num_threads() and result["about"]["processor"]
    row, = result["rows"]
    assert [side["name"] for side in row["sides"]] == ["ours", "ours, --plain", "transformers"]
    assert all(len(side["all_seconds"]) == 2 and side["peak"] > 0 for side in row["sides"])
    assert row["agreement"] == {"ours, --plain": None, "transformers, eager": None} and row["share"][0] > 0


@pytest.mark.parametrize("name", ROWS)
def test_every_row_agrees_and_every_side_runs(name):
    pytest.importorskip("transformers")
    said = agree(name)
    other = {"transformers' GPT-2, sdpa", "transformers' GPT-2, eager", "CTranslate2 int8"}
    assert {side for side, reason in said.items() if reason and not reason.startswith("absent")} <= other
    for precision in ROWS[name].precisions:
        for of_side in sides(ROWS[name], precision).values():
            for setting, build in of_side.items():
                if "compiled" not in setting:
                    try:
                        work = build(Case(TINY, precision=precision))
                    except ImportError:
                        continue
                    work.run()
    assert sides(ROWS[name], "fp32")["ours"][""](Case(TINY)).operations > 0


@pytest.mark.parametrize("name", ["gpt-train", "gpt-generate-8", "t5-beam4-16"])
def test_compiled_peers_agree(name):
    pytest.importorskip("transformers")
    row = sides(ROWS[name], "fp32")
    build = next(build for setting, build in row["transformers"].items() if "compiled" in setting)
    assert agree(name, {"ours": row["ours"][""], "theirs": build}) == {"theirs": None}


@pytest.mark.parametrize("kind", ["labels", "answers", "summaries"])
def test_rows_end_where_they_are_told_to(kind):
    (sources, lengths), ids = cases.answered(Case(TINY), kind), ROWS[f"t5-{kind}"].ours(Case(TINY)).run()
    ends = [row.tolist().index(1) + 1 for row in ids]
    assert ends == lengths.tolist() and len(sources) == len(ids)
    assert [len(source) for source in sources] != sorted(map(len, sources), reverse=True)
    assert kind == "labels" or len(set(ends)) > 2


@pytest.mark.parametrize("name", ["gpt-generate-8", "t5-greedy-16", "t5-beam4-16"])
def test_what_is_decoded_varies(name):  # or equal ids would say little
    ids = ROWS[name].ours(Case(TINY)).run()
    assert len(ids.unique()) > 2 and ids.shape[1] == TINY["new_tokens"]


def test_sides_that_differ_are_refused():
    with pytest.raises(BadInput, match="differs from ours by 0.001"):
        require_equal("row", torch.tensor([1.0, 7.0]), torch.tensor([1.001, 7.0]))
    with pytest.raises(BadInput, match="differs"):
        require_equal("row", torch.ones(2), torch.full((2,), torch.nan))
    require_equal("row", torch.tensor([1e3, 7.0]), torch.tensor([1e3, 7.001]))  # the limit scales
    with pytest.raises(BadInput, match="ids"):
        require_equal("row", torch.tensor([[3, 5]]), torch.tensor([[3, 4]]))
    with pytest.raises(BadInput, match="shape"):
        require_equal("row", torch.ones(2), torch.ones(2, 1))
    wrong = {"ours": ours.gpt_train, "theirs": lambda case: Work(None, lambda: torch.ones(()))}
    with pytest.raises(BadInput, match="gpt-train: theirs"):
        agree("gpt-train", wrong)

    def absent(case):
        raise ImportError("no such library")

    assert agree("gpt-train", {"ours": ours.gpt_train, "theirs": absent}) == {"theirs": "absent: no such library"}


class FakeSide:
    """As measure.Side, with seconds by setting; None fails."""

    seconds, ended, asked = {}, [], []

    def __init__(self, row, precision, name, setting, args):
        self.name, self.setting = name, setting
        self.asked.append(setting)

    def work(self):
        if self.seconds[self.setting] is None:
            raise measure.PeerFailed("not installed")
        return {"seconds": self.seconds[self.setting]}

    def end(self):
        self.ended.append(self.setting)


@pytest.mark.parametrize("seconds, best, left_out", [
    ({"a": 3, "b": 2, "a, compiled": 1, "b, compiled": 1.5}, "b, compiled", "a, compiled"),
    ({"a": 1, "b": 2, "a, compiled": 1.5, "b, compiled": 0.1}, "a", "b, compiled"),
    ({"a": None, "b": 2, "a, compiled": 1, "b, compiled": None}, "b", "a, compiled"),
    ({"a": None}, None, None), ({"a": 2}, "a", None)])
def test_the_fastest_setting_of_a_peer_is_taken(monkeypatch, seconds, best, left_out):
    monkeypatch.setattr(measure, "Side", FakeSide)
    monkeypatch.setattr(FakeSide, "seconds", seconds)
    monkeypatch.setattr(FakeSide, "ended", [])
    monkeypatch.setattr(FakeSide, "asked", [])
    log = {}
    side = measure.fastest("gpt-train", "fp32", "peer", list(seconds), Namespace(no_compile=False), log)
    assert (side and side.setting) == best
    assert sorted(FakeSide.ended) == sorted(set(FakeSide.asked) - {best})
    assert left_out not in FakeSide.asked
    assert all(log[s] == "not installed" for s in FakeSide.asked if seconds[s] is None)


def test_medians_ratios_and_shares():
    def answers(seconds, peak):
        return [{"seconds": s, "peak": peak, "operations": 100.0, "bytes_read": 40.0} for s in seconds]

    result = measure.summary("gpt-generate-1", "fp32", [("ours", ""), ("theirs", "eager")],
                             {"ours": answers([1, 2, 4], 50), "theirs": answers([3, 4, 20], 200)},
                             [{"MKL": 200, "oneDNN": 100}] * 2 + [{"MKL": 20, "oneDNN": 50}], [80, 40, 20])
    of_ours, theirs = result["sides"]
    assert of_ours["seconds"] == [2, 1, 4] and "ratio" not in of_ours
    assert theirs["ratio"] == [3, 2, 5] and theirs["memory_ratio"] == 0.25
    assert result["share"] == [0.5, 0.25, 0.5] and result["read_share"] == [0.5, 0.5, 0.5]
    text = benchmark.table(result | {"rounds": 3, "absent": ["CTranslate2"], "tried": {"CTranslate2": {"": "absent"}}})
    assert "3.00 (2.00 to 5.00)" in text and "CTranslate2: absent" in text and "50% (25% to 50%)" in text


def test_the_machine_is_named_and_measured():
    facts = machine.facts("cpu")
    assert facts["processor"] and set(facts["flags"]) <= set(machine.FLAGS) and facts["torch"] == torch.__version__
    assert all(rate > 0 for rate in machine.matrix_rates("cpu", "fp32", 64).values())
    assert set(machine.matrix_rates("cpu", "bf16", 64)) == {"torch"}
    assert machine.read_rate("cpu", 1 << 16) > 0
    machine.forget_peak("cpu")
    before = machine.peak_bytes("cpu")
    kept = torch.ones(1 << 24)
    assert machine.peak_bytes("cpu") >= before + 0.9 * 4 * kept.numel() or not before


def test_batches_have_the_shape_of_rocstories():
    x, m, y = cases.cloze_batch(500, 40478)
    real = m.sum((1, 2)).mean()
    assert 100 < real < 112 and x.shape == (500, 2, 77, 2) and 0.4 < y.float().mean() < 0.6
    ids, cut = cases.padded_to_longest(x[:5], m[:5])
    assert ids.shape == cut.shape and cut.sum() == m[:5].sum() and cut[..., -1].any() and ids.size(-1) < 77


def test_useful_weights_are_the_models():
    model, size = ours.gpt(Case(TINY)), TINY
    assert cases.gpt_weights(size, head=False) == sum(p.numel() for p in model.transformer.h.parameters() if p.ndim > 1)
    assert cases.gpt_weights(size) - cases.gpt_weights(size, head=False) == size["n_vocab"] * size["n_embd"]
    t5 = ours.t5(Case(TINY))
    matrices = {name: p.numel() for name, p in t5.named_parameters() if p.ndim > 1 and "bias" not in name}
    assert sum(cases.t5_weights(size)) == sum(matrices.values())


def test_mistakes_get_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_script(benchmark.main, ["--rows", "gpt-fly"])
    assert capsys.readouterr().err.count("\n") == 1
    assert run_script(benchmark.main, ["--pairs", "0"]) == 2
    pytest.importorskip("transformers")
    other = tmp_path / "other.json"
    other.write_text("[]")
    assert run_script(benchmark.main, ["--out", str(other)]) == 2
    about = machine.facts("cpu") | {"size": cases.FULL, "same_malloc": False}
    other.write_text(json.dumps({"about": about | {"processor": "an abacus"}, "rows": []}))
    assert run_script(benchmark.main, ["--out", str(other)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 3 and "(processor)" in error
    other.write_text(json.dumps({"about": about, "rows": [{"row": "gpt-train"}]}))
    assert benchmark.kept_rows(str(other), about) == [{"row": "gpt-train"}]
