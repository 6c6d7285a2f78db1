"""Data of every kind: mappings, longer tuples, streams, numpy arrays and bytes give the evidence of plain tensors."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from refusals import assert_refused
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, default_collate

import bayesws as bws
from bayesws.evidence import reading
from bayesws.evidence.reading import as_tensors

N = 24
BACKWARDS = range(N - 1, -1, -1)
Batch = namedtuple("Batch", "weight target input")


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, 4, generator=generator), torch.randint(3, (N,), generator=generator)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))


class Items(Dataset):
    """A Dataset of whatever `make` makes of x, y and the place."""

    def __init__(self, make):
        self.make, (self.x, self.y) = make, data()

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.make(self.x[i], self.y[i], i)


class Stream(IterableDataset):
    """The same without a length; `times` over."""

    def __init__(self, make=lambda x, y, i: (x, y), times=1):
        self.items, self.times = Items(make), times

    def __iter__(self):
        while self.times:
            yield from (self.items[i] for i in range(N))
            if self.times == 1:
                return


class Once(IterableDataset):
    """A stream that is spent after one walk."""

    def __init__(self):
        self.left = iter(list(zip(*data(), strict=True)))

    def __iter__(self):
        return self.left


def loader(make, **settings):
    return DataLoader(Items(make), **({"batch_size": 7} | settings))


WORKS = {
    "loader of mappings": lambda: loader(lambda x, y, i: {"input": x, "label": y, "index": i}),
    "loader of other names": lambda: loader(lambda x, y, i: {"Image": x, "targets": y, "path": "a.png"}),
    "Dataset of mappings": lambda: Items(lambda x, y, i: {"x": x.numpy(), "y": int(y)}),
    "mapping of tensors": lambda: dict(zip("xy", data(), strict=True)),
    "named tuples": lambda: loader(lambda x, y, i: Batch(0.5, y, x)),
    "triples with text": lambda: loader(lambda x, y, i: (x, y, f"{i}.png")),
    "triples with weights": lambda: loader(lambda x, y, i: (x, y, 0.5)),
    "triples with the index": lambda: loader(lambda x, y, i: (x, y, i)),
    "Dataset of triples with the index": lambda: Items(lambda x, y, i: (x, y, i)),
    "triples with nothing": lambda: loader(
        lambda x, y, i: (x, y, None), collate_fn=lambda rows: (*default_collate([r[:2] for r in rows]), None)
    ),
    "three tensors": lambda: (*data(), torch.rand(N)),
    "stream": Stream,
    "loader of a stream": lambda: DataLoader(Stream(), batch_size=7),
    "loader of batches": lambda: DataLoader([(x, y) for x, y in loader(lambda x, y, i: (x, y))], batch_size=None),
    "numpy arrays": lambda: tuple(part.numpy() for part in data()),
    "float64 arrays, short labels": lambda: (data()[0].numpy().astype(np.float64), data()[1].numpy().astype(np.int16)),
    "big-endian arrays": lambda: (data()[0].numpy().astype(">f4"), data()[1].numpy()),
    "float64 tensors": lambda: (data()[0].double(), data()[1]),
    "tensors of inference mode": lambda: in_inference_mode(),
}


def in_inference_mode():
    with torch.inference_mode():
        return tuple(part.clone() for part in data())


@pytest.mark.parametrize("case", WORKS)
@pytest.mark.parametrize("curvature", ["full", bws.Curvature("kron", samples=1)], ids=["full", "kron"])
def test_the_evidence_is_that_of_plain_tensors(case, curvature):
    wanted, found = (bws.log_evidence(net(), d, curvature=curvature) for d in (data(), WORKS[case]()))
    assert found.examples == N and float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_one_batch_that_would_do_is_not_all_of_them():
    """The last batch is datum 0 alone, whose place would do as its label; those of the others would not."""
    given = loader(lambda x, y, i: (x, y, i), batch_size=N - 1, sampler=BACKWARDS)
    assert float(bws.log_evidence(net(), given)) == pytest.approx(float(bws.log_evidence(net(), data())), rel=1e-5)
    bws.fit(net(), given, epochs=1, progress=False)


@pytest.mark.parametrize("case", ["loader of mappings", "triples with the index", "loader of a stream", "numpy arrays"])
def test_a_fit_takes_them_too(case):
    """Of the same data in the same order: on one thread the same numbers, but for the order of sums."""
    settings = {"epochs": 3, "batch_size": 24, "progress": False, "keep_posterior": False}
    again = WORKS[case]()
    if isinstance(again, DataLoader):  # in the one batch that the plain fit takes
        again = DataLoader(again.dataset, batch_size=24)
    wanted, found = (bws.fit(net(), d, **settings) for d in (data(), again))
    assert found.log_evidence == pytest.approx(wanted.log_evidence, rel=1e-4)


@pytest.mark.parametrize("case", ["loader of mappings", "triples with weights", "stream", "numpy arrays"])
def test_select_and_compare_take_them_too(case):
    settings = {"epochs": 1, "progress": False}
    ranking = bws.select({"a": net()}, WORKS[case](), test=data(), **settings)
    assert ranking.best.test_nll is not None
    if case != "triples with weights":  # nothing there tells which is y
        found = bws.compare(net, WORKS[case](), WORKS[case](), seeds=1, objectives=("evidence",), **settings)
        (plain,) = bws.compare(net, data(), data(), seeds=1, objectives=("evidence",), **settings).trials
        assert found.trials[0].accuracy == pytest.approx(plain.accuracy, abs=0.2)  # the stream comes in another order


def wrong_order(x, y, i):
    return x, 0.5, y


AMBIGUOUS = {
    "weights before labels": (lambda: loader(wrong_order), "labels of shape .* and type torch.float64: expected"),
    "groups before labels": (lambda: loader(lambda x, y, i: (x, i % 2, y)), "number 2 and number 3 would both do"),
    "the index before labels": (lambda: loader(lambda x, y, i: (x, i, y)), "labels from|would both do"),
    "Dataset of groups": (lambda: Items(lambda x, y, i: (x, i % 2, y)), "number 2 and number 3 would both do"),
    "three tensors": (lambda: (data()[0], data()[1] % 2, data()[1]), "would both do as targets"),
    "two inputs": (
        lambda: loader(lambda x, y, i: {"x": x, "image": x, "y": y}),
        "a mapping with x, image, y: expected",
    ),
    "no targets": (lambda: loader(lambda x, y, i: {"x": x, "z": y}), "a mapping with x, z: expected one of x, input"),
    "examples of several lengths": (
        lambda: Items(lambda x, y, i: (x, y, i)[: 2 + i % 2]),
        "examples of 2 and of 3 parts: expected pairs",
    ),
    "inputs alone": (lambda: DataLoader(data()[0], batch_size=7), "data of type Tensor"),
    "no batches": (lambda: loader(lambda x, y, i: (x, y), batch_size=None), r"targets of shape \(\)"),
    "no end": (lambda: DataLoader(Stream(times=2), batch_size=500), "data without a length that go on after 2000"),
    "Dataset without end": (lambda: Stream(times=2), "data without a length that go on after 2000"),
    "no end of a known length": (
        lambda: loader(lambda x, y, i: (x, y), sampler=(i % N for i in iter(int, 1)), batch_size=500),
        "data of length 24 that go on",
    ),
    "images that are files": (
        lambda: Items(lambda x, y, i: ("a.png", y)),
        "inputs of a Dataset, str: expected tensors",
    ),
    "several sizes": (lambda: Items(lambda x, y, i: (x[: 2 + i % 2], y)), "expected tensors or numbers of one shape"),
    "sparse": (
        lambda: (data()[0].to_sparse(), data()[1]),
        "inputs of layout torch.sparse_coo: expected a dense tensor",
    ),
    "no dimension": (lambda: (torch.tensor(1.0), data()[1]), r"inputs of shape \(\)"),
    "complex": (lambda: (data()[0].to(torch.complex64), data()[1]), "inputs of type torch.complex64"),
    "no values": (lambda: (data()[0].to("meta"), data()[1]), r"inputs without values \(meta\)"),
    "text": (lambda: (np.array(["a"] * N), data()[1]), "inputs as a numpy array of <U1: expected numbers"),
    "lists": (lambda: ([[0.0] * 4] * N, [0] * N), "inputs of type list: expected a tensor or a numpy array"),
    "another width": (lambda: (torch.rand(N, 5), data()[1]), r"does not take inputs of shape \(\d+, 5\)"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
@pytest.mark.parametrize("run", [bws.log_evidence, bws.fit], ids=["log_evidence", "fit"])
def test_what_is_ambiguous_or_no_data_is_refused(run, case, monkeypatch):
    monkeypatch.setattr(reading, "UNKNOWN", 2000)
    make, message = AMBIGUOUS[case]
    assert_refused(lambda: run(net(), make()), message)


def test_what_is_ambiguous_is_refused_in_chunks_and_subsets_too(monkeypatch):
    """A batch may go through the network in chunks; of a subset nobody looks at what stands beside it."""
    monkeypatch.setattr("bayesws.evidence.gathering.CACHED", 16)
    x, y = (part.repeat_interleave(2, 0) for part in data())
    assert_refused(lambda: bws.log_evidence(net(), (x, y % 2, y), curvature="kron"), "would both do as targets")
    half = bws.Curvature("kron", subset=0.5)
    for given in ((*data(), data()[1]), loader(lambda x, y, i: (x, y, i))):
        assert_refused(lambda given=given: bws.log_evidence(net(), given, curvature=half), "a subset of examples of 3")
    bws.fit(net(), loader(lambda x, y, i: (x, y, i)), curvature=half, epochs=20, every=2, burn_in=0.1, progress=False)


def test_data_that_come_once_only_are_refused_where_they_are_needed_again():
    assert_refused(lambda: bws.fit(net(), DataLoader(Once(), batch_size=7), epochs=1), "its data once only")


def test_regression_does_not_take_groups_for_targets():
    """(x, group, y): whole numbers are as good as targets as y is, and so the triple is refused."""
    x, y = data()
    one = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    assert_refused(lambda: bws.log_evidence(one, (x, y, torch.rand(N)), "regression"), "would both do as targets")


IMAGES = torch.randint(0, 256, (12, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(12) % 3


def test_bytes_are_scaled_alike_in_fit_prediction_evidence_and_files(tmp_path):
    """uint8 in [0, 255] is what ToTensor and our .npz files make of it, x / 255."""
    np.savez(tmp_path / "a.npz", train_x=IMAGES, train_y=LABELS, test_x=IMAGES, test_y=LABELS)
    of_file = bws.data.load(tmp_path / "a.npz").train
    torch.manual_seed(0)
    convolutional = bws.models.WSCNN(num_classes=3, hidden_channels=1, layers=1)
    settings = {"epochs": 2, "progress": False}
    fits = [
        bws.fit(convolutional, d, **settings) for d in (of_file, (IMAGES, LABELS), (IMAGES.numpy(), LABELS.numpy()))
    ]
    for fit in fits[1:]:
        assert fit.log_evidence == fits[0].log_evidence and fit.provenance.data == fits[0].provenance.data
        for kind in ("posterior", "map"):
            assert torch.equal(fit.predict(IMAGES, kind), fits[0].predict(of_file[0], kind))
            assert fit.nll(IMAGES.numpy(), LABELS.numpy(), kind) == fits[0].nll(*of_file, kind)
    model = fits[0].model
    assert float(bws.log_evidence(model, (IMAGES, LABELS))) == float(bws.log_evidence(model, of_file))
    errors = [bws.equivariance_error(model.lift, x) for x in (IMAGES, IMAGES.numpy(), of_file[0])]
    assert errors[0] == errors[1] == errors[2]
    found = [bws.candidates(x, 2).record() for x in (IMAGES, IMAGES.numpy(), of_file[0])]
    assert found[0] == found[1] == found[2]


class OwnScale(nn.Module):
    """A network that takes bytes itself, or numbers of words."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(256, 4).requires_grad_(False), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.embedding(x.long()).mean(1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int32])
