"""Would the runs of a sweep start? Exit code 2 and one sentence where one would not, before any is started.

python -m scripts.check_sweep "palmer lstm" "MiniGrid-MemoryS11-v0 MiniGrid-MemoryS13-v0" --total-timesteps 1000
"""

import importlib
import sys

import torch

from harness.checks import check_run
from harness.flags import check_args, parse_args
from harness.input_error import InputError
from tasks.real import find_spec


def main() -> None:
    algos, env_ids, *flags = sys.argv[1:]
    try:
        for algo in algos.split():
            script = importlib.import_module(f"ppo_{algo}")
            for env_id in env_ids.split():
                sys.argv = [f"ppo_{algo}.py", "--env-id", env_id, *flags]
                args = parse_args(script.Args, script.PRESETS)
                check_args(args)
                find_spec(env_id)
                check_run(args, torch.device("cpu"))
    except InputError as error:
        print(f"error: ppo_{algo}.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
