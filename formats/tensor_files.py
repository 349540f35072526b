"""Tensors by name in the forms the world keeps them: safetensors or PyTorch's .bin, in one file or in parts.

    tensors = read_tensors("flan-t5-xl/")      # {"shared.weight": tensor, ...}

Nothing is trusted. Code is never unpickled (torch.load(weights_only=True)), sizes are compared with the file's before
memory is taken, and what the form allows stays mapped into memory until it is used: all but the older pickle form of
.bin. Knows no model; gpt_files and t5_files know the names.
"""

import glob
import mmap
import os
import pickletools
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor

import torch
from safetensors import safe_open

from formats.config_files import AGAIN, read_json
from formats.errors import BadInput, MissingInput
from formats.files import is_lfs_pointer
from formats.mapped import MappedFiles

FORMS = (("model", ".safetensors"), ("pytorch_model", ".bin"))  # as transformers names them, preferred one first
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel, of torch.compile
PREFIXES = ("transformer.", *WRAPPERS)  # the first: of transformers' models with a head


def find_tensor_files(path):
    """Return (files, index) of the weights at `path`; no files where a folder holds none.

    Args:
        path: a file, or a folder with model.safetensors or pytorch_model.bin, or with the parts of one
            (model-00001-of-00002.safetensors), with or without an index (model.safetensors.index.json).
    Returns:
        files: list of paths.
        index: {tensor name: file} as the index says, or {}.
    Raises:
        MissingInput, BadInput: a part is missing, or the index is none.
    """
    if not os.path.isdir(path):
        return ([path] if os.path.isfile(path) else []), {}
    for stem, suffix in FORMS:
        whole, index = os.path.join(path, stem + suffix), os.path.join(path, f"{stem}{suffix}.index.json")
        if os.path.isfile(whole):
            return [whole], {}
        if os.path.isfile(index):
            names = _read_index(index, suffix)
            return sorted(set(names.values())), names
        parts = sorted(glob.glob(os.path.join(glob.escape(path), f"{stem}-*-of-*{suffix}")))
        if parts:
            _require_all(parts, path)
            return parts, {}
    return [], {}


def _require_all(parts, path):
    """Raise unless parts named ...-0000x-of-0000y are there for every x."""
    numbers = [re.search(r"-(\d{1,5})-of-(\d{1,5})\.\w+$", part) for part in parts]
    strange = next((part for part, number in zip(parts, numbers, strict=True) if number is None), None)
    if strange is not None:
        raise BadInput(f"{strange}: the name of a part ends in numbers such as 00001-of-00002; rename or remove it")
    totals = {int(number[2]) for number in numbers}
    found = {int(number[1]) for number in numbers}
    if len(totals) > 1:
        raise BadInput(f"{path}: holds parts of {len(totals)} different models (of {sorted(totals)[:3]} parts); "
                       "remove those of the others")
    if found != set(range(1, max(totals) + 1)):
        raise MissingInput(f"{path}: has {len(parts)} of the parts that {os.path.basename(parts[0])} belongs to; "
                           "download the others too")


def _read_index(path, suffix):
    """Return {tensor name: path of its part} of an index file, after checking that the parts are there."""
    content = read_json(path)
    names = content.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise BadInput(f"{path}: has no weight_map from names of tensors to names of files; {AGAIN}")
    folder, exists = os.path.dirname(path), {}
    for name, file in names.items():
        if file not in exists:
            if len(file) > 200 or not file.isprintable() or os.path.basename(file) != file or not file.endswith(suffix):
                raise BadInput(f"{path}: {name[:80]!r} is in {file[:80]!r}, expected the plain name of a {suffix} file")
            exists[file] = os.path.isfile(os.path.join(folder, file))
        if not exists[file]:
            raise MissingInput(f"{os.path.join(folder, file)}: not found, but {os.path.basename(path)} lists "
                               f"{name[:80]!r} in it; download it too")
    return {name: os.path.join(folder, file) for name, file in names.items()}


def read_tensors(path):
    """Read every tensor of one file, or of the files in a folder (see find_tensor_files).

    Returns:
        {name: CPU tensor}. The names are as stored, see plain_names.
    Raises:
        MissingInput: there is no such file, or a part is missing.
        BadInput: damaged, foreign, or what an index lists is in no file.
    """
    files, index = find_tensor_files(path)
    if not files:
        raise MissingInput(f"{path}: not found; expected {' or '.join(stem + suffix for stem, suffix in FORMS)}")
    tensors, where = {}, {}
    for file in files:
        for name, tensor in _read_file(file).items():
            if not name.isprintable():
                raise BadInput(f"{file}: holds a tensor named {name[:80]!r}, which is no text; {AGAIN}")
            if name in tensors:
                raise BadInput(f"{file}: holds {name[:80]!r}, which {where[name]} holds too; remove one of the files")
            tensors[name], where[name] = tensor, file
    lost = next((name for name, file in index.items() if where.get(name) != file), None)
    if lost is not None:
        raise BadInput(f"{index[lost]}: lacks {lost[:80]!r}, which the index lists in it; {AGAIN}")
    return tensors


