"""Weight files: pickles that are read without being run, and archives that lie about what they hold."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnxviz.converters.weights import read_npz, read_pickled_pairs
from onnxviz.errors import UsageError, WeightsError
from tests.converters.synthetic import npy_header, write_python2_npy

FIXTURE = Path(__file__).parent / "data" / "python2_pickle.npy"  # written by Python 2.7's cPickle
EXPECTED = {"conv1_W": (3, 2, 1, 4), "conv1_b": (4,), "fc6_W": (6, 5), "fc6_b": (5,)}
OBJECT_HEADER = npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (), }")


@pytest.fixture
def entries():
    """What FIXTURE holds, by NumPy's own (trusting) reader."""
    return np.load(FIXTURE, allow_pickle=True, encoding="latin1").item()


def read(content: bytes, folder: Path):
    path = folder / "weights.npy"
    path.write_bytes(content)
    return read_pickled_pairs(path, EXPECTED)


def assert_holds(arrays, entries):
    assert list(arrays) == list(EXPECTED)
    for key, array in arrays.items():
        name, part = key.split("_")
        np.testing.assert_array_equal(array, entries[name]["Wb".index(part)])


def test_a_pickle_of_python_2(entries):
    assert_holds(read_pickled_pairs(FIXTURE, EXPECTED), entries)


def test_the_synthetic_writer_writes_what_numpy_reads(tmp_path, entries):
    path = write_python2_npy(tmp_path / "weights.npy", entries)
    again = np.load(path, allow_pickle=True, encoding="latin1").item()
    assert_holds(
        {f"{name}_{part}": again[name]["Wb".index(part)] for name in again for part in "Wb"}, entries
    )
    assert_holds(read_pickled_pairs(path, EXPECTED), entries)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_python_3(tmp_path, entries, protocol):
    assert_holds(read(OBJECT_HEADER + pickle.dumps(_box(entries), protocol), tmp_path), entries)


@pytest.mark.parametrize(
    "change", [lambda a: a.astype(">f4"), lambda a: np.asfortranarray(a), lambda a: a.astype(np.float64)]
)
def test_other_byte_orders_layouts_and_types(tmp_path, entries, change):
    changed = {name: tuple(change(array) for array in pair) for name, pair in entries.items()}
    assert_holds(read(OBJECT_HEADER + pickle.dumps(_box(changed), 4), tmp_path), entries)


def test_entries_of_no_layer_are_left_alone(tmp_path, entries):
    more = entries | {"epoch": np.int64(90), "note": "n", "rate": 0.1, b"raw": b"", "flags": [True, None]}
    assert_holds(read(OBJECT_HEADER + pickle.dumps(_box(more), 2), tmp_path), entries)


def _box(value: object) -> np.ndarray:
    box = np.empty((), object)
    box[()] = value
    return box


class Calls:
    """Pickles as a call: what an attacker writes."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("place", ["top", "entry", "key", "element"])
def test_code_in_a_pickle_is_not_run(tmp_path, protocol, place):
    """The control shows that the file is live: Python's own reader runs it."""
    marker = tmp_path / "ran"
    attack = Calls(os.mkdir, str(marker))
    content = {
        "top": attack,
        "entry": {"conv1": attack},
        "key": {attack: 1},
        "element": {"conv1": [attack, attack]},
    }[place]
    attacking = pickle.dumps(_box(content) if place != "top" else attack, protocol)
    with pytest.raises(WeightsError, match="the pickle in it holds"):
        read(OBJECT_HEADER + attacking, tmp_path)
    assert not marker.exists()
    with contextlib.suppress(FileExistsError):  # from "element", which runs it twice
        pickle.loads(attacking)
    assert marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        *(
            "os system",
            "posix system",
            "subprocess Popen",
            "builtins eval",
            "__builtin__ eval",
            "builtins exec",
        ),
        *("builtins getattr", "numpy load", "numpy fromfile", "numpy.testing runstring", "numpy memmap"),
        *("numpy.core.multiarray fromfile", "numpy._core.multiarray _reconstruct.__globals__", "codecs open"),
        *("numpy.lib.npyio load", "copyreg _reconstructor", "_pickle loads", "importlib import_module"),
    ],
)
def test_names_other_than_arrays_are_refused(tmp_path, name):
    module, attribute = name.split(" ")
    content = f"c{module}\n{attribute}\n".encode() + b"U\x01x\x85R."
    with pytest.raises(WeightsError, match="a call for " + name.replace(" ", r"\.")):
        read(OBJECT_HEADER + b"\x80\x02" + content, tmp_path)


