"""--track, against the real wandb package, offline: a run, its config, its metrics and its film."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2

ROOT = Path(__file__).resolve().parent.parent


def records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """wandb's log: 7 bytes of header, then blocks of 32 KiB in which pieces of records have a header of 7 bytes."""
    data, position, parts = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # too little is left of this block for another piece
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def read_offline_run(folder: Path) -> tuple[dict, list[dict], list[Path]]:
    """What a run wrote below `folder`/wandb -> its config, its rows, its videos and pictures."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    config, rows = {}, []
    for record in records(file):
        for update in (*record.run.config.update, *record.config.update):
            config[update.key or update.nested_key[0]] = json.loads(update.value_json)
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        if items:
            rows.append(items)
    return config, rows, list(file.parent.glob("files/media/*/*"))


def test_a_tracked_run_is_written_with_its_config_metrics_and_film(tmp_path):
    flags = "--env-id MiniGrid-MemoryS7-v0 --obs-mode symbolic --total-timesteps 256 --num-envs 4 --num-steps 16"
    flags += " --num-minibatches 2 --width 16 --eval-every 128 --eval-episodes 2 --final-eval-episodes 2 --no-cuda"
    flags += " --max-episode-steps 6 --track --capture-video"
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_PROJECT": "mine"}
    command = [sys.executable, "ppo_palmer.py", *flags.split(), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config, rows, media = read_offline_run(tmp_path / "run")
    assert (config["algo"], config["width"], config["env_id"]) == ("palmer", 16, "MiniGrid-MemoryS7-v0")
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    entropies = [row["losses/entropy"] for row in rows if "losses/entropy" in row]
    assert entropies == [row["losses/entropy"] for row in logged if "losses/entropy" in row] and len(entropies) == 4
    assert {row["_step"] for row in rows} == {row["step"] for row in logged}
    assert any("evals/success_rate" in row for row in rows)
    # At three evaluations; the last two are of the same agent, and so are their pictures.
    assert sorted(file.suffix for file in media) == [".mp4"] * 3 + [".png"] * 2
    assert all(file.stat().st_size > 1000 for file in media)