def test_a_network_that_takes_whole_numbers_gets_them(dtype):
    words, labels = torch.randint(0, 256, (12, 5)), torch.arange(12) % 3
    torch.manual_seed(0)
    own = OwnScale()
    embedded = own.embedding(words).mean(1)
    found = bws.log_evidence(own, (words.to(dtype), labels))
    assert float(found) == pytest.approx(float(bws.log_evidence(own.head, (embedded, labels))), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.float64, torch.float16, torch.bfloat16])
def test_other_numbers_go_to_a_network_in_the_type_of_its_weights(dtype):
    x, y = data()
    x = (x > 0).to(dtype)
    assert float(bws.log_evidence(net(), (x, y))) == float(bws.log_evidence(net(), (x.float(), y)))
    fit = bws.fit(net(), (x, y), epochs=1, progress=False)
    assert torch.equal(fit.predict(x), fit.predict(x.float()))


def test_labels_may_be_true_and_false():
    x, y = data()
    two = nn.Linear(4, 2)
    assert float(bws.log_evidence(two, (x, y > 0))) == float(bws.log_evidence(two, (x, (y > 0).long())))


def test_a_loader_that_leaves_out_or_repeats_is_read_as_it_gives():
    """Once its data set was taken in its place: networks were trained on some data and ranked by others."""
    whole = TensorDataset(*data())
    kept, _ = as_tensors(DataLoader(whole, batch_size=7, drop_last=True))
    twice, _ = as_tensors(
        DataLoader(whole, batch_size=6, sampler=RandomSampler(whole, replacement=True, num_samples=48))
    )
    assert len(kept) == 21 and len(twice) == 48
    assert torch.equal(as_tensors(DataLoader(whole, batch_size=7, shuffle=True))[0], data()[0])
