"""The house: what stands at the root, which way imports point, and that the README tells it as it is."""

import ast
import re

import pytest

SCRIPTS = {"train", "train_t5", "pretrain", "pretrain_t5", "generate", "predict", "analysis", "zero_shot", "demo",
           "reproduce", "benchmark", "download_model", "explore", "claims"}
# from the ground up: a file imports from its own floor and from those below it
FLOORS = [{"formats"}, {"model_pytorch", "t5_pytorch", "t5_decoding", "loss", "opt", "ablations"},
          {"text_utils", "utils", "pictures"}, {"fast"}, {"toy", "tasks"}, {"training"}, SCRIPTS, {"benchmarks"},
          {"benchmark"}, {"datasets"}]  # the last is for users alone: a library of its name may stand in its place
# the papers' text, which people copy by the file
PLAIN = {"model_pytorch": {"formats"}, "t5_pytorch": {"formats"}, "t5_decoding": {"formats", "t5_pytorch"},
         "loss": {"formats"}, "opt": {"formats"}}


def imports_of(path):
    """The names of the modules at the root that a file imports, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


def floor_of(name):
    return max(i for i, names in enumerate(FLOORS) if name in names)


@pytest.fixture(scope="module")
def files(root):
    """{path: name of its module or folder at the root}"""
    found = {path: path.stem for path in root.glob("*.py")}
    return found | {path: path.parent.name for path in root.glob("*/*.py") if path.parent.name != "tests"}


def test_twenty_files_at_the_root_at_most(root, files):
    at_root = [path for path in files if path.parent == root]
    assert len(at_root) <= 20
    assert {path.stem for path in at_root} <= set.union(*FLOORS)


def test_imports_point_downwards(files):
    ours = set(files.values())
    for path, name in files.items():
        for other in imports_of(path) & ours - {name}:
            scripts = name in SCRIPTS and other in SCRIPTS  # demo and reproduce call the others
            assert floor_of(other) < floor_of(name) or scripts or {name, other} <= FLOORS[floor_of(name)], (path, other)


def test_the_papers_text_needs_torch_and_the_readers_of_files_alone(root, files):
    ours = set(files.values())
    for name, allowed in PLAIN.items():
        used = imports_of(root / f"{name}.py")
        assert used & ours <= allowed, name
        assert used - ours <= {"torch", "numpy", "math", "contextlib", "inspect", "itertools", "typing",
                               "collections"}, name


def test_importing_prints_nothing_and_needs_no_other_folder(root, tmp_path):
    import subprocess
    import sys
    for name in ("utils", "datasets"):  # a notebook's folder may hold files of these names
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')\n")
    code = f"import sys; sys.path.append({str(root)!r}); import model_pytorch, t5_pytorch, loss, opt, t5_decoding"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                         env={"PATH": ""})
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_the_readme_is_short_and_names_every_room(root, files):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1500
    for path, name in files.items():
        assert (path.name if path.parent == root else f"{name}/") in text, path
    for name in re.findall(r"\b(\w+\.py)\b", text):
        assert (root / name).is_file() or list(root.glob(f"*/{name}")), name
    for folder in re.findall(r"^(\w+)/ {2,}", text, re.MULTILINE):
        assert (root / folder).is_dir(), folder


def test_every_module_stands_in_the_page_of_the_house_as_its_first_line_says(root, files):
    lines = (root / "docs" / "house.md").read_text(encoding="utf-8").splitlines()
    expected = []
    for path in files:
        if path.name != "__init__.py":
            about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")[0]
            expected.append(f"|`{path.relative_to(root).as_posix()}`|{' '.join(about.split())}|")
    missing, gone = set(expected) - set(lines), {line for line in lines if line.startswith("|`")} - set(expected)
    assert not missing and not gone, "docs/house.md lacks: " + "\n".join(sorted(missing)) + f"; has too much: {gone}"


def test_the_readme_s_options_exist(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    shared = "".join(path.read_text() for path in (root / "training").glob("*.py"))
    commands = re.findall(r"python (\w+\.py)([^\n`|]*)", text)
    assert len(commands) >= 6
    for script, words in commands:
        source = (root / script).read_text() + shared
        for option in re.findall(r"(--\w+)", words):
            assert f'"{option}"' in source or option == "--help", (script, option)
