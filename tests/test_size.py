"""The code stays small enough to be read: limits of files, functions and flags."""

import ast
import dataclasses
from pathlib import Path

import pytest
from toys import SCRIPTS

ROOT = Path(__file__).parent.parent


def lines_of(path):
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())


def functions_of(path):
    """Name and lines of every function, also within others, decorators and docstring included."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    starts = [min([node.lineno, *(line.lineno for line in node.decorator_list)]) for node in functions]
    return [(node.name, node.end_lineno - start + 1) for node, start in zip(functions, starts, strict=True)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_can_be_read_in_one_go(script):
    path = Path(script.__file__).name
    assert lines_of(path) <= 400
    functions = functions_of(path)
    assert max(lines for _, lines in functions) <= 60
    (main,) = [lines for name, lines in functions if name == "main"]
    assert main <= 45


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_has_no_more_flags_than_this(script):
    assert len(dataclasses.fields(script.Args)) <= 54  # 50 is the aim


def test_few_files_stand_at_the_top():
    """Three agents, their policy and aids, and what is done with a trained one: evaluate it, export it."""
    assert len(list(ROOT.glob("*.py"))) <= 7


def test_what_surrounds_the_learning_stays_small():
    assert lines_of("harness/run.py") < 300


def test_a_task_is_one_small_file():
    assert lines_of("tasks/tmaze.py") <= 80
