"""T-maze: an oracle at the near end of a corridor tells which arm at the far end holds the goal.

    passive              G        active              G       S start, O oracle (passive: at S),
      S----- length -----J          O-S---- length ---J       J junction, G goal or no goal
                         G                            G

Passive: the agent starts at the oracle and has to remember, no more. Active: it starts one cell to the right of the
oracle, and that going there was of use shows only in the reward at the end, more than `length` steps later.

Observation (2,): at the first visit of the oracle (0, side of the goal: -1 or 1); elsewhere in the corridor (0, 0);
at the junction and in its arms (1, y). Actions: right, up, left, down; a move into a wall does nothing.
Every episode has the steps that the best policy needs: `length` + 1, and 2 more if active. The last one brings 1 in
the arm with the goal, else 0; each of the others -1 / `length` to an agent that is further left than the best policy
by then, else 0. Best return: 1; without memory: 0.5; for standing still: -1.

Ni et al. 2023, https://arxiv.org/abs/2307.03864, and their code https://github.com/twni2016/Memory-RL, whose lengths,
rewards and observations these are; written anew. They add last action and reward, which tell who is late.

    python ppo_palmer.py --env-id palmer/TMazePassive-v0 --env-kwargs '{"length": 100}' --last-action --last-reward
"""

import gymnasium
import numpy as np
from gymnasium import spaces

MOVES = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, up, left, down as (x, y)
WALL, FLOOR, ORACLE = (40,) * 3, (230,) * 3, (60, 110, 230)
RIGHT, WRONG, AGENT = (60, 180, 75), (220, 60, 60), (255, 140, 0)


class TMaze(gymnasium.Env):
    """x counts from the oracle to the right; y is 0 in the corridor and -1 or 1 in the arms."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, active: bool = False, length: int = 50, render_mode: str | None = None):
        assert length >= 1, f"length {length}: must be at least 1"
        self.start = int(active)
        self.length, self.junction, self.render_mode = length, self.start + length, render_mode
        self.max_steps = 2 * self.start + length + 1
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, bool]]:
        super().reset(seed=seed)
        self.x, self.y, self.t = self.start, 0, 0
        self.goal = int(self.np_random.choice((-1, 1)))
        self.oracle_visited = False
        return self.observe(), {"is_success": False}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, bool]]:
        assert self.action_space.contains(action), f"action {action}: must be 0, 1, 2 or 3"
        self.t += 1
        x, y = self.x + MOVES[action][0], self.y + MOVES[action][1]
        if (y == 0 and 0 <= x <= self.junction) or (x == self.junction and abs(y) == 1):
            self.x, self.y = x, y
        terminated = self.t == self.max_steps
        success = terminated and self.y == self.goal
        # The best policy is now at x = t or, if active, at t - 1, as it has stepped back to the oracle.
        late = not terminated and self.x < self.t - self.start
        reward = -1 / self.length if late else float(success)
        return self.observe(), reward, terminated, False, {"is_success": success}

    def observe(self) -> np.ndarray:
        if self.x == self.junction:
            return np.array([1, self.y], np.float32)
        told = self.goal if self.x == 0 and not self.oracle_visited else 0
        self.oracle_visited = self.oracle_visited or self.x == 0
        return np.array([0, told], np.float32)

    def render(self) -> np.ndarray:
        cells = np.full((3, self.junction + 1, 3), WALL, np.uint8)
        cells[1], cells[1, 0] = FLOOR, ORACLE
        cells[1 - self.goal, -1], cells[1 + self.goal, -1] = RIGHT, WRONG  # up is a larger y, but a smaller row
        cells[1 - self.y, self.x] = AGENT
        return cells.repeat(16, 0).repeat(16, 1)


for name, active in (("Passive", False), ("Active", True)):
    gymnasium.register(f"palmer/TMaze{name}-v0", entry_point=f"{__name__}:TMaze", kwargs={"active": active})