DTYPE = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R", "a call that makes no array"),
        (b"cnumpy\ndtype\nU\x0eV2147483647,i4\x85R", "arrays of type 'V2147483647,i4'"),
        (b"cnumpy\nndarray\n}b", "an object with a state of its own"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00xX\x05\x00\x00\x00rot13\x86R", "a call that makes no array"),
        (b"ios\nsystem\n(U\x01xo", "the instruction INST"),
        (b"(cos\nsystem\nU\x01xo", r"a call for os\.system"),
        (b"cnumpy\nndarray\n)\x81", "the instruction NEWOBJ"),
        (b"\x82\x01", "the instruction EXT1"),
        (b"U\x01xQ", "the instruction BINPERSID"),
        (b"\x96" + struct.pack("<Q", 4) + b"abcd", "the instruction BYTEARRAY8"),
        (b"}N)r\xff\xff\xff\xffs", "a dict whose keys are no names"),
        (b"}))\x86" + b"2\x86" * 60 + b"Ns", "the instruction DUP"),
        (b"}))\x86" + b"q\x00h\x00\x86" * 60 + b"Ns", "a dict whose keys are no names"),
        (
            EMPTY + b"(K\x01J\x00\x00\x00\x7f\x85" + DTYPE + b"\x89U\x04abcdtb",
            r"shape \(2130706432,\) and type f4 in 4",
        ),
        (EMPTY + b"(K\x01J\xff\xff\xff\xff\x85" + DTYPE + b"\x89U\x04abcdtb", r"an array of shape \(-1,\)"),
        (EMPTY + b"(K\x01K\x01\x85" + DTYPE + b"\x89K\x04tb", "an array whose data are no bytes"),
        (EMPTY + b"K\x01b", "an array without shape, type and data"),
        (b"]" * 30_000, "more than 20,000 instructions"),
    ],
    ids=[
        *("ndarray-call", "void-dtype", "state-of-a-name", "other-codec", "inst", "obj", "newobj", "ext"),
        *(
            "persid",
            "bytearray",
            "none-key",
            "dup-key",
            "nested-key",
            "shape",
            "negative",
            "data",
            "state",
            "many",
        ),
    ],
)
def test_pickles_that_would_do_harm_are_refused(tmp_path, body, message):
    with pytest.raises(WeightsError, match=message):
        read(OBJECT_HEADER + b"\x80\x02" + body + b".", tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02}",
        b"\x80\x02h\x07.",
        b"\x80\x02}U\x01as.",
        b"\x80\x02K\x01t.",
        b"\x80\x02(R.",
        b"\x80\x02)K\x01a.",
        b"\x80\x02T\xff\xff\xff\x7fabc.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",
        b"\x80\x02X\x01\x00\x00\x00\xff.",
        b"\xff\xff",
    ],
    ids=lambda body: body.hex() or "empty",
)
def test_damaged_pickles_are_named_so(tmp_path, body):
    with pytest.raises(WeightsError, match="damaged or cut off"):
        read(OBJECT_HEADER + body, tmp_path)


def test_a_huge_memo_index_takes_no_memory(tmp_path):
    with pytest.raises(WeightsError, match="a NoneType, expected a dict"):
        read(OBJECT_HEADER + b"\x80\x02Nr\xff\xff\xff\xff.", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        _box({"conv1": [_box([1]), np.zeros(4)]}),
        _box({"conv1": [np.array([None, 1], object), np.zeros(4)]}),
        np.array([{"conv1": 1}, {}], object),
        np.array([["U"]]),
    ],
    ids=["box", "objects", "many", "text"],
)
def test_arrays_of_objects_are_no_weights(tmp_path, content):
    with pytest.raises(WeightsError, match=r"weights\.npy"):
        read(OBJECT_HEADER + pickle.dumps(content, 2), tmp_path)


