"""Image sets from .npz files: what is read, and every file that is refused."""

import zipfile

import numpy as np
import pytest
import torch

from bayesws.data.npz import npz


def arrays(**changed):
    random = np.random.default_rng(0)
    plain = {
        "train_x": random.integers(0, 256, (6, 3, 4, 4)).astype(np.uint8),
        "train_y": np.arange(6, dtype=np.uint8) % 3,
        "test_x": random.integers(0, 256, (5, 3, 4, 4)).astype(np.uint8),
        "test_y": np.arange(5) % 4,
    }
    return {key: value for key, value in {**plain, **changed}.items() if value is not None}


def saved(folder, save=np.savez, **changed):
    path = folder / "own.npz"
    save(path, **arrays(**changed))
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_bytes_are_divided_by_255_and_the_largest_label_counts_the_classes(tmp_path, save):
    data = npz(str(saved(tmp_path, save)))
    assert repr(data) == "ImageData('own', train=6, test=5, images=3x4x4, num_classes=4)"
    assert torch.equal(data.train[0], torch.from_numpy(arrays()["train_x"]) / 255)
    assert data.train[1].tolist() == [0, 1, 2, 0, 1, 2] and data.train[1].dtype == torch.int64


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_are_taken_as_they_are(tmp_path, dtype):
    x = np.array([-1.5, 0.0, 0.25, 300.0], dtype=dtype).reshape(1, 1, 2, 2).repeat(6, 0)
    data = npz(saved(tmp_path, train_x=x, test_x=x[:5]))
    assert data.train[0].dtype == torch.float32 and data.train[0][5].flatten().tolist() == [
        -1.5,
        0.0,
        0.25,
        300.0,
    ]


def test_gray_images_gain_a_channel(tmp_path):
    x = arrays()["train_x"][:, 0]
    assert npz(saved(tmp_path, train_x=x, test_x=x[:5])).image_shape == (1, 4, 4)


REFUSED = [
    (
        "no train_y",
        {"train_y": None},
        "lacks train_y, it has train_x, test_x, test_y; write it with np.savez",
    ),
    ("nothing", dict.fromkeys(arrays()), "lacks train_x, train_y, test_x, test_y, it has nothing"),
    (
        "objects",
        {"train_x": np.array([None] * 6)},
        "train_x cannot be read .*objects and pickles are refused",
    ),
    ("wide integers", {"test_x": arrays()["test_x"].astype(np.int64)}, "test_x is int64, expected uint8"),
    ("complex", {"test_x": arrays()["test_x"] * 1j}, "test_x is complex128, expected uint8"),
    ("text labels", {"train_y": np.array(list("abcdef"))}, "train_y is <U1, expected integers"),
    ("floating labels", {"test_y": np.ones(5)}, "test_y is float64, expected integers"),
    ("negative labels", {"test_y": np.arange(5) - 9}, "test labels run from -9 to -5"),
    ("rank", {"train_x": np.ones((6, 16))}, r"train images have shape \(6, 16\)"),
    ("lengths", {"train_y": np.arange(4)}, "train has 6 images but 4 labels"),
    ("empty", {"train_x": np.ones((0, 3, 4, 4)), "train_y": np.arange(0)}, "train images are empty"),
    (
        "shapes",
        {"test_x": np.ones((5, 1, 4, 4))},
        r"train images are \(3, 4, 4\) but test images \(1, 4, 4\)",
    ),
    ("NaN", {"test_x": np.full((5, 3, 4, 4), np.nan)}, "test images hold 240 NaN"),
    ("beyond float32", {"test_x": np.full((5, 3, 4, 4), 1e300)}, "test images hold 240 NaN or infinite"),
]


def refusal(path):
    with pytest.raises(ValueError) as caught:
        npz(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("changed", "says"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_contents_refused(tmp_path, changed, says):
    path = saved(tmp_path, **changed)
    with pytest.raises(ValueError, match=says):
        npz(path)
    refusal(path)


def test_a_missing_file_or_a_folder(tmp_path):
    assert "is not a file, expected a .npz with train_x" in refusal(tmp_path / "none.npz")
    assert "is not a file" in refusal(tmp_path)


def test_files_that_are_no_npz(tmp_path):
    path = tmp_path / "other.npz"
    for content in (b"", b"not a zip", b"\x93NUMPY"):
        path.write_bytes(content)
        assert "truncated or corrupt" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        for key in arrays():
            archive.writestr(f"{key}.npy", b"cos\nsystem\n(S'true'\ntR.")
    assert "train_x cannot be read" in refusal(path)


def test_an_archive_inside_the_archive(tmp_path):
    inner = saved(tmp_path).read_bytes()
    path = tmp_path / "outer.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key in arrays():
            archive.writestr(f"{key}.npy", inner)
    assert "train_x cannot be read" in refusal(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path, save):
    path = saved(tmp_path, save)
    whole = path.read_bytes()
    for length in range(0, len(whole), 31):
        path.write_bytes(whole[:length])
        assert "truncated or corrupt" in refusal(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_byte_is_refused_or_harmless(tmp_path, save):
    path = saved(tmp_path, save)
    whole, expected = path.read_bytes(), npz(path)
    for position in range(0, len(whole), 5):
        path.write_bytes(whole[:position] + bytes((whole[position] ^ 0x55,)) + whole[position + 1 :])
        try:
            data = npz(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # a time stamp, say
            assert torch.equal(data.train[0], expected.train[0]) and torch.equal(data.test[1], expected.test[1])
