"""Reading Airflow DAG files by their syntax, without importing Airflow or running anything: tasks and what they wait for.

Straight code is understood: ``with DAG``, ``@dag``, ``@task``, operators, ``>>``, ``<<``, ``chain``, task groups. Whatever is not is
said with its line, and nothing is left out in silence.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .airflow_schedule import called, literal, seconds_of

__all__ = ["Dag", "FileNote", "Node", "Reader", "TaskDef", "identifier"]


@dataclass(frozen=True, slots=True)
class FileNote:
    """Something about a place of a file. ``is_lost``: it is not in what came out."""

    line: int
    column: int
    message: str
    is_lost: bool


@dataclass(slots=True)
class TaskDef:
    """A decorated function: ``options`` are those of its decorator, ``name`` is one that no other has."""

    function: ast.FunctionDef | ast.AsyncFunctionDef
    options: dict[str, ast.expr]
    kind: str
    name: str


@dataclass(slots=True)
class Node:
    """One task of a DAG. ``operator`` is the class's last word, or ``@`` of a decorated function."""

    var: str
    task_id: str
    at: ast.AST
    operator: str
    options: dict[str, ast.expr]
    args: list[ast.expr] = field(default_factory=list)
    kwargs: dict[str, ast.expr] = field(default_factory=dict)
    function: TaskDef | None = None
    mapped: dict[str, ast.expr] = field(default_factory=dict)
    after: list[str] = field(default_factory=list)
    """Tasks it waits for because it was said; those whose results it takes stand in its arguments."""
    takes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Dag:
    """One DAG: its options, and its tasks by variable, in the order of the file."""

    dag_id: str
    at: ast.AST
    options: dict[str, ast.expr]
    parameters: list[tuple[str, ast.expr | None]] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)