@pytest.mark.parametrize("seed", range(300))
def test_mutated_files_are_read_or_refused(tmp_path, seed):
    rng = np.random.default_rng(seed)
    content = bytearray(FIXTURE.read_bytes())
    for _ in range(rng.integers(1, 4)):
        content[rng.integers(len(content))] = rng.integers(256)
    try:
        read(bytes(content[: len(content) - rng.integers(2) * rng.integers(600)]), tmp_path)
    except WeightsError as error:
        assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as an .npy file"),
        (b"some text, no array", "cannot be read as an .npy file"),
        (
            npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }") + bytes(8),
            "expected a pickled dict",
        ),
        (
            npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (10**12,), }"),
            "cannot be read as an .npy",
        ),
        (
            npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (9999999999,), }"),
            "expected a pickled dict",
        ),
        (npy_header("__import__('os').mkdir('ran')"), "cannot be read as an .npy file"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFF0) + b"{}", "cannot be read as an .npy file"),
        (b"\x93NUMPY\x03\x00" + OBJECT_HEADER[8:], r"format is 3\.0, expected 1\.0 or 2\.0"),
    ],
    ids=["empty", "text", "plain", "expression", "absurd", "code", "long-header", "version-3"],
)
def test_npy_files_that_are_none(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=message):
        read(content, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.npy"]


ARRAYS = {"a_W": np.arange(6, dtype=np.float32).reshape(2, 3), "a_b": np.ones(3, np.float32)}
SHAPES = {key: array.shape for key, array in ARRAYS.items()}


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    save(tmp_path / "weights.npz", more=np.array("text"), **ARRAYS)
    arrays = read_npz(tmp_path / "weights.npz", SHAPES)
    assert {key: array.tolist() for key, array in arrays.items()} == {
        k: a.tolist() for k, a in ARRAYS.items()
    }


def test_npz_headers_of_python_2(tmp_path):
    header = npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }")
    path = archive(tmp_path / "weights.npz", a_W=header + ARRAYS["a_W"].tobytes())
    np.testing.assert_array_equal(read_npz(path, {"a_W": (2, 3)})["a_W"], ARRAYS["a_W"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a_b": None}, r"weights\.npz: missing a_b \(1 of 2 arrays\); found 'a_W'"),
        ({"a_W": np.zeros((3, 2), np.float32)}, r"a_W has shape \(3, 2\), expected \(2, 3\) \(in, out\)"),
        ({"a_b": np.zeros(3, np.int32)}, r"a_b holds int32, expected float32"),
        ({"a_b": np.array([1, 2, {}], object)}, r"a_b holds object, expected float32"),
        ({"a_b": np.array(["x", "y", "z"])}, r"a_b holds <U1, expected float32"),
    ],
    ids=["missing", "shape", "integers", "pickled", "text"],
)
def test_npz_that_does_not_fit(tmp_path, changes, message):
    members = {key: value for key, value in (ARRAYS | changes).items() if value is not None}
    np.savez(tmp_path / "weights.npz", **members)
    with pytest.raises(WeightsError, match=message):
        read_npz(tmp_path / "weights.npz", SHAPES)


def test_code_in_an_npz_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    np.savez(tmp_path / "weights.npz", **(ARRAYS | {"a_b": np.array([Calls(os.mkdir, str(marker))] * 3)}))
    with pytest.raises(WeightsError, match="a_b holds object"):
        read_npz(tmp_path / "weights.npz", SHAPES)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }"), "has shape"),
        (
            npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"),
            "cannot be read as an .npz",
        ),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 0x7FFFFFF0) + bytes(1 << 27), "cannot be read as an .npz"),
    ],
    ids=["absurd-shape", "no-data", "long-header"],
)
def test_npz_that_lies(tmp_path, header, message):
    path = archive(tmp_path / "weights.npz", a_W=header)
    with pytest.raises(WeightsError, match=message):
        read_npz(path, {"a_W": (2, 3)})


@pytest.mark.parametrize("seed", range(100))
def test_mutated_archives_are_read_or_refused(tmp_path, seed):
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, **ARRAYS)
    rng = np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 4)):
        content[rng.integers(len(content))] = rng.integers(256)
    path.write_bytes(content[: len(content) - rng.integers(2) * rng.integers(600)])
    try:
        read_npz(path, SHAPES)
    except WeightsError as error:
        assert "weights.npz" in str(error)


@pytest.mark.parametrize("reader", [read_npz, read_pickled_pairs])
@pytest.mark.parametrize(("name", "message"), [("none", "no such file"), (".", "a folder, not a file")])
def test_paths_that_are_no_files(tmp_path, reader, name, message):
    with pytest.raises(UsageError, match=message):
        reader(tmp_path / name, {})
