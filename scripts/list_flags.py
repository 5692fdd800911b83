"""docs/flags.md: every flag of every program, its default, its range and what it does, from the programs themselves.

    python -m scripts.list_flags

Help texts are read as `--help` reads them, from the strings below the fields.
"""

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any, get_type_hints

import tyro

import evaluate
import export
import ppo_lstm
import ppo_palmer
import ppo_trxl
from harness.flags import allowed
from harness.input_error import flag_of
from harness.run import RunArgs
from memory_aids import MemoryAidArgs
from scripts.sweep_table import Parser
from tasks import TaskArgs

FILE = Path(__file__).parents[1] / "docs" / "flags.md"
AGENTS = {"PALMER": ppo_palmer, "PPO-LSTM": ppo_lstm, "PPO-TrXL": ppo_trxl}
INTRODUCTION = """# Flags

Made by `python -m scripts.list_flags` from the programs themselves; `--help` says the same. A switch is turned off by
`--no-` before its name. "report" is what `--preset report`, the settings of the original publication, changes.
"""


def main() -> None:
    Parser(description=__doc__.splitlines()[0]).parse_args()
    FILE.write_text(document(), encoding="utf-8")


def document() -> str:
    """docs/flags.md, as it has to be."""
    train = ppo_palmer.PRESETS["report"]
    sections = [
        section("The task", TaskArgs, train),
        section("The run", RunArgs, train),
        section("What makes an agent remember", MemoryAidArgs, train),
        section("PPO and the network", ppo_palmer.PPOArgs, train),
        section("The memories", ppo_palmer.Args, train, say_whose=True),
        section("`evaluate.py`", evaluate.Args),
        section("`export.py`", export.Args),
    ]
    return "\n".join([INTRODUCTION, *sections])


def section(title: str, Args: type, report: dict[str, Any] | None = None, say_whose: bool = False) -> str:
    """A table of the flags that the class `Args` itself declares; report: values of that preset, if there is one."""
    hints = get_type_hints(Args, include_extras=True)
    columns = ["flag", "default", *(["report"] if report else []), "allowed", *(["agents"] if say_whose else []), ""]
    rows = [columns, ["---"] * len(columns)]
    for name, text in help_texts(Args).items():
        row = [f"`{flag_of(name)}`", written(getattr(Args, name))]
        if report:
            row.append(written(report[name]) if name in report else "")
        row.append("" if hints[name] in (bool, str) else allowed(hints[name]))
        if say_whose:
            row.append(", ".join(agent for agent, script in AGENTS.items() if hasattr(script.Args, name)))
        rows.append([*row, text])
    return f"## {title}\n\n" + "".join("|".join(["", *(f" {cell} " for cell in row), "\n"]) for row in rows)


def help_texts(Args: type) -> dict[str, str]:
    """{field: the string below it} of a class's own fields."""
    [body] = ast.parse(textwrap.dedent(inspect.getsource(Args))).body
    pairs = zip(body.body, body.body[1:], strict=False)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def written(default: Any) -> str:
    """A default as one types it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, int | float):
        return f"{default:,.6g}" if isinstance(default, float) else f"{default:,}"
    return "" if default in ("", None, tyro.MISSING) else str(default)


if __name__ == "__main__":
    main()