def _read_file(path):
    """Return {name: tensor} of one file of either form, told apart by its first bytes."""
    form = "safetensors" if path.endswith(".safetensors") else "a file of tensors"
    try:
        if is_lfs_pointer(path):
            raise ValueError("it is a Git LFS pointer instead of the data")
        with open(path, "rb") as f:
            start = f.read(9)
        if start[:4] == b"PK\3\4" and not path.endswith(".safetensors"):
            tensors = _read_zip(path)
        elif start[:1] == b"\x80" and start[8:] != b"{":
            tensors = _read_pickle(path)
        else:
            form = "safetensors"
            with safe_open(path, framework="pt") as f:
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # the libraries raise many types here; each means that the file is unusable
        reason = str(error).strip().splitlines()[0][:150] if str(error).strip() else type(error).__name__
        raise BadInput(f"{path}: cannot be read as {form} ({reason}; {os.path.getsize(path):,} bytes found); "
                       f"{AGAIN}") from None
    return tensors


def _read_zip(path):
    """Read what torch.save writes: a zip file, whose records are stored as they are and can be mapped into memory."""
    size, folder = os.path.getsize(path), 0x10  # MS-DOS attribute: torch reads nothing of such a record
    with zipfile.ZipFile(path) as f:
        records = f.infolist()
        strange = next((r for r in records if r.compress_type != zipfile.ZIP_STORED or r.compress_size != r.file_size
                        or r.external_attr & folder), None)
        if strange is not None or sum(r.file_size for r in records) > size:
            raise ValueError("its records are not plain copies of tensors")
        with ThreadPoolExecutor() as threads:  # zlib sums 1 GB a second, and lets other threads run meanwhile
            damaged = next((name for name in threads.map(lambda r: _damage(f, r), records) if name is not None), None)
        if damaged is not None:
            raise ValueError(f"the record {damaged!r} does not fit its checksum")
    return _tensors_of(torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def _damage(file, record):
    """Return the name of a record of an open zip file that does not fit its checksum, else None."""
    try:
        with file.open(record) as f:
            while f.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return record.filename
    return None


def _read_pickle(path):
    """Read what torch.save wrote before version 1.6: pickles, then the tensors' values."""
    # torch takes memory for strings and tensors first and reads then; here neither is longer than the file. A map
    # gives no more than it has, whatever it is asked for.
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for part in ("magic number", "version", "sizes of types", "tensors", "keys"):
            for _, number, _ in pickletools.genops(data):
                if part == "tensors" and isinstance(number, int) and abs(number) > len(data):
                    raise ValueError("it speaks of more values than it has bytes")
    return _tensors_of(torch.load(path, map_location="cpu", weights_only=True))


def _tensors_of(value):
    """Return the {name: tensor} that torch.load found, after a look at each."""
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not tensors by name")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name!r} is a {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ValueError(f"{name!r} is no ordinary tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name!r} has the shape {list(tensor.shape)}, for which there are no values")
    return {name: tensor.detach() for name, tensor in value.items()}


def plain_name(name):
    """Return a tensor's name without the prefixes that wrappers give, in whatever order they are nested.

    'module._orig_mod.transformer.h.0.ln_1.weight' -> 'h.0.ln_1.weight'
    """
    name = name.replace("._orig_mod.", ".")  # of compiled parts
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def plain_names(tensors, path):
    """Return {plain name: tensor}; equal copies become one.

    Raises:
        BadInput: two different tensors have one plain name.
    """
    plain = {}
    for name, tensor in tensors.items():
        short = plain_name(name)
        if short in plain and not same(plain[short], tensor):
            raise BadInput(f"{path}: holds two different tensors for {short} ({name[:80]!r} is one); keep one of them")
        plain.setdefault(short, tensor)
    return plain


def same(a, b):
    """Whether two tensors are equal in type, shape and values."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.data_ptr() == b.data_ptr():
        return True
    equal, files = torch.equal(a, b), MappedFiles()
    files.give_back(a)
    files.give_back(b)
    return equal


def merge_copies(tensors, names, path):
    """Take tied weights out of `tensors` under all of their names.

    Args:
        names: the names, the most usual one first.
    Returns:
        The weights, or None where none of the names is there.
    Raises:
        BadInput: two of them differ.
    """
    found = {name: tensors.pop(name) for name in names if name in tensors}
    (first, weight), *others = found.items() or [(None, None)]
    for name, copy in others:
        if not same(weight, copy):
            raise BadInput(f"{path}: {name} differs from {first}, but the model has one matrix for both and no "
                           "place for a second")
    return weight


def require_floats(tensors, path):
    """Raise BadInput unless all are float32, float16 or bfloat16."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise BadInput(f"{path}: {name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}, "
                           "expected float32, float16 or bfloat16")


def is_true(flag):
    """The value of a bool tensor, or False where tensors have no values to look at (compiler, vmap, meta device)."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    try:
        return bool(flag)
    except (RuntimeError, NotImplementedError):
        return False


class Report(dict):
    """{what: list of names} about a model that was loaded; a notebook shows how many names, not all of them."""

    def __repr__(self):
        counts = (f"{what!r}: {len(names)} names" for what, names in self.items())
        return f"{{{', '.join(counts)}}}"


def strip_wrappers(module, state_dict, prefix, *args):
    """Accept a state dict of the model inside nn.DataParallel or torch.compile, or of one with compiled parts.

    A hook for register_load_state_dict_pre_hook: names that the module does not have lose `module.` and `_orig_mod.`.
    """
    if prefix:
        return
    own = {name for name, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())}
    for name in [name for name in state_dict if name not in own]:
        short = name.replace("._orig_mod.", ".")
        while short.startswith(WRAPPERS):
            short = short.split(".", 1)[1]
        if short != name:
            state_dict[short] = state_dict.pop(name)
