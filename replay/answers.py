"""What a trained agent would answer about its past, beside the truth: asked of the heads that it learned recall with.

Shape letters: T steps of an episode, D width, K different observations of an episode, C codes, A ages.
"""

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor

BELIEFS = 12  # observations of an episode whose recall is shown; half as many that are believed and were not seen


def recall(
    aids: Any, memory: Tensor, frames: tuple[Tensor, ...], looks: list[int], parts: Tensor | None
) -> dict[str, Any]:
    """What the agent believes to have seen, against what it has: from memory (T, D) and frames (T, ...).

    parts (2, T, D): what Transformer and LSTM add to the memory vector. As the head is linear, a belief's logit is
    the sum of what it reads in each, and a constant.
    """
    head, C = aids.heads["seen"], aids.codes.count
    codes, T = aids.codes.of(frames), len(memory)
    seen = torch.zeros(T, C + 1, dtype=torch.bool)  # one more for what training has never met, number -1
    seen[torch.arange(T), codes] = True
    seen = seen.cummax(0).values[:, :C]
    belief = head(memory, C).sigmoid()  # (T, C)
    share = aids.together.diagonal()[:C]
    # What every episode shows, or none, tells nothing: what is shown is what is least certain beforehand.
    telling = share * (1 - share)
    shown = sorted({code for code in codes.tolist() if code >= 0}, key=lambda c: -telling[c].item())[:BELIEFS]
    believed = torch.where(seen[-1], 0.0, belief.amax(0))
    invented = [c for c in believed.argsort(descending=True).tolist()[: BELIEFS // 2] if believed[c] > 0.5]
    first = {code: t for t, code in reversed(list(enumerate(codes.tolist())))}
    chosen = sorted(shown, key=lambda c: first[c]) + invented
    answers = {
        "chosen": chosen,
        "look": [looks[first[c]] if c in first else None for c in chosen],
        "first": [first.get(c) for c in chosen],
        "card": [chosen.index(c) if c in chosen else -1 for c in codes.tolist()],  # of each step's observation
        "share": rounded(share[chosen].numpy()),
        "belief": packed(belief[:, chosen].numpy()),
        "missed": (seen & (belief <= 0.5)).sum(1).tolist(),
        "invented": (~seen & (belief > 0.5)).sum(1).tolist(),
        "seen": seen.sum(1).tolist(),
        "codes": C,
    }
    if parts is not None:
        answers["parts"] = rounded((parts @ head.weight[chosen].T).numpy(), 2)  # (2, T, chosen)
    return answers


def recall_by_age(
    policy: Any, aids: Any, memory: Tensor, frames: tuple[Tensor, ...], looks: list[int]
) -> dict[str, Any]:
    """Which observation was shown k steps ago? The answer of each step for k = 1, 2, ..., among all K of the episode.

    memory (T, D), frames (T, ...) -> for each step the numbers of the looks that it picks, and how sure it is.
    """
    head = aids.heads["age"]
    most = head.age.num_embeddings - 1
    number_of = {look: t for t, look in reversed(list(enumerate(looks[: len(memory)])))}
    candidates = policy.encoder(tuple(part[list(number_of.values())] for part in frames))
    names = list(number_of)
    picked, sure = [], []
    for t, z in enumerate(memory):
        ages = torch.arange(1, min(t, most) + 1)
        probability, answer = head(z.expand(len(ages), -1), ages, candidates).softmax(-1).max(-1)
        picked.append([names[a] for a in answer.tolist()])
        sure.append(probability.numpy())
    return {"most": most, "among": len(names), "picked": picked, "sure": packed(np.concatenate(sure))}


def packed(values: np.ndarray) -> str:
    """Values from 0 to 1 as one byte each, base64."""
    return base64.b64encode(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8).tobytes()).decode()


def rounded(values: Any, digits: int = 5) -> Any:
    """A number, or an array as lists, with that many digits that count."""
    if np.ndim(values):
        return [rounded(value, digits) for value in values]
    return float(f"{float(values):.{digits}g}")
