"""Checkpoints and other files that are written whole or not at all."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.archive import Checksummed, Damaged, read_archive
from harness.input_error import InputError, RunError

CHECKPOINT_FORMAT = 3  # raise it when the meaning of a saved field changes
WITHOUT_CHECKSUM = 2  # this format had none; its files are known to be whole by the CRCs of their entries


def save_checkpoint(file: str | Path, payload: dict[str, Any]) -> None:
    """Save `payload` (tensors and plain values, with the key "algo") in one piece, a checksum at its end.

    Whatever interrupts it, `file` holds either the previous checkpoint or the new one, whole.
    """
    file = Path(file)
    temporary = file.with_name(file.name + ".tmp")
    try:
        with open(temporary, "wb") as opened:
            checksummed = Checksummed(opened)
            try:
                torch.save({**payload, "format": CHECKPOINT_FORMAT}, checksummed)
            except RuntimeError as error:
                raise checksummed.error or error from None
            checksummed.finish()
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def check_finite(tree: Any, name: str) -> None:
    """Raises RunError for a number that is not finite, inside dicts and lists too, and says whose it is."""
    if isinstance(tree, Mapping | list | tuple):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            check_finite(value, f"{name}.{key}")
    elif isinstance(tree, Tensor | float) and not torch.as_tensor(tree).isfinite().all():
        raise RunError(f"{name} is not finite, and nothing that is not finite is saved.")


def load_checkpoint(file: str | Path, flag: str = "--checkpoint") -> dict[str, Any]:
    """Load what `save_checkpoint` wrote, onto the CPU. Only tensors and plain values are read, never code.

    Raises:
        InputError: naming `flag` and the file, if it is missing, damaged or not one of this project's.
    """
    if not Path(file).is_file():
        raise InputError(f"{flag} {file}: there is no such file; name a run's checkpoint.pt.")
    try:
        payload, checksum = read_archive(Path(file))
    except OSError as error:
        raise InputError(f"{flag} {file}: cannot be read ({error.strerror}); name a checkpoint.pt.") from error
    except Exception as error:  # a damaged file can fail in any way inside zip, pickle or torch
        reason = f" ({error})" if isinstance(error, Damaged) else ""
        raise InputError(
            f"{flag} {file}: the file is damaged or no checkpoint{reason}; name a checkpoint.pt."
        ) from error
    known = CHECKPOINT_FORMAT if checksum else WITHOUT_CHECKSUM
    if not isinstance(payload, dict) or "algo" not in payload or payload.get("format") != known:
        raise InputError(
            f"{flag} {file}: not a checkpoint of this project, or of another version of it "
            f"(format {CHECKPOINT_FORMAT} is read here)."
        )
    return payload


def pack(tree: Any) -> Any:
    """A copy of nested (named) tuples, lists, dicts and tensors that a checkpoint can hold.

    Copies, as saving a view would save all of the storage behind it. Objects with a `tensors` method are asked.
    """
    if hasattr(tree, "tensors"):
        tree = tree.tensors()
    if isinstance(tree, Tensor):
        return tree.detach().cpu().clone()
    if isinstance(tree, Mapping):
        return {key: pack(value) for key, value in tree.items()}
    if hasattr(tree, "_asdict"):
        return pack(tree._asdict())
    if isinstance(tree, list | tuple):
        return [pack(value) for value in tree]
    return tree


def unpack(saved: Any, like: Any) -> Any:
    """What `pack` was given, with the classes and devices of `like`, which need not have the same sizes."""
    if hasattr(like, "from_tensors"):
        return like.from_tensors(saved, like.tensors()[0].device)
    if isinstance(like, Tensor):
        return saved.to(like.device)
    if hasattr(like, "_asdict"):
        return type(like)(**{name: unpack(saved[name], value) for name, value in like._asdict().items()})
    return saved


def check_form(saved: Any, like: Any, name: str) -> None:
    """Raises ValueError unless `saved` has the keys, lengths, types, and of tensors size and dtype, of `like`."""
    if isinstance(like, Tensor):
        if not isinstance(saved, Tensor) or (saved.shape, saved.dtype) != (like.shape, like.dtype):
            raise ValueError(f"{name} must be of size {tuple(like.shape)} and {like.dtype}")
    elif isinstance(like, Mapping):
        if not isinstance(saved, Mapping) or saved.keys() != like.keys():
            raise ValueError(f"{name} must have other keys")
        for key, value in like.items():
            check_form(saved[key], value, str(key))
    elif isinstance(like, list | tuple):
        if not isinstance(saved, list | tuple) or len(saved) != len(like):
            raise ValueError(f"{name} must have {len(like)} values")
        for one, other in zip(saved, like, strict=True):
            check_form(one, other, name)
    elif type(saved) is not type(like):
        raise ValueError(f"{name} must be of type {type(like).__name__}")


def check_range(tensor: Tensor, least: float, most: float, name: str) -> None:
    """Raises ValueError unless all elements are from `least` to `most`."""
    if tensor.numel() and not (least <= tensor.min() and tensor.max() <= most):
        raise ValueError(f"{name} must be from {least:,} to {most:,}")


def write_json(file: Path, value: Any) -> None:
    """Write valid JSON (NaN and infinity become null) in one piece: a reader never sees half a file."""
    temporary = file.with_name(file.name + ".tmp")
    try:
        temporary.write_text(json.dumps(finite_or_none(value), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def finite_or_none(value: Any) -> Any:
    """`value` with None for every float that JSON cannot hold, inside dicts and lists too."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
