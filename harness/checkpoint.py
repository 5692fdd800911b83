"""Checkpoints and other files that are written whole or not at all."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.input_error import InputError

CHECKPOINT_FORMAT = 2  # raise it when the meaning of a saved field changes


def save_checkpoint(file: str | Path, payload: dict[str, Any]) -> None:
    """Save `payload` (tensors and plain values, with the key "algo") in one piece.

    Whatever interrupts it, `file` holds either the previous checkpoint or the new one, whole.
    """
    file = Path(file)
    temporary = file.with_name(file.name + ".tmp")
    try:
        with open(temporary, "wb") as opened:
            torch.save({"format": CHECKPOINT_FORMAT, **payload}, opened)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(
    file: str | Path, map_location: str | torch.device = "cpu", flag: str = "--checkpoint"
) -> dict[str, Any]:
    """Load what `save_checkpoint` wrote. Only tensors and plain values are read, never code.

    Raises:
        InputError: naming `flag` and the file, if it is missing, damaged or not one of this project's.
    """
    if not Path(file).is_file():
        raise InputError(f"{flag} {file}: there is no such file; name a run's checkpoint.pt.")
    try:
        payload = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged file can fail in any way inside zip, pickle or torch
        raise InputError(f"{flag} {file}: the file is damaged or no checkpoint; name a checkpoint.pt.") from error
    if not isinstance(payload, dict) or "algo" not in payload or payload.get("format") != CHECKPOINT_FORMAT:
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


def write_json(file: Path, value: Any) -> None:
    """Write valid JSON (NaN and infinity become null) in one piece: a reader never sees half a file."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(json.dumps(finite_or_none(value), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def finite_or_none(value: Any) -> Any:
    """`value` with None for every float that JSON cannot hold, inside dicts and lists too."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
