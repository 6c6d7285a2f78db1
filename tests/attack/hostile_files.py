"""Files that were made to run code or to take memory: each is made, then read in a process that is watched.

Run as a program with a folder: prints by name how the reading ended, whether a tripwire was touched, and how many bytes
it took beyond what the process had.
"""

import gzip
import io
import json
import os
import pickle
import resource
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import bayesws as bws
from bayesws.data.idx import read_idx
from bayesws.io.json_files import sealed
from bayesws.models.pretrained import pretrained_network
from bayesws.report.runs import sections_of
from bayesws.trials.study import Study

ADDRESSES = 2**33  # bytes that a reader may ask for, so that a test never fills a machine
LARGE = 2**27  # bytes of zeros, packed into a small file
CODE = "__import__('os').system('touch tripwire')"


class Trap:
    def __reduce__(self):
        return os.system, ("touch tripwire",)


class Bytes:
    """Unpickled, it is as many zeros."""

    def __reduce__(self):
        return bytearray, (2**32,)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))


def program():
    """The members of an exported program, by name."""
    buffer = io.BytesIO()
    sizes = ({0: torch.export.Dim("batch", min=2)},)
    torch.export.save(torch.export.export(small().eval(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=sizes), buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def zipped(path, members, compression=zipfile.ZIP_STORED, root="model/"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(root + name, content)
    return path


MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS, SAMPLES = "data/constants/model_constants_config.json", "data/sample_inputs/model.pt"
CLEAN = program() if __name__ == "__main__" else {}


def changed(member, change, **more):
    """A program whose member was changed as JSON."""

    def make(folder):
        record = json.loads(CLEAN[member])
        record = change(record) or record
        members = CLEAN | {member: json.dumps(record).encode()}
        return zipped(folder / "a.pt2", members | {name.replace("__", "/"): content for name, content in more.items()})

    return make


def replaced(before, after):
    """A program with other words in its graph."""

    def make(folder):
        text = CLEAN[MODEL].decode()
        assert before in text
        return zipped(folder / "a.pt2", CLEAN | {MODEL: text.replace(before, after).encode()})

    return make


def graph(record):
    return record["graph_module"]["graph"]


def weight(record, **changes):
    record["config"]["0.weight"].update(changes)


def constant(path_name):
    return lambda record: record["config"].update(x={"path_name": path_name, "is_param": False, "use_pickle": True})


def call(target, *words):
    inputs = [{"name": "", "arg": {"as_string": word}, "kind": 1} for word in words]
    return lambda record: graph(record)["nodes"][1].update(target=target, inputs=inputs)


def size_of_an_input(record):
    next(iter(graph(record)["tensor_values"].values()))["sizes"][0] = {"as_expr": {"expr_str": CODE, "hint": None}}


def power(record):
    text = "Pow(Integer(9), Pow(Integer(9), Integer(99999999)))"
    next(iter(graph(record)["tensor_values"].values()))["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}


def imported(record):
    call = record["graph_module"]["module_call_graph"][0]["signature"]
    tree = json.loads(call["in_spec"])
    fqn = {"__enum__": True, "fqn": "hostile_module.Enum", "name": "x"}
    tree[1]["children_spec"][1]["context"] = json.dumps([fqn])
    call["in_spec"] = json.dumps(tree)


def twice(folder):
    path = zipped(folder / "a.pt2", CLEAN)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"model/{SAMPLES}", pickle.dumps(Trap()))
    return path


PROGRAMS = {
    "program: example inputs": lambda f: zipped(f / "a.pt2", CLEAN | {SAMPLES: pickle.dumps(Trap())}),
    "program: weights are a pickle": changed(
        WEIGHTS,
        lambda r: weight(r, use_pickle=True, path_name="weight_9"),
        data__weights__weight_9=pickle.dumps(Trap()),
    ),
    "program: weights of another name": changed(
        WEIGHTS, lambda r: weight(r, use_pickle=True, path_name="evil"), data__weights__evil=pickle.dumps(Trap())
    ),
    "program: constants are a pickle": changed(
        CONSTANTS, constant("tensor_0"), data__constants__tensor_0=pickle.dumps(Trap())
    ),
    "program: an object of somebody's": changed(
        CONSTANTS, constant("custom_obj_0"), data__constants__custom_obj_0=pickle.dumps(Trap())
    ),
    "program: an opaque object": changed(
        CONSTANTS, constant("opaque_obj_0"), data__constants__opaque_obj_0=pickle.dumps(Trap())
    ),
    "program: weights as before": lambda f: zipped(
        f / "a.pt2", CLEAN | {"data/weights/model.pt": pickle.dumps(Trap())}
    ),
    "program: constants as before": lambda f: zipped(
        f / "a.pt2", CLEAN | {"data/constants/model.pt": pickle.dumps(Trap())}
    ),
    "program: compiled code": lambda f: zipped(f / "a.pt2", CLEAN | {"data/aotinductor/model/x.so": b"\x7fELF"}),
    "program: of an older torch": lambda f: zipped(
        f / "a.pt2",
        {"version": b"8.20", "serialized_exported_program.json": CLEAN[MODEL], "serialized_state_dict.pt": b""}
        | {"serialized_constants.pt": pickle.dumps(Trap()), "serialized_example_inputs.pt": pickle.dumps(Trap())},
        root="",
    ),
    "program: a member twice": twice,
    "program: guards": changed(MODEL, lambda r: r.update(guards_code=[CODE])),
    "program: a size": changed(MODEL, size_of_an_input),
    "program: a size of a power": changed(MODEL, power),
    "program: an enumeration": changed(MODEL, imported),
    "program: a function": changed(MODEL, call("torch.os.system", "touch tripwire")),
    "program: a file is mapped": changed(MODEL, call("torch.ops.aten.from_file.default", "tripwire")),
    "program: a file is written": changed(MODEL, call("torch.ops.aten.save.default", "tripwire")),
    "program: a getter": changed(MODEL, call("_operator.methodcaller", "system")),
    "program: a name of an input": replaced('"input"', f'"input={CODE}"'),
    "program: a name of a weight": replaced('"0.weight"', json.dumps(f'0.weight"),{CODE},("')),
    "program: zeros of 4 TB": changed(
        WEIGHTS,
        lambda r: r["config"]["0.weight"]["tensor_meta"].update(sizes=[{"as_int": 2**40}]),
        data__weights__weight_0=b"",
    ),
    "program: compressed zeros": lambda f: zipped(
        f / "a.pt2", CLEAN | {"data/weights/weight_0": bytes(LARGE)}, zipfile.ZIP_DEFLATED
    ),
    "program: JSON of brackets": lambda f: zipped(f / "a.pt2", CLEAN | {MODEL: b"[" * 10**6}),
    "program: JSON of lists": lambda f: zipped(f / "a.pt2", CLEAN | {MODEL: b"[" + b"[]," * 3 * 10**6 + b"1]"}),
    "program: activations of 400 GB": changed(
        MODEL,
        lambda r: graph(r)["tensor_values"]["flatten"].update(
            sizes=[{"as_int": 10**6}, {"as_int": 10**5}], strides=[{"as_int": 10**5}, {"as_int": 1}]
        ),
    ),
}


def torch_saved(value, **settings):
    def make(folder):
        torch.save(value() if callable(value) else value, folder / "a.pt", **settings)
        return folder / "a.pt"

    return make


def pickled(value, protocol=2):
    def make(folder):
        (folder / "a.pt").write_bytes(pickle.dumps(value, protocol=protocol))
        return folder / "a.pt"

    return make


def hollow(old, new):
    """A file of torch.save with another number in its pickle."""

    def make(folder):
        path = folder / "a.pt"
        torch.save(small().state_dict(), path)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members = {n: c.replace(old, new, 1) if n.endswith("data.pkl") else c for n, c in members.items()}
        return zipped(path, members, root="")

    return make


def deflated(folder):
    return zipped(folder / "a.pt", {"data.pkl": b"x", "data/0": bytes(LARGE)}, zipfile.ZIP_DEFLATED, "a/")


def cyclic():
    value = {}
    value["state_dict"] = value
    return value


WIDE = {f"{i}.weight": torch.zeros(1).expand(2**20, 2**20) for i in range(2)}
STATES = {
    "weights: a trap": torch_saved({"weight": Trap()}),
    "weights: a trap in a plain pickle": pickled({"weight": Trap()}),
    "weights: a trap of protocol 5": pickled({"weight": Trap()}, 5),
    "weights: a trap of older files": torch_saved({"weight": Trap()}, _use_new_zipfile_serialization=False),
    "weights: a network": torch_saved(small),
    "weights: 4 GB of zeros": torch_saved({"weight": Bytes()}),
    "weights: a size of 2 billion": hollow(b"K\x12", b"J\xff\xff\xff\x7f"),
    "weights: compressed zeros": deflated,
    "weights: a tensor that is expanded": torch_saved(WIDE),
    "weights: in itself": torch_saved(cyclic),
    "weights: a script": lambda f: (torch.jit.script(nn.Linear(2, 2)).save(str(f / "a.pt")), f / "a.pt")[1],
}


def safetensors(header, body=b"", length=None):
    def make(folder):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        content = struct.pack("<Q", len(text) if length is None else length) + text + body
        (folder / "a.safetensors").write_bytes(content)
        return folder / "a.safetensors"

    return make


def entry(shape, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


TENSORS = {
    "tensors: a header of 4 TB": safetensors({"a": entry([1], 4)}, bytes(4), 2**42),
    "tensors: a shape of 4 TB": safetensors({"a": entry([2**40], 2**42)}, bytes(4)),
    "tensors: a shape that overflows": safetensors({"a": entry([2**33, 2**33], 4)}, bytes(4)),
    "tensors: a name twice": safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(entry([1], 4)).encode(),) * 2), bytes(4)),
    "tensors: a million of none": safetensors({f"{i}": entry([0], 0) for i in range(200_000)}),
    "tensors: nested": safetensors(b"[" * 10**6),
}


def arrays(**changes):
    found = {"train_x": np.zeros((4, 1, 2, 2), np.uint8), "train_y": np.arange(4)}
    found |= {"test_x": found["train_x"], "test_y": found["train_y"]} | changes
    return found


def npy(shape, kind="|u1", body=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + body


def npz(compression=zipfile.ZIP_DEFLATED, **members):
    def make(folder):
        buffer = io.BytesIO()
        np.savez(buffer, **arrays())
        with zipfile.ZipFile(buffer) as archive:
            whole = {name: archive.read(name) for name in archive.namelist()}
        return zipped(folder / "a.npz", whole | {f"{k}.npy": v for k, v in members.items()}, compression, "")

    return make


def lying(folder):
    """The directory says that a member is small."""
    path = npz(train_x=npy((LARGE, 1, 1, 1), body=bytes(LARGE)))(folder)
    content = bytearray(path.read_bytes())
    place = content.rfind(b"PK\x01\x02", 0, content.rfind(b"train_x.npy"))
    content[place + 24 : place + 28] = struct.pack("<I", 144)
    path.write_bytes(content)
    return path


def saved_arrays(**changes):
    return lambda folder: (np.savez(folder / "a.npz", **arrays(**changes)), folder / "a.npz")[1]


ARRAYS = {
    "images: objects": saved_arrays(train_x=np.array([Trap()] * 4, object)),
    "images: zeros": npz(train_x=npy((LARGE, 1, 1, 1), body=bytes(LARGE))),
    "images: packed zeros": npz(zipfile.ZIP_BZIP2, train_x=npy((LARGE, 1, 1, 1), body=bytes(LARGE))),
    "images: a header of 4 TB": npz(train_x=npy((2**40, 1, 2, 2))),
    "images: a header that overflows": npz(train_x=npy((2**40, 2**40, 2, 2))),
    "images: a directory that lies": lying,
    "images: a label of 2⁴⁰": saved_arrays(train_y=np.array([0, 1, 2, 2**40])),
}


def idx(header, body=b"", pack=lambda content: content, name="a-ubyte"):
    return lambda folder: ((folder / name).write_bytes(pack(header + body)), folder / name)[1]


SIZES = struct.pack(">4B3I", 0, 0, 8, 3, 2**20, 2**11, 2**11)
NUMBERS = {
    "bytes: a header of 4 TB": idx(SIZES, bytes(16)),
    "bytes: zeros that go on": idx(
        struct.pack(">4B3I", 0, 0, 8, 3, 1, 1, 4), bytes(LARGE), gzip.compress, "a-ubyte.gz"
    ),
}


def text(content, name):
    return lambda folder: ((folder / name).write_bytes(content), folder / name)[1]


def fit_of(**settings):
    """A fit whose record asks for a network far beyond its weights, sealed as if it were ours."""

    def make(folder):
        x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
        net = bws.models.CNN(num_classes=3, hidden_channels=1, layers=1)
        bws.fit(net, (x, y), objective="task", weight_decays=(0.0,), epochs=1, progress=False).save(folder / "fit")
        path = folder / "fit" / "fit.json"
        record = json.loads(path.read_text())
        del record["sha256"]
        record["network"]["settings"].update(settings)
        path.write_text(json.dumps(sealed(record)))
        return folder / "fit"

    return make


RECORDS = {
    "plan: brackets": text(b"[" * 100_000, "plan.json"),
    "plan: lists": text(b"[" + b"[]," * 3 * 10**6 + b"1]", "plan.json"),
    "plan: objects": text(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "plan.json"),
    "plan: a number of a million digits": text(b'{"seeds": 1' + b"0" * 10**6 + b"}", "plan.json"),
    "plan: seeds without end": text(
        b'{"data": {"name": "digits"}, "tasks": ["turned"], "train_sizes": [9], "seeds": 1000000000000, "epochs": 1,'
        b' "methods": {"a": {"model": "CNN"}}}',
        "plan.json",
    ),
    "plan: a long text": text(b'{"data": "' + b"x" * 2**25 + b'"}', "plan.json"),
    "strength: a long text": text(b'{"sha256": "", "model": "' + b"x" * 2**25 + b'"}', "strength.json"),
    "strength: brackets": text(b'{"errors": ' + b"[" * 100_000, "strength.json"),
    "study: brackets": text(b'{"trials": ' + b"[" * 100_000, "study.json"),
    "fit: channels without end": fit_of(hidden_channels=10**9),
    "fit: layers without end": fit_of(layers=10**9),
}

READERS = {
    ".pt2": lambda path: pretrained_network(str(path)),
    ".pt": lambda path: pretrained_network("hostile_files:small", path),
    ".safetensors": lambda path: pretrained_network("hostile_files:small", path),
    ".npz": bws.data.load,
    "a-ubyte": lambda path: read_idx(path, 3),
    "a-ubyte.gz": lambda path: read_idx(path, 3),
    "plan.json": Study.read,
    "strength.json": lambda path: sections_of(path.parent, "run"),
    "study.json": lambda path: sections_of(path.parent, "run"),
    "fit": bws.FitResult.load,
}
FILES = PROGRAMS | STATES | TENSORS | ARRAYS | NUMBERS | RECORDS
HARMLESS = {"program: guards"}  # left out, as nothing of a program is in them


def read(path):
    reader = READERS.get(path.name) or READERS[path.suffix]
    try:
        reader(path)
    except ValueError as error:
        return "refused" if "\n" not in str(error) and str(path) in str(error) else f"badly told: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def watched(path):
    """How reading ended, and the bytes that it took at the most; in a process of its own."""
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        with os.fdopen(theirs, "w") as pipe:
            pipe.write("" if path is None else read(path))
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        told = pipe.read()
    _, status, usage = os.wait4(child, 0)
    return told if not status else f"ended with {status}", usage.ru_maxrss * 1024


def main(folder):
    os.chdir(folder)
    sys.path[:0] = [str(Path(__file__).parent), str(folder)]
    Path("hostile_module.py").write_text("open('tripwire', 'w')\n")
    clean = zipped(Path("clean.pt2"), CLEAN)
    pretrained_network(str(clean))  # what is imported by it is not what a file takes
    made = {}
    for place, (name, make) in enumerate(FILES.items()):
        at = folder / str(place)
        at.mkdir()
        made[name] = make(at)
    found = {}
    _, before = watched(None)
    for name, path in made.items():
        size = sum(part.stat().st_size for part in path.parent.rglob("*") if part.is_file())
        told, peak = watched(path)
        found[name] = {"told": told, "size": size, "took": peak - before, "ran": Path("tripwire").exists()}
        Path("tripwire").unlink(missing_ok=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
