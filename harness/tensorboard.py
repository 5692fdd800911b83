"""What TensorBoard shows beside a run's curves: its flags, to compare runs by (HPARAMS), and groups of curves."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

# What runs are compared by; a run has those of them that its task tells and its flags ask for.
RESULTS = (
    *("evals/success_rate", "evals/reward", "evals/episode_length"),
    *("train/success_rate", "charts/episodic_return", "charts/SPS"),
)
# Flags that say where and how a run is written, not what is learned.
NOT_COMPARED = {"run_dir", "resume", "track", "capture_video", "checkpoint_every"}

# The tab CUSTOM SCALARS: curves that are read together lie in one chart.
CHARTS = {
    "solved": {
        "success": ["Multiline", ["train/success_rate", "evals/success_rate"]],
        "return": ["Multiline", ["charts/episodic_return", "evals/reward"]],
        "length": ["Multiline", ["charts/episodic_length", "evals/episode_length"]],
    },
    "memory": {
        "recall": ["Multiline", ["losses/recall_loss", "losses/age_loss"]],
        "gate, 1 = Transformer": ["Margin", ["gates/agf_value", "gates/min_gate_value", "gates/max_gate_value"]],
    },
    "PPO": {
        "losses": ["Multiline", ["losses/policy_loss", "losses/value_loss"]],
        "entropy": ["Multiline", ["losses/entropy"]],
        "step of the policy": ["Multiline", ["losses/approx_kl", "losses/clipfrac"]],
    },
}


def open_tensorboard(folder: Path, args: Any, algo: str) -> SummaryWriter:
    """A writer of events in `folder`, which says first what run they are of. Raises OSError as writing does."""
    writer = SummaryWriter(str(folder), flush_secs=10)
    writer.add_custom_scalars(CHARTS)
    flags = {name: value for name, value in dataclasses.asdict(args).items() if name not in NOT_COMPARED}
    compared = {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in flags.items()
    }
    # `SummaryWriter.add_hparams` would open a second run inside of this one.
    for summary in hparams({"agent": algo, **compared}, dict.fromkeys(RESULTS, 0.0))[:2]:
        writer.file_writer.add_summary(summary)
    return writer


def add_film(writer: SummaryWriter, step: int, file: Path) -> None:
    """Shows a film among the images, at half its size, as the moving .gif that TensorBoard can show."""
    with imageio.get_reader(file) as film:
        milliseconds = 1000 / film.get_meta_data()["fps"]
        small = (Image.fromarray(frame).reduce(2).quantize(128, dither=Image.Dither.NONE) for frame in film)
        first, gif = next(small), io.BytesIO()
        first.save(gif, "gif", save_all=True, append_images=small, duration=milliseconds, loop=0)
    image = Summary.Image(width=first.width, height=first.height, colorspace=3, encoded_image_string=gif.getvalue())
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag="evals/film", image=image)]), step)
