"""Reads a checkpoint that may be damaged, or made to do harm: all of it is checked before anything is made of it.

A checkpoint is what torch.save writes, a zip of one pickle and an entry for the numbers of each tensor, and then a
checksum of all bytes before. torch.load believes what it reads: it checks no CRC, unpacks whatever an entry holds,
and takes a tensor's size from the pickle. Here the pickle only describes: the few names that a checkpoint needs stand
for records, and tensors are made of them once everything is known to fit.
"""

import hashlib
import io
import math
import pickle
import pickletools
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

LARGEST_FILE = 16 * 2**30  # bytes; what is in a file can fill no more memory than this
MOST_ENTRIES = 50_000  # of a zip; the largest agent here has some ten thousand tensors with its optimiser's
MOST_LEVELS = 20  # of dicts and lists within each other
CHECKSUM = b"\nsha256:"  # stands between a checkpoint and its checksum

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# All that torch.save writes for tensors and plain values. Others could make Python reserve memory without end.
OPCODES = """
    PROTO STOP MARK BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL BINPERSID REDUCE BUILD NONE NEWTRUE NEWFALSE BININT
    BININT1 BININT2 LONG1 BINFLOAT BINUNICODE EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE
    TUPLE1 TUPLE2 TUPLE3
""".split()  # noqa: SIM905  as a list it would be a page


class Damaged(ValueError):
    """Says, in a few words, what is wrong with a file."""


class Checksummed:
    """A file to write to that counts all that is written into a checksum, and remembers what kept it from writing."""

    def __init__(self, opened: BinaryIO):
        self._opened, self._digest = opened, hashlib.sha256()
        self.error: OSError | None = None  # torch.save turns it into another one

    def write(self, data: Any) -> int:
        self._digest.update(data)
        try:
            return self._opened.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._opened.flush()

    def finish(self) -> None:
        self._opened.write(CHECKSUM + self._digest.digest())


class Stored(NamedTuple):
    """A tensor as the pickle describes it, in the order of the arguments of torch._utils._rebuild_tensor_v2."""

    storage: Any  # dtype, name of the entry, number of elements
    offset: Any
    size: Any
    stride: Any
    requires_grad: Any = False
    hooks: Any = None


class State(dict):
    """A state_dict, without the attributes that torch.save keeps of one."""

    def __setstate__(self, attributes: Any) -> None:
        pass


