"""What the nodes and clusters of a picture say."""

from __future__ import annotations

import ast
import linecache
from collections import Counter
from functools import lru_cache
from pathlib import Path

from torch import fx

from fxsolve import prims
from fxsolve.ir import INDEX, EquationBlock
from fxsolve.plan import Runner
from fxsolve.visualize.fold import Group

WIDTH, NAMED = 42, 3  # characters in a line of a label; ops and functions that are named in one
LINES = 20  # source lines that a tooltip shows


def op_label(node: fx.Node, t: str) -> str:
    """A call's name, and that it depends on t, the number of its step."""
    if node.target is prims.draws:
        count, specs = node.args
        kinds = ", ".join(dict.fromkeys(str(spec[0]) for spec in specs))  # type: ignore[union-attr, index]
        return f"{count} draws: {kinds}"
    if node.target is prims.write:
        return f"write slot {t}"
    indexed = any(n.op == "placeholder" and n.name.startswith(INDEX) for n in node.all_input_nodes)
    return f"{op_name(node)} at {t}" if indexed else op_name(node)


def op_name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).split(".")[0].lstrip("_")


def typed(node: fx.Node) -> str:
    """The type of a value; of several results, the first and how many more there are."""
    kind = node.meta.get("type")
    if not isinstance(kind, tuple):
        return str(kind) if kind is not None else ""
    return f"{len(kind)} x {kind[0]}" if len(set(kind)) == 1 and len(kind) > 1 else ", ".join(map(str, kind[:2]))


def group_lines(group: Group) -> list[str]:
    """The label of a node that stands for several calls: where they come from, how many, and what the last one gives."""
    first = group.items[0]
    title = code(first.source) if group.rule == "line" else named([f.removesuffix(".forward") for f in group.functions])
    if group.rule == "repeat":
        title = f"{group.times} x ({title})"
    calls = sum(group.ops.values())
    return [cut(title) or first.ops[0], f"{calls} calls: {counted(group.ops)}", group.items[-1].type]


def group_tip(group: Group) -> str:
    """The source lines that a folded node stands for, and its calls."""
    lines = list(dict.fromkeys(item.source for item in group.items if item.source))
    shown = [f"{Path(source).name}: {code(source)}" for source in lines[:LINES]]
    shown += [f"and {len(lines) - LINES} more lines"] if len(lines) > LINES else []
    return "\n".join([*shown, ", ".join(f"{count} {op}" for op, count in group.ops.most_common())])


def layer_lines(group: Group, skips: bool) -> list[str]:
    """The label of a run of a chain's layers; `skips`: whether they read more of one another than the layer before."""
    first, last = group.items[0], group.items[-1]
    if first is last:
        return [f"s{first.key}: {counted(group.ops)}", last.type]
    (usual, often), *_ = Counter(item.ops for item in group.items).most_common()
    ops = f"{'each' if often == len(group.items) else 'most'}: {counted(Counter(usual))}"
    times = f" ({group.times} x {len(group.items) // group.times})" if group.rule == "repeat" else ""
    reads = "each reads those before it" if skips else ""
    return [f"s{first.key} to s{last.key}: {len(group.items)} layers{times}", reads, ops, last.type]


def counted(ops: Counter[str]) -> str:
    """The most frequent ops, with how many of each."""
    said = [f"{n} {op}" if n > 1 else op for op, n in ops.most_common(NAMED)]
    return ", ".join(said) + (", .." if len(ops) > NAMED else "")


def named(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", .." if len(names) > NAMED else "")


def cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 2].rstrip() + " .."


def last_parts(name: str) -> str:
    """A long name's last parts."""
    while len(name) > 28 and "." in name:
        name = name.partition(".")[2]
    return name


def many(number: int, thing: str) -> str:
    """`1 sweep`, `2 sweeps`."""
    return f"{number} {thing}{'s' * (number != 1)}"


def short(number: int) -> str:
    """A large number in three digits."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def caption(block: EquationBlock, runner: Runner | None, drawn: str) -> list[str]:
    """The label of a block's cluster: kind and size, solver, the last run, the user's file and line."""
    plan = None if runner is None else runner.plan
    solution = None if runner is None else runner.solution
    lines = [f"{block.name}: {plan.kind if plan else block.kind}, {block.length} equations, {drawn}"]
    lines.append(f"solver: {plan.solver}" if plan else "not decided yet")
    if solution is not None:
        lines.append(f"last run: {many(solution.sweeps, 'sweep')}, {many(solution.steps, 'sequential step')}")
        lines.append(solution.certificate)
    lines.append(f"{Path(block.source).name}" if block.source else "")
    return [line for line in lines if line]


def code(source: str) -> str:
    """What stands at the user's `file:line`."""
    file, _, line = source.rpartition(":")
    return linecache.getline(file, int(line)).strip() if line.isdigit() else ""


def tooltip(source: str) -> str:
    """The user's `file:line` and what stands there."""
    text = code(source)
    return f"{source}\n{text}" if text else source


def function_at(source: str) -> str:
    """The function that a `file:line` is in, with its class: `GatedResnet.forward`; the file's name outside of any."""
    file, _, line = source.rpartition(":")
    inside = [span for span in functions_of(file) if line.isdigit() and span[0] <= int(line) <= span[1]]
    return max(inside)[2] if inside else Path(file).name


@lru_cache(maxsize=64)
def functions_of(file: str) -> tuple[tuple[int, int, str], ...]:
    """(first line, last line, qualified name) of each function in a file."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return ()
    found: list[tuple[int, int, str]] = []

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                inner = f"{prefix}{child.name}."
                if not isinstance(child, ast.ClassDef):
                    found.append((child.lineno, child.end_lineno or child.lineno, inner[:-1]))
            walk(child, inner)

    walk(tree, "")
    return tuple(found)
