import builtins
import os
import pickle
import pickletools
from collections import OrderedDict

import numpy as np
import pytest
from python2_pickle import python2_dumps

from sfumato.data import unpickle
from sfumato.data.unpickle import load_plain_pickle
from sfumato.errors import DataError


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args, state=None):
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.parts


def read(data):
    return load_plain_pickle(data, "batch_1")


def test_the_python_2_layout_is_read_as_bytes():
    data = np.arange(6, dtype=np.uint8).reshape(2, 3)
    content = python2_dumps({"data": data, "labels": [3, 7], "batch_label": "training batch 1 of 5"})
    names = {op.name for op, _, _ in pickletools.genops(content)}
    assert "SHORT_BINSTRING" in names
    assert "BINUNICODE" not in names
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    batch = read(content)
    assert set(batch) == {b"data", b"labels", b"batch_label"}
    assert batch[b"labels"] == [3, 7]
    assert batch[b"batch_label"] == b"training batch 1 of 5"
    assert batch[b"data"].dtype == np.uint8
    assert batch[b"data"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert pickle.loads(content, encoding="bytes")[b"data"].tolist() == batch[b"data"].tolist()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "bool", "int16", ">i4", "int64", "float32", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numbers_of_every_protocol(protocol, dtype, order):
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype, order=order)
    result = read(pickle.dumps([array], protocol=protocol))[0]
    assert result.dtype == array.dtype
    assert result.tolist() == array.tolist()


@pytest.mark.parametrize("protocol", range(5))
def test_plain_values_of_every_protocol(protocol):
    value = {"a": [1, 2.5, None, True, -(2**70)], b"b" * 300: (b"\x00\xff", "ä"), 3: [], "nested": {"x": {}}}
    assert read(pickle.dumps(value, protocol=protocol)) == value


def test_shared_parts_stay_small():
    # Fifteen levels of "ten times the previous": a few bytes that stand for 10^15 values.
    level = [0]
    for _ in range(15):
        level = [level] * 10
    result = read(pickle.dumps(level))
    assert result[0] is result[9]
    assert len(result[0][9][0]) == 10


def test_a_large_index_takes_no_memory():
    # LONG_BINPUT 2^31 - 1: an unpickler that keeps its memo in an array would fill 32 GB.
    assert read(b"\x80\x02]r\xff\xff\xff\x7f.") == []


REFUSED = {
    "os.system": (Call(os.system, "touch MARKER"), "posix.system"),
    "eval": (Call(eval, "open('MARKER', 'w')"), "eval"),
    "exec": (Call(exec, "open('MARKER', 'w')"), "exec"),
    "open": (Call(open, "MARKER", "w"), r"io\.open|_io\.open"),
    "getattr": (Call(getattr, "text", "upper"), "getattr"),
    "import": (Call(builtins.__import__, "os"), "__import__"),
    "numpy loader": (Call(np.load, "MARKER"), r"numpy.*load"),
    "class": (OrderedDict(a=1), "OrderedDict"),
    "complex": (1j, "complex"),
    "numpy scalar": (np.float64(1.0), "scalar"),
    "subclass": (np.ma.masked_array([1]), "numpy.ma"),
    "objects": (np.array([1, "a", None], dtype=object), "an array of type 'O8'"),
    "objects that call": (np.array([Call(os.system, "touch MARKER")], dtype=object), r"posix\.system|type 'O8'"),
    "records": (np.zeros(2, dtype=[("a", "u1"), ("b", "O")]), "an array of type 'V9'"),
    "text": (np.array(["a"]), "an array of type 'U1'"),
    "dates": (np.array(["2020-01-01"], dtype="M8[D]"), "an array of type 'M8'"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused_without_side_effect(name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, reason = REFUSED[name]
    content = pickle.dumps({"data": value, "labels": [0]}, protocol=protocol)
    with pytest.raises(DataError, match=rf"batch_1 asks for .*({reason}).*was not read; download it again"):
        read(content)
    assert list(tmp_path.iterdir()) == []


HEAD = b"\x80\x02"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
ARRAY = RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
BYTE = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        # Dotted names would reach attributes of an admitted name.
        (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", r"numpy\.ndarray\.__class__"),
        (b"\x80\x04\x8c\x05numpy\x8c\x09dtype.mro\x93.", r"numpy\.dtype\.mro"),
        # The same dtype, given fields afterwards: numpy would read bytes of the file as pointers.
        (
            HEAD + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NU\x01a\x85}U\x01aK\x00sK\x08K\x01K\x00tb.",
            "an array of records",
        ),
        # An array whose content is a list of objects, or whose type is something else.
        (HEAD + ARRAY + b"(K\x01K\x01\x85" + BYTE + b"I00\n]tb.", "an array of objects"),
        (HEAD + ARRAY + b"(K\x01K\x01\x85NI00\nU\x01atb.", "an array of objects"),
        # BUILD on a function or a name would alter the reader for the next file.
        (HEAD + RECONSTRUCT + b"}U\x08__call__K\x01sb.", "a change of the reader"),
        (HEAD + b"cnumpy\nndarray\n}U\x01xK\x01sb.", "a change of the reader"),
        (HEAD + RECONSTRUCT + b"N}U\x04_runK\x01s\x86b.", "a change of the reader"),
        # A name where data should be, a codec that is not latin-1, a reference to elsewhere.
        (HEAD + RECONSTRUCT + b".", "something that is not data"),
        (HEAD + b"cnumpy\nndarray\n.", "something that is not data"),
        (HEAD + BYTE + b".", "something that is not data"),
        (HEAD + b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "the codec 'rot13'"),
        (HEAD + b"c_codecs\nencode\n]X\x06\x00\x00\x00latin1\x86R.", "the codec"),
        (HEAD + b"K\x01Q.", "an object stored elsewhere"),
        (HEAD + b"]" * 25 + b"a" * 24 + b".", "deeper nesting"),
        (HEAD + b"]q\x00h\x00a.", "deeper nesting"),  # a list that contains itself
    ],
)
def test_forged_programs_are_refused(program, reason):
    before = dict(unpickle._NAMES)
    with pytest.raises(DataError, match=rf"batch_1 asks for .*{reason}"):
        read(program)
    assert before == unpickle._NAMES
    assert read(python2_dumps({"x": np.array([1, 2], dtype=np.uint8)}))[b"x"].tolist() == [1, 2]


def test_damage_is_no_python_error():
    content = python2_dumps({"data": np.arange(600, dtype=np.uint8), "labels": list(range(100))})
    for cut in range(0, len(content) - 1, 13):
        # Cut within a name, the file seems to ask for another one.
        with pytest.raises(DataError, match=r"batch_1 (is damaged \(.*\)|asks for numpy.*); download it again"):
            read(content[:cut])


@pytest.mark.parametrize(
    "state",
    [
        b"(K\x01K\x05\x85" + BYTE + b"I00\nU\x03abctb.",  # five elements claimed, three given
        b"(K\x01J\xff\xff\xff\xffJ\xfd\xff\xff\xff\x86" + BYTE + b"I00\nU\x03abctb.",  # (-1, -3): the product fits
        b"(K\x01\x8a\x06\x00\x00\x00\x00\x00\x40\x85" + BYTE + b"I00\nU\x03abctb.",  # 70 terabytes
        b"K\x01b.",
        b".",
    ],
)
def test_arrays_that_do_not_add_up_are_damaged(state):
    with pytest.raises(DataError, match="batch_1 is damaged"):
        read(HEAD + ARRAY + state)
