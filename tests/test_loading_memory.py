"""Loading takes the memory of the parameters, once, and draws nothing: measured by the system in its own process."""

import json
import os
import subprocess
import sys

import pytest

GPT = dict(n_embd=512, n_head=8, n_layer=6)
T5_SIZE = dict(dim=512, d_ff=4096, enc_num_tokens=4096, dec_num_tokens=4096, enc_depth=2, dec_depth=2, enc_heads=8,
               dec_heads=8)


def write_files(folder):
    """Write a GPT and a T5 of random values, about 90 MB each, in every form; return {form: path}."""
    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file
    from tf_writer import FLOAT32, entry, field, table

    from formats.files import save_tensors
    from formats.initial_values import InitialValues
    from formats.t5_files import checkpoint_names
    from model_pytorch import DEFAULT_CONFIG, LMModel, export_openai_model
    from t5_pytorch import T5, export_t5_model

    paths = {form: os.path.join(folder, form) for form in ("openai", "hub", "parts", "bin", "older", "tensorflow")}
    paths["run"] = os.path.join(folder, "best_params")
    generator = np.random.default_rng(0)
    with InitialValues():
        gpt, t5 = LMModel(DEFAULT_CONFIG | GPT, 8000 + 100, 100), T5(**T5_SIZE)
    for p in [*gpt.parameters(), *t5.parameters()]:
        p.data.copy_(torch.from_numpy(generator.standard_normal(p.shape, np.float32)))
    export_openai_model(gpt, paths["openai"])
    save_tensors(paths["run"], gpt.state_dict())
    export_t5_model(t5, paths["hub"])
    tensors = load_file(os.path.join(paths["hub"], "model.safetensors"))
    for form in ("parts", "bin", "older", "tensorflow"):
        os.makedirs(paths[form])
        with open(os.path.join(paths["hub"], "config.json")) as f, \
                open(os.path.join(paths[form], "config.json"), "w") as copy:
            json.dump(json.load(f) | {"transformers_version": "4.23.1"}, copy)
    torch.save(tensors, os.path.join(paths["bin"], "pytorch_model.bin"))
    torch.save(tensors, os.path.join(paths["older"], "pytorch_model.bin"), _use_new_zipfile_serialization=False)
    for part, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        save_file({name: tensors[name] for name in names},
                  os.path.join(paths["parts"], f"model-{part:05d}-of-00002.safetensors"))
    entries, offset = [], 0
    with open(os.path.join(paths["tensorflow"], "m.data-00000-of-00001"), "wb") as f:
        for name, p in sorted((checkpoint_names(name)[0], p) for name, p in t5.named_parameters()):
            values = p if p.dim() < 2 or name.endswith("embedding") else p.t()
            data = values.detach().contiguous().numpy().tobytes()
            entries.append((name.encode(), entry(FLOAT32, values.shape, 0, offset, data)))
            offset += f.write(data)
    with open(os.path.join(paths["tensorflow"], "m.index"), "wb") as f:
        f.write(table([[(b"", field(1, 1)), *entries]]))
    return paths


def highest(restart=False):
    """The most memory, in bytes, that this process has had since the last restart, and what it has now."""
    if restart:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    with open("/proc/self/status") as f:
        lines = dict(line.split(":") for line in f)
    return [int(lines[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS")]


def measure(paths):
    """Print {form: [peak over the bytes of the parameters, whether random numbers were drawn, modules imported]}."""
    import torch

    from formats.files import load_tensors
    from formats.initial_values import filled
    from formats.mapped import load_state_dict
    from model_pytorch import DEFAULT_CONFIG, LMModel
    from t5_pytorch import T5, load_t5_pretrained_model

    def run(dtype):
        def fill(model):
            load_state_dict(model, load_tensors(paths["run"], mapped=True))
            return []
        return filled(lambda: LMModel(DEFAULT_CONFIG | GPT, 8100, 100), fill, dtype)

    def tensorflow(dtype):
        return filled(lambda: T5(**T5_SIZE, tie_logits=True),
                      lambda model: load_t5_pretrained_model(model, paths["tensorflow"])["fresh"], dtype)

    loaders = {form: lambda dtype, form=form: T5.from_pretrained(paths[form], dtype=dtype)
               for form in ("hub", "parts", "bin", "older")}
    loaders |= {"openai": lambda dtype: LMModel.from_pretrained(paths["openai"], dtype=dtype), "run": run,
                "tensorflow": tensorflow}
    for load in loaders.values():  # imports, and what libraries set up once
        load(None)
    found = {}
    for form, load in loaders.items():
        for dtype in (None, torch.bfloat16):
            state = torch.get_rng_state()
            _, before = highest(restart=True)
            model = load(dtype)
            peak, _ = highest()
            size = sum(p.numel() * p.element_size() for p in model.parameters())
            found[f"{form} {dtype}"] = [(peak - before) / size, torch.equal(state, torch.get_rng_state()),
                                        "torch._dynamo" in sys.modules]
            del model
    print(json.dumps(found))


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux says how much memory there was")
def test_loading_takes_the_memory_of_the_parameters_and_draws_nothing(tmp_path, root):
    run = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=300,
                         env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.path.dirname(__file__)]),
                                           "MALLOC_MMAP_THRESHOLD_": "65536"})  # what is freed goes to the system
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    del found["older torch.bfloat16"]  # which is read whole first, in float32
    assert len(found) == 13
    for case, (share, drew_nothing, compiler) in found.items():
        limit = 1.15 if "None" in case else 1.35  # a matrix of the file at a time, twice as large as in bfloat16
        assert 0.9 < share < limit, (case, found)
        assert drew_nothing and not compiler, case


if __name__ == "__main__":
    measure(write_files(sys.argv[1]))
