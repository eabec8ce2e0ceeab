"""Pickles as Python 2 and the numpy of its time wrote them: the official CIFAR batches are such files."""

import io
import pickle
import struct

__all__ = ["python2_dumps"]


class _Python2Pickler(pickle._Pickler):
    """Protocol 2 with byte strings: every str and bytes becomes a Python 2 `str`, as `cPickle.dump(d, f, 2)` has it."""

    dispatch = pickle._Pickler.dispatch.copy()

    def _save_string(self, text):
        data = text if isinstance(text, bytes) else text.encode("latin1")
        if len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch[str] = _save_string
    dispatch[bytes] = _save_string


def python2_dumps(value):
    buffer = io.BytesIO()
    _Python2Pickler(buffer, 2).dump(value)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
