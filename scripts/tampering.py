"""What else may stand in a field of nested dicts and lists: nothing, another type, too much, too little."""

import copy
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch


def paths(tree: Any, at: tuple = ()) -> Iterator[tuple]:
    """The place of every value in nested dicts and lists; of long lists those of the first two."""
    yield at
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        yield from paths(value, (*at, key))


def mutations(value: Any) -> list[Any]:
    """What may stand in the place of a value."""
    others: list[Any] = [None, "../../x", [], {}, -1, 10**18, 10**40, 0.5, -1e300, 1e300, math.nan, True, [[]] * 9]
    if isinstance(value, torch.Tensor):
        others += [value.double() if value.is_floating_point() else value.float(), value[None]]
        others += [torch.cat((value.reshape(-1), value.reshape(-1))), torch.zeros(0), torch.full_like(value, 1)]
        if value.dtype not in (torch.bool, torch.uint8):
            others += [torch.full_like(value, -(2**40)), torch.full_like(value, 2**40)]
        if value.is_floating_point():
            others += [torch.full_like(value, math.nan), torch.full_like(value, 3e38)]
    if isinstance(value, list):
        others += [value * 2, value[1:]]
    return others


def at_place(tree: Any, place: tuple, change: Callable[[Any, Any], None]) -> Any:
    """A copy in which `change` was called with what holds the place and its key there."""
    tree = copy.copy(list(tree) if isinstance(tree, tuple) else tree)
    if len(place) == 1:
        change(tree, place[0])
    else:
        tree[place[0]] = at_place(tree[place[0]], place[1:], change)
    return tree


def mutated(tree: Any, rng: random.Random) -> Any:
    place = rng.choice(list(paths(tree))[1:])
    value = tree
    for key in place:
        value = value[key]
    if rng.random() < 0.2:
        return at_place(tree, place, lambda holder, key: holder.pop(key))
    new = rng.choice(mutations(value))
    return at_place(tree, place, lambda holder, key: holder.__setitem__(key, new))


def identical(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return type(a) is type(b) and a == b