def identifier(text: str, taken: Iterable[str] = ()) -> str:
    """Return a Python name made of ``text`` that is not ``taken``."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "task"
    name = f"_{name}" if name[0].isdigit() else name
    name = f"{name}_" if keyword.iskeyword(name) else name
    base, number, used = name, 2, set(taken)
    while name in used:
        name, number = f"{base}_{number}", number + 1
    return name


class Reader:
    """Reads one module. After ``read``: ``dags``, ``kept`` (statements that stay), ``notes``."""

    def __init__(self, text: str) -> None:
        self.tree = ast.parse(text)
        self.dags: list[Dag] = []
        self.kept: list[ast.stmt] = []
        self.tasks: dict[str, TaskDef] = {}
        """What a name stands for at this place; ``definitions`` are all there are."""
        self.definitions: list[TaskDef] = []
        self.imports: dict[str, str] = {}
        """What of Airflow the module calls by which name."""
        self.notes: list[FileNote] = []
        self._bound: dict[str, list[str]] = {}
        self._dag_names: dict[str, Dag] = {}
        self._dag_functions: dict[str, ast.FunctionDef] = {}
        self._dag: Dag | None = None
        self._constants: dict[str, ast.expr] = {}

    # --- notes ----------------------------------------------------------------------------------------

    def lose(self, at: ast.AST, message: str) -> None:
        self._note(at, message, True)

    def look(self, at: ast.AST, message: str) -> None:
        self._note(at, message, False)

    def _note(self, at: ast.AST, message: str, is_lost: bool) -> None:
        note = FileNote(getattr(at, "lineno", 1), getattr(at, "col_offset", 0) + 1, message, is_lost)
        if note not in self.notes:
            self.notes.append(note)

    # --- the module -----------------------------------------------------------------------------------

    def read(self) -> None:
        """Read the whole module."""
        for stmt in self.tree.body:
            self._top(stmt)
        for function in self._dag_functions.values():
            self._dag_function(function)

    def _top(self, stmt: ast.stmt) -> None:
        if isinstance(stmt, ast.Import | ast.ImportFrom):
            if not self._import(stmt):
                self.kept.append(stmt)
            return
        if isinstance(stmt, ast.FunctionDef | ast.AsyncFunctionDef):
            self._function(stmt)
            return
        if isinstance(stmt, ast.With) and self._with(stmt):
            return
        if isinstance(stmt, ast.Assign | ast.Expr) and self._statement(stmt):
            return
        if isinstance(stmt, ast.Assign) and len(stmt.targets) == 1 and isinstance(stmt.targets[0], ast.Name):
            self._constants[stmt.targets[0].id] = stmt.value
        if isinstance(stmt, ast.For | ast.While | ast.If) and self._makes_tasks(stmt):
            self.lose(
                stmt, "tasks that are made in a loop or under a condition; write them out, or use `.map()`"
            )
            return
        self.kept.append(stmt)

    def _import(self, stmt: ast.Import | ast.ImportFrom) -> bool:
        """Take an import of Airflow; return whether it was one (a mixed one counts, and is said)."""
        if isinstance(stmt, ast.ImportFrom):
            if (stmt.module or "").split(".")[0] != "airflow":
                return False
            for name in stmt.names:
                self.imports[name.asname or name.name] = f"{stmt.module}.{name.name}"
            return True
        ours = [n for n in stmt.names if n.name.split(".")[0] == "airflow"]
        for name in ours:
            self.imports[name.asname or name.name.split(".")[0]] = name.name
        if ours and len(ours) < len(stmt.names):
            rest = ast.Import(names=[n for n in stmt.names if n not in ours])
            self.kept.append(ast.copy_location(rest, stmt))
        return bool(ours)

    def _is(self, node: ast.AST, *words: str) -> bool:
        """Whether an expression is one of Airflow's names (``dag``, ``task.bash``), by what was imported."""
        text = ast.unparse(node)
        first, _, rest = text.partition(".")
        full = self.imports.get(first)
        if full is None:
            return False
        last = f"{full}.{rest}" if rest else full
        return any(last == word or last.endswith(f".{word}") for word in words)

    def _function(self, stmt: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for decorator in stmt.decorator_list:
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            if self._is(target, "dag") and isinstance(stmt, ast.FunctionDef):
                self._dag_functions[stmt.name] = stmt
                return
            if self._is(target, "task_group"):
                self.lose(
                    stmt, f"the task group {stmt.name!r} as a function; call its tasks in the DAG itself"
                )
                return
            first = ast.unparse(target).partition(".")[0]
            if self._is(ast.Name(first), "task"):
                kind = ast.unparse(target).partition(".")[2] or "python"
                options = (
                    {k.arg: k.value for k in decorator.keywords if k.arg}
                    if isinstance(decorator, ast.Call)
                    else {}
                )
                name = identifier(stmt.name, [d.name for d in self.definitions])
                self.tasks[stmt.name] = TaskDef(stmt, options, kind, name)
                self.definitions.append(self.tasks[stmt.name])
                if kind not in ("python", "bash"):
                    self.lose(decorator, f"@task.{kind}: the function runs as an ordinary task")
                return
        self.kept.append(stmt)

    def _with(self, stmt: ast.With) -> bool:
        call = stmt.items[0].context_expr
        if isinstance(call, ast.Call) and self._is(call.func, "DAG"):
            dag = self._open(call)
            name = stmt.items[0].optional_vars
            if isinstance(name, ast.Name):
                self._dag_names[name.id] = dag
            self._body(stmt.body, dag)
            return True
        if isinstance(call, ast.Name) and call.id in self._dag_names:
            self._body(stmt.body, self._dag_names[call.id])
            return True
        return False

    def _open(self, call: ast.Call, dag_id: str | None = None) -> Dag:
        options = {k.arg: k.value for k in call.keywords if k.arg}
        found = literal(call.args[0]) if call.args else literal(options.get("dag_id"))
        dag = Dag(str(found or dag_id or f"dag_{len(self.dags) + 1}"), call, options)
        if found is None and dag_id is None:
            self.look(call, f"the id of the DAG is not a text; it is called {dag.dag_id!r}")
        self.dags.append(dag)
        return dag

    def _dag_function(self, function: ast.FunctionDef) -> None:
        decorator = next(d for d in function.decorator_list if self._is(getattr(d, "func", d), "dag"))
        call = (
            decorator
            if isinstance(decorator, ast.Call)
            else ast.copy_location(ast.Call(decorator, [], []), function)
        )
        dag = self._open(call, function.name)
        spec = function.args
        defaults: list[ast.expr | None] = [*[None] * (len(spec.args) - len(spec.defaults)), *spec.defaults]
        dag.parameters = [(arg.arg, value) for arg, value in zip(spec.args, defaults, strict=True)]
        self._body(function.body, dag)

    # --- the body of a DAG ----------------------------------------------------------------------------

    def _body(self, body: Sequence[ast.stmt], dag: Dag) -> None:
        before, self._dag = self._dag, dag
        for stmt in body:
            if isinstance(stmt, ast.FunctionDef | ast.AsyncFunctionDef):
                self._function(stmt)
            elif isinstance(stmt, ast.Import | ast.ImportFrom):
                self._top(stmt)
            elif isinstance(stmt, ast.With):
                self._group(stmt, dag)
            elif isinstance(stmt, ast.Pass | ast.Return) or (
                isinstance(stmt, ast.Expr) and isinstance(stmt.value, ast.Constant)
            ):
                continue
            elif not self._statement(stmt):
                if isinstance(stmt, ast.Assign) and not self._makes_tasks(stmt):
                    self._top(stmt)
                    self.look(stmt, "this is computed when the file is imported, not in the run")
                else:
                    self.lose(
                        stmt,
                        f"`{ast.unparse(stmt).splitlines()[0][:80]}` is not straight code; write it anew",
                    )
        self._dag = before

    def _group(self, stmt: ast.With, dag: Dag) -> None:
        call = stmt.items[0].context_expr
        if not (isinstance(call, ast.Call) and self._is(call.func, "TaskGroup")):
            self.lose(stmt, f"`with {ast.unparse(call)[:80]}`; what is in it is not converted")
            return
        before = set(dag.nodes)
        self._body(stmt.body, dag)
        name = stmt.items[0].optional_vars
        if isinstance(name, ast.Name):
            self._bound[name.id] = [var for var in dag.nodes if var not in before]

    def _makes_tasks(self, stmt: ast.AST) -> bool:
        return any(isinstance(n, ast.Call) and self._is_task(n) for n in ast.walk(stmt))

    def _is_task(self, call: ast.Call) -> bool:
        return self._operator(call) != "" or self._task_call(call) is not None

    def _operator(self, call: ast.Call) -> str:
        first = ast.unparse(call.func).partition(".")[0]
        word = called(call)
        known = first in self.imports and re.fullmatch(r"[A-Z]\w*(Operator|Sensor|SensorAsync)", word)
        return word if known else ""

    def _task_call(
        self, call: ast.Call
    ) -> tuple[TaskDef, dict[str, ast.expr], dict[str, ast.expr], bool] | None:
        """Return the function a call makes a task of, with overrides, partial arguments, and whether it is mapped."""
        override: dict[str, ast.expr] = {}
        partial: dict[str, ast.expr] = {}
        mapped, function = False, call.func
        while True:
            if isinstance(function, ast.Name):
                found = self.tasks.get(function.id)
                return (found, override, partial, mapped) if found is not None else None
            if (
                isinstance(function, ast.Attribute)
                and function.attr in ("expand", "expand_kwargs")
                and not mapped
            ):
                mapped, function = True, function.value
            elif isinstance(function, ast.Call) and called(function) in ("override", "partial"):
                said = {k.arg: k.value for k in function.keywords if k.arg}
                (override if called(function) == "override" else partial).update(said)
                assert isinstance(function.func, ast.Attribute)
                function = function.func.value
            else:
                return None

    def _statement(self, stmt: ast.stmt) -> bool:
        """Take a statement that makes DAGs, tasks or dependencies; return whether it was one."""
        value = getattr(stmt, "value", None)
        if not isinstance(stmt, ast.Assign | ast.Expr) or value is None:
            return False
        if isinstance(value, ast.Call) and self._is(value.func, "DAG"):
            dag = self._open(value)
            for target in getattr(stmt, "targets", []):
                if isinstance(target, ast.Name):
                    self._dag_names[target.id] = dag
            return True
        if (
            isinstance(value, ast.Call)
            and isinstance(value.func, ast.Name)
            and value.func.id in self._dag_functions
        ):
            return True  # `my_dag()`, which registers it
        if isinstance(stmt, ast.Assign) and isinstance(stmt.targets[0], ast.Attribute):
            owner = stmt.targets[0].value
            if isinstance(owner, ast.Name) and (owner.id in self._dag_names or owner.id in self._bound):
                self.lose(stmt, f"`{ast.unparse(stmt.targets[0])}` is not kept")
                return True
        found = self._value(value)
        if found is None:
            return False
        for target in getattr(stmt, "targets", []):
            if isinstance(target, ast.Name):
                self._bound[target.id] = found
            else:
                self.lose(target, "several names for a task's outputs; take them by key: `result['key']`")
        return True

    def _value(self, node: ast.expr) -> list[str] | None:
        """Return the tasks an expression stands for, having made those it makes; None if it stands for none."""
        if isinstance(node, ast.Name):
            return self._bound.get(node.id)
        if isinstance(node, ast.List | ast.Tuple):
            parts = [self._value(e) for e in node.elts]
            return [v for p in parts if p for v in p] if parts and all(p is not None for p in parts) else None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.RShift | ast.LShift):
            left, right = self._value(node.left), self._value(node.right)
            if left is None or right is None:
                return None
            if isinstance(node.op, ast.RShift):
                self._link(left, right)
            else:
                self._link(right, left)
            return right
        if not isinstance(node, ast.Call):
            return None
        word = called(node)
        if word in ("chain", "cross_downstream") and self._is(node.func, word):
            steps = [self._value(arg) or [] for arg in node.args]
            for one, arg in zip(steps, node.args, strict=True):
                if not one:
                    self.lose(arg, f"`{ast.unparse(arg)[:80]}` in {word} is no task that was converted")
            pairs = [
                (isinstance(a, ast.List | ast.Tuple), one) for a, one in zip(node.args, steps, strict=True)
            ]
            for (many_a, a), (many_b, b) in pairwise(pairs):
                if word == "chain" and many_a and many_b and len(a) == len(b):
                    for x, y in zip(a, b, strict=True):
                        self._link([x], [y])
                else:
                    self._link(a, b)
            return steps[-1] if steps else []
        if isinstance(node.func, ast.Attribute) and word in ("set_upstream", "set_downstream") and node.args:
            mine, theirs = self._value(node.func.value), self._value(node.args[0])
            if mine is None or theirs is None:
                return None
            self._link(*((theirs, mine) if word == "set_upstream" else (mine, theirs)))
            return mine
        return self._make(node)

    def _link(self, before: list[str], after: list[str]) -> None:
        for dag in self.dags:
            for var in after:
                if var in dag.nodes:
                    dag.nodes[var].after += [b for b in before if b not in dag.nodes[var].after and b != var]

    # --- making tasks ---------------------------------------------------------------------------------

    def _make(self, call: ast.Call) -> list[str] | None:
        operator, task = self._operator(call), self._task_call(call)
        if not operator and task is None:
            return None
        words = {k.arg: k.value for k in call.keywords if k.arg}
        for k in call.keywords:
            if k.arg is None:
                self.lose(call, f"`**{ast.unparse(k.value)[:60]}` in a task; write its arguments out")
        named = words.pop("dag", None) if operator else None
        dag = self._dag_names.get(named.id) if isinstance(named, ast.Name) else self._dag
        if dag is None:
            self.lose(call, "a task outside any DAG")
            return []
        if task is not None:
            definition, override, partial, is_mapped = task
            options = {**definition.options, **override}
            name = str(literal(options.get("task_id")) or definition.function.name)
            node = Node("", name, call, "@", options, function=definition)
            node.args = [self._argument(a, node) for a in call.args]
            given = {k: self._argument(v, node) for k, v in words.items()}
            node.kwargs = {k: self._argument(v, node) for k, v in partial.items()} if is_mapped else given
            if is_mapped:
                node.mapped = given
                if called(call) == "expand_kwargs":
                    self.lose(call, "expand_kwargs; use expand with one list for each argument")
        else:
            name = str(literal(words.get("task_id")) or operator)
            if literal(words.get("task_id")) is None:
                self.lose(call, f"the task_id of {operator} is not a text; it is called {name!r}")
            node = Node("", name, call, operator, words)
            node.options = {k: self._argument(v, node) for k, v in words.items()}
        taken = {
            *(d.name for d in self.definitions),
            *self.imports,
            *self._constants,
            *(v for d in self.dags for v in d.nodes),
        }
        node.var = identifier(f"{name}_run", taken)
        dag.nodes[node.var] = node
        return [node.var]

    def _argument(self, value: ast.expr, node: Node) -> ast.expr:
        """Return an argument in which tasks stand as their variables; those are taken note of."""
        reader = self

        class Results(ast.NodeTransformer):
            def visit_Call(self, call: ast.Call) -> ast.AST:
                made = reader._make(call) if reader._is_task(call) else None
                return self._one(made[0]) if made else self.generic_visit(call)

            def visit_Attribute(self, attribute: ast.Attribute) -> ast.AST:
                if attribute.attr == "output" and isinstance(attribute.value, ast.Name | ast.Call):
                    found = reader._value(attribute.value)
                    if found and len(found) == 1:
                        return self._one(found[0])
                return self.generic_visit(attribute)

            def visit_Name(self, name: ast.Name) -> ast.AST:
                found = reader._bound.get(name.id)
                return self._one(found[0]) if found and len(found) == 1 else name

            def visit_Subscript(self, subscript: ast.Subscript) -> ast.AST:
                owner = self.visit(subscript.value)
                if isinstance(owner, ast.Name) and owner.id in node.takes:
                    return ast.Call(
                        ast.parse("xcom_item.submit", mode="eval").body, [owner, subscript.slice], []
                    )
                return ast.copy_location(ast.Subscript(owner, subscript.slice, ast.Load()), subscript)

            def _one(self, var: str) -> ast.Name:
                if var not in node.takes:
                    node.takes.append(var)
                return ast.Name(var, ast.Load())

        changed: ast.expr = Results().visit(value)
        return changed

    # --- options --------------------------------------------------------------------------------------

    def option(self, dag: Dag, node: Node, name: str) -> ast.expr | None:
        """Return an option of a task: its own, or the DAG's ``default_args``."""
        if name in node.options:
            return node.options[name]
        return self.default_args(dag).get(name)

    def default_args(self, dag: Dag) -> dict[str, ast.expr]:
        """Return ``default_args`` as far as they are written out."""
        given: Any = dag.options.get("default_args")
        if isinstance(given, ast.Name):
            given = self._constants.get(given.id)
        if isinstance(given, ast.Call) and called(given) == "dict":
            return {k.arg: k.value for k in given.keywords if k.arg}
        if isinstance(given, ast.Dict):
            pairs = zip(given.keys, given.values, strict=True)
            return {k.value: v for k, v in pairs if isinstance(k, ast.Constant) and isinstance(k.value, str)}
        if given is not None:
            self.lose(given, "default_args is not a dict that is written out")
        return {}

    def seconds(self, value: ast.expr | None, what: str) -> float | None:
        """Return the seconds of an option, None (and said) if they are not written out."""
        if value is None or (isinstance(value, ast.Constant) and value.value is None):
            return None
        found = seconds_of(value)
        if found is None:
            self.lose(value, f"{what} is not a timedelta of numbers")
        return found