class Description(pickle.Unpickler):
    """Unpickles tensors as `Stored`, state_dicts as dicts, and nothing else that has a name."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        return {("collections", "OrderedDict"): State, ("torch._utils", "_rebuild_tensor_v2"): Stored}[module, name]

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, entry, _, elements = pid
        if kind != "storage" or type(entry) is not str or type(elements) is not int:
            raise Damaged("a tensor is described wrongly")
        return dtype, entry, elements


def read_archive(file: Path) -> tuple[Any, bool]:
    """What `file` holds, tensors on the CPU, and whether it has a checksum.

    Raises Damaged, or whatever else a damaged file makes fail.
    """
    with open(file, "rb") as opened:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FILE:
            raise Damaged(f"it is larger than {LARGEST_FILE:,} bytes")
        zip_size = check_sum(opened, status.st_size)
        with zipfile.ZipFile(opened) as archive:
            entries = read_entries(archive, zip_size)
    (pickled,) = (name for name in entries if name.endswith("/data.pkl"))
    folder, description = pickled.removesuffix("data.pkl"), entries.pop(pickled)
    check_pickle(description)
    reader = Contents(entries, folder + "data/", len(description))
    return reader.contents(Description(io.BytesIO(description)).load(), 0), zip_size < status.st_size


def check_sum(opened: BinaryIO, size: int) -> int:
    """Compares the checksum, where there is one -> bytes of the zip alone."""
    length = len(CHECKSUM) + hashlib.sha256().digest_size
    opened.seek(max(0, size - length))
    tail = opened.read()
    if not tail.startswith(CHECKSUM):
        if tail[-22:-18] != b"PK\5\6":  # else the zip is the last that is in the file, as it should be
            raise Damaged("its end is missing")
        return size
    opened.seek(0)
    digest, left = hashlib.sha256(), size - length
    while left:
        part = opened.read(min(left, 2**20))
        digest.update(part)
        left -= len(part)
    if digest.digest() != tail[len(CHECKSUM) :]:
        raise Damaged("its checksum is another")
    return size - length


def read_entries(archive: zipfile.ZipFile, size: int) -> dict[str, bytes]:
    """All entries of a zip of `size` bytes; each is compared with its CRC as it is read."""
    infos = archive.infolist()
    if len(infos) > MOST_ENTRIES:
        raise Damaged(f"it has more than {MOST_ENTRIES:,} entries")
    if any(info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size for info in infos):
        raise Damaged("its entries are compressed")
    if sum(info.file_size for info in infos) > size:
        raise Damaged("its entries are larger than the file")
    return {info.filename: archive.read(info) for info in infos}


def check_pickle(description: bytes) -> None:
    """Looks through a pickle before any of it is executed."""
    for opcode, argument, _ in pickletools.genops(description):
        if opcode.name not in OPCODES:
            raise Damaged(f"it needs {opcode.name}, which no checkpoint does")
        if opcode.name == "LONG_BINPUT" and argument > len(description):  # room for as many would be made
            raise Damaged("it counts more values than it holds")


class Contents:
    """Makes values of their description, tensors of the `entries` whose names begin with `prefix`."""

    def __init__(self, entries: dict[str, bytes], prefix: str, most_values: int):
        """most_values: a value takes a byte at least; more come of values that hold each other or themselves."""
        self._entries, self._prefix, self._left = entries, prefix, most_values

    def contents(self, value: Any, level: int) -> Any:
        self._left -= 1
        if self._left < 0 or level > MOST_LEVELS:
            raise Damaged("its values are nested too deeply")
        kind = type(value)
        if kind is Stored:
            return self._tensor(value)
        if kind in (dict, State):
            if any(type(key) not in (str, int) for key in value):
                raise Damaged("it has keys that are neither words nor numbers")
            return {key: self.contents(item, level + 1) for key, item in value.items()}
        if kind in (list, tuple):
            return kind(self.contents(item, level + 1) for item in value)
        if kind is float and not math.isfinite(value):
            raise Damaged(f"it holds the number {value}")
        if value is not None and kind not in (str, int, float, bool):
            raise Damaged("it holds something that is no plain value")
        return value

    def _tensor(self, stored: Stored) -> Tensor:
        """Each of an entry of its own, which it fills: as torch.save would, given no views."""
        dtype, entry, elements = stored.storage
        size, stride = stored.size, stored.stride
        if type(size) is not tuple or type(stride) is not tuple or stored.offset != 0 or len(size) != len(stride):
            raise Damaged("a tensor is described wrongly")
        if any(type(number) is not int or number < 0 for number in (*size, *stride)):
            raise Damaged("a tensor's size is no number")
        numbers = self._entries.pop(self._prefix + entry)
        if math.prod(size) != elements or elements * dtype.itemsize != len(numbers):
            raise Damaged(f"a tensor of size {size} does not fit its numbers")
        if not elements:
            return torch.empty(size, dtype=dtype)
        flat = torch.frombuffer(bytearray(numbers), dtype=dtype)
        if dtype is torch.bool and int(flat.view(torch.uint8).max()) > 1:
            raise Damaged("a truth value is neither 0 nor 1")
        if dtype.is_floating_point and not flat.isfinite().all():
            raise Damaged("a tensor holds what is no finite number")
        step = 1
        for length, distance in sorted(zip(size, stride, strict=True), key=lambda axis: axis[1]):
            if length > 1 and distance != step:
                raise Damaged("a tensor's elements are not side by side")
            step *= length
        return flat.as_strided(size, stride)
