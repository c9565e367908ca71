"""Airflow DAG files as Hark flows, with the deployments, rules and channels they need. Pure: reads text, writes text."""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

from ...errors import DefinitionError
from .airflow_dag import Dag, FileNote, Node, Reader, TaskDef, identifier
from .airflow_schedule import called, literal, schedule_of
from .migration import Sections, slug

__all__ = ["ConvertedFile", "convert_airflow"]

_CONTEXT = {
    "ds", "ds_nodash", "ts", "ts_nodash", "logical_date", "execution_date", "data_interval_start", "data_interval_end", "run_id",
    "params", "dag_run", "ti", "task_instance", "var", "conn", "macros",
}  # fmt: skip
_DATES = {name for name in _CONTEXT if name.startswith(("ds", "ts", "logical", "execution", "data_interval"))}
_DAG_OPTIONS = {
    "dag_id", "schedule", "schedule_interval", "timetable", "start_date", "catchup", "default_args", "description",
    "max_active_runs", "dagrun_timeout", "tags", "params",
}  # fmt: skip
_TASK_OPTIONS = {
    "task_id", "dag", "retries", "retry_delay", "retry_exponential_backoff", "execution_timeout", "trigger_rule",
}  # fmt: skip
_DEFAULT_ARGS = _TASK_OPTIONS | {"start_date"}
_SHIMS = {
    "Variable": "airflow_.Variable", "BaseHook": "airflow_.BaseHook", "Connection": "airflow_.Connection",
    "AirflowSkipException": "hark.Skip", "AirflowFailException": "hark.Abort", "AirflowException": "RuntimeError",
}  # fmt: skip
_SYNTAX = ("DAG", "dag", "task", "task_group", "TaskGroup", "chain", "cross_downstream", "Param")
_EMPTY = ("EmptyOperator", "DummyOperator")
_HTTP = ("HttpOperator", "SimpleHttpOperator")
_OWN: dict[str, set[str]] = {
    "@": {"multiple_outputs"},
    "PythonOperator": {"python_callable", "op_args", "op_kwargs", "provide_context"},
    "BashOperator": {"bash_command", "env", "cwd", "append_env"},
    "EmailOperator": {"to", "subject", "html_content"},
    "TriggerDagRunOperator": {"trigger_dag_id", "conf", "wait_for_completion"},
    **{name: set() for name in _EMPTY},
    **{name: {"http_conn_id", "endpoint", "method", "data", "headers"} for name in _HTTP},
}
_WEEK_S = 7 * 86400
_HEAD = '"""Converted by `hark migrate airflow`: read it before you run it."""\n'


@dataclass(slots=True)
class ConvertedFile:
    """What comes of one file; ``code`` is empty if there is no DAG in it."""

    code: str = ""
    sections: Sections = field(default_factory=dict)
    notes: list[FileNote] = field(default_factory=list)
    dags: int = 0


def convert_airflow(text: str, *, file: str, sections: Sections | None = None) -> ConvertedFile:
    """Convert a DAG file.

    Args:
        file: the path under which its flows will stand, as deployments name it.
        sections: what other files gave; this one's is added to it.
    Raises:
        DefinitionError: it is not Python.
    """
    try:
        reader = Reader(text)
    except (SyntaxError, ValueError) as exc:
        raise DefinitionError(f"it is not Python: {exc}") from exc
    reader.read()
    out = ConvertedFile(
        notes=reader.notes, dags=len(reader.dags), sections={} if sections is None else sections
    )
    if reader.dags:
        _Writer(reader, text, file, out).write()
    reader.notes.sort(key=lambda n: (n.line, n.column))
    return out


class _Writer:
    def __init__(self, reader: Reader, text: str, file: str, out: ConvertedFile) -> None:
        self.reader, self.lines, self.file, self.out = reader, text.splitlines(), file, out
        self.names = {*(d.name for d in reader.definitions), *dir(builtins), "hark", "airflow_", "xcom_item"}
        for stmt in reader.kept:
            self.names |= {
                n.id for n in ast.walk(stmt) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }
            self.names |= {getattr(stmt, "name", "")}
            if isinstance(stmt, ast.Import | ast.ImportFrom):
                self.names |= {(a.asname or a.name).split(".")[0] for a in stmt.names}
        self.functions: list[str] = []

    def write(self) -> None:
        reader = self.reader
        for definition in reader.definitions:
            self.functions.append(self._function(definition))
            self._check_names(definition.name, definition)
        flows = [self._dag(dag) for dag in reader.dags]
        reader.kept = [stmt for stmt in reader.kept if self._keeps(stmt)]
        self._check_twice()
        self._drop_pendulum([*self.functions, *flows])
        kept = [self._source(stmt) for stmt in reader.kept]
        future = [k for k in kept if k.startswith("from __future__")]
        body = "\n\n\n".join(["\n".join(k for k in kept if k not in future), *self.functions, *flows])
        head = "\n".join([*future, *self._imports(body)])
        self.out.code = f"{_HEAD}\n{head}\n\n{body}\n"
        ast.parse(self.out.code)

    # --- what stays -----------------------------------------------------------------------------------

    def _source(self, node: ast.stmt) -> str:
        """Return the lines of a statement as they were written, comments in it included."""
        if not hasattr(node, "end_lineno") or node.end_lineno is None:
            return ast.unparse(node)
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        return textwrap.dedent("\n".join(self.lines[first - 1 : node.end_lineno]))

    def _function(self, definition: TaskDef) -> str:
        function = definition.function
        assert function.end_lineno is not None
        text = textwrap.dedent("\n".join(self.lines[function.lineno - 1 : function.end_lineno]))
        return text.replace(f"def {function.name}", f"def {definition.name}", 1)

    def _check_names(self, name: str, definition: TaskDef) -> None:
        """Say what a function that stood inside a DAG takes from there: it stands alone now."""
        function = definition.function
        if function.col_offset == 0:
            return
        loaded = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        own = {
            n.id for n in ast.walk(function) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)
        }
        own |= {
            a.arg
            for n in ast.walk(function)
            if isinstance(n, ast.arguments)
            for a in (*n.args, *n.kwonlyargs, n.vararg, n.kwarg)
            if a
        }
        own |= {
            (a.asname or a.name).split(".")[0]
            for n in ast.walk(function)
            if isinstance(n, ast.Import | ast.ImportFrom)
            for a in n.names
        }
        own |= {
            n.name
            for n in ast.walk(function)
            if isinstance(n, ast.FunctionDef | ast.ExceptHandler) and n.name
        }
        missing = loaded - own - self.names - set(self.reader.imports)
        if missing:
            self.reader.lose(
                function,
                f"{name} uses {', '.join(sorted(missing))} of the DAG around it; give it as a parameter",
            )

    def _imports(self, body: str) -> list[str]:
        """Return what stands before everything else; names of ours are qualified, so that none of theirs hides one."""
        used = {n.id for n in ast.walk(ast.parse(body)) if isinstance(n, ast.Name)}
        first, lines = self.reader.tree.body[0], list[str]()
        for local, full in self.reader.imports.items():
            word = full.rpartition(".")[2]
            if local not in used or word in _SYNTAX:
                continue
            if word in _SHIMS:
                lines.append(f"{local} = {_SHIMS[word]}")
            else:
                lines.append(f"{local} = airflow_.NotConverted({full!r})")
                self._lose_uses(local, full)
            if word == "Variable":
                self.reader.look(first, "Variables are Hark's: `hark variables set NAME VALUE` for each")
            if word in ("BaseHook", "Connection"):
                self._look_at_connections()
        if "airflow_.http(" in body:
            self._look_at_connections()
        if "xcom_item" in used:
            lines.append("xcom_item = hark.task(airflow_.item)")
        return [
            "import hark",
            "from hark.automations import airflow as airflow_",
            *(["", *lines] if lines else []),
        ]

    def _look_at_connections(self) -> None:
        text = "each connection is a secret with its URI: `hark secrets set conn_ID`"
        self.reader.look(self.reader.tree.body[0], text)

    def _check_twice(self) -> None:
        """Say which names of two DAGs became one name of the module: the last of them holds."""
        first: dict[str, ast.stmt] = {}
        for stmt in self.reader.kept:
            names = {n.id for n in ast.walk(stmt) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            if isinstance(stmt, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = {stmt.name}
            for name in names:
                before = first.setdefault(name, stmt)
                if before is not stmt and (before.col_offset or stmt.col_offset):
                    self.reader.lose(
                        stmt,
                        f"{name} of two DAGs stands in one module now, and this one holds; name one anew",
                    )

    def _drop_pendulum(self, rest: list[str]) -> None:
        """Leave out the import of what comes with Airflow and stood in ``start_date`` only; say it where it is needed."""
        imports = [s for s in self.reader.kept if isinstance(s, ast.Import | ast.ImportFrom)]
        others = [ast.unparse(s) for s in self.reader.kept if s not in imports]
        used = {
            n.id for text in (*others, *rest) for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)
        }
        for stmt in imports:
            first = getattr(stmt, "module", None) or stmt.names[0].name
            if first.split(".")[0] != "pendulum":
                continue
            if used & {(a.asname or a.name).split(".")[0] for a in stmt.names}:
                self.reader.look(stmt, "pendulum came with Airflow: `pip install pendulum`")
            else:
                self.reader.kept.remove(stmt)

    def _keeps(self, stmt: ast.stmt) -> bool:
        """Whether a statement stays: not if importing the file would use something of Airflow's that is not there."""
        if isinstance(stmt, ast.FunctionDef | ast.AsyncFunctionDef):
            at_import: list[ast.AST] = [*stmt.decorator_list, *stmt.args.defaults]
        elif isinstance(stmt, ast.ClassDef):
            at_import = [*stmt.bases, *stmt.decorator_list]
        else:
            at_import = [stmt]
        for node in (n for one in at_import for n in ast.walk(one)):
            full = self.reader.imports.get(node.id, "") if isinstance(node, ast.Name) else ""
            if full and full.rpartition(".")[2] not in _SHIMS:
                self.reader.lose(stmt, f"it uses {full}, which has no equivalent, and is left out")
                return False
        return True

    def _lose_uses(self, local: str, full: str) -> None:
        for node in ast.walk(self.reader.tree):
            if isinstance(node, ast.Name) and node.id == local and isinstance(node.ctx, ast.Load):
                self.reader.lose(node, f"{full} has no equivalent; the code that uses it fails when it runs")

    # --- a DAG ----------------------------------------------------------------------------------------

    def _dag(self, dag: Dag) -> str:
        reader = self.reader
        for name, value in dag.options.items():
            if name not in _DAG_OPTIONS and not _is_off(value):
                reader.lose(value, f"the DAG's option {name} has no equivalent")
        for name, value in reader.default_args(dag).items():
            if name not in _DEFAULT_ARGS and not _is_off(value):
                reader.lose(value, f"{name} in default_args has no equivalent" + _ADVICE.get(name, ""))
        name = identifier(dag.dag_id, self.names)
        self.names.add(name)
        order = self._order(dag)
        definitions = [d for node in order if (d := self._definition(dag, node))]
        body = [line for node in order for line in self._call(dag, node)]
        before = {b for node in order for b in (*node.after, *node.takes)}
        last = [n.var for n in order if n.var not in before and not _is_wait(n)]
        body.append(f"airflow_.finish({', '.join(last)})")
        options = [f"name={dag.dag_id!r}"]
        if isinstance(text := literal(dag.options.get("description")), str):
            options.append(f"description={text!r}")
        if (limit := reader.seconds(dag.options.get("dagrun_timeout"), "dagrun_timeout")) is not None:
            options.append(f"timeout_seconds={limit:g}")
        head = f"@hark.flow({', '.join(options)}, log_prints=True)\ndef {name}({self._parameters(dag)}):"
        self._deployment(dag, name)
        return "\n\n\n".join([*definitions, f"{head}\n" + textwrap.indent("\n".join(body), "    ")])

    def _parameters(self, dag: Dag) -> str:
        found = [(n, v) for n, v in dag.parameters]
        params = dag.options.get("params")
        if isinstance(params, ast.Dict):
            for key, value in zip(params.keys, params.values, strict=True):
                word = literal(key)
                if not isinstance(word, str) or not word.isidentifier():
                    self.reader.lose(value, f"the parameter {word!r} is no name for a parameter of a flow")
                    continue
                if called(value) == "Param":
                    assert isinstance(value, ast.Call)
                    default = (
                        value.args[0]
                        if value.args
                        else next((k.value for k in value.keywords if k.arg == "default"), None)
                    )
                    if len(value.args) + len(value.keywords) > 1:
                        self.reader.look(
                            value, f"what Param says of {word!r} besides its default is a type hint here"
                        )
                    value = default or ast.Constant(None)
                found.append((word, value))
        elif params is not None:
            self.reader.lose(params, "params is not a dict that is written out")
        required = [n for n, v in found if v is None]
        return ", ".join([*required, *(f"{n}={ast.unparse(v)}" for n, v in found if v is not None)])

    def _deployment(self, dag: Dag, function: str) -> None:
        reader, options = self.reader, dag.options
        entry: dict[str, Any] = {"flow": f"{self.file}:{function}"}
        given = options.get("schedule") or options.get("schedule_interval") or options.get("timetable")
        start = options.get("start_date") or reader.default_args(dag).get("start_date")
        times = schedule_of(
            given,
            start,
            catchup=literal(options.get("catchup"), False) is True,
            look=reader.look,
            lose=reader.lose,
        )
        if times is not None:
            entry["schedules"] = [times]
        tags = literal(options.get("tags"))
        if isinstance(tags, list | set | tuple) and tags:
            entry["tags"] = [str(tag) for tag in tags]
        most = literal(options.get("max_active_runs"))
        if isinstance(most, int):
            entry["concurrency"] = {"limit": most, "on_conflict": "queue"}
        entries, name, number = (
            self.out.sections.setdefault("deployments", {}),
            slug(dag.dag_id, default="dag"),
            2,
        )
        unique = name
        while unique in entries:
            unique, number = f"{name}-{number}", number + 1
        entries[unique] = entry

    def _order(self, dag: Dag) -> list[Node]:
        """Return the tasks so that each comes after those it waits for; sensors, at which the flow waits, as late as can be."""
        left, done, order = dict(dag.nodes), set[str](), list[Node]()
        while left:
            ready = [
                n for n in left.values() if all(b in done or b not in dag.nodes for b in (*n.after, *n.takes))
            ]
            if not ready:
                self.reader.lose(
                    dag.at,
                    f"the dependencies of {dag.dag_id} go round; those left are in the order of the file",
                )
                ready = list(left.values())
            one = next((n for n in ready if not _is_wait(n)), ready[0])
            order.append(left.pop(one.var))
            done.add(one.var)
        return order

    # --- a task ---------------------------------------------------------------------------------------

    def _definition(self, dag: Dag, node: Node) -> str:
        """Return what defines the task at the top of the module, empty for one that is not a task here."""
        reader, own = self.reader, _OWN.get(node.operator)
        if _is_wait(node):
            return ""
        for name, value in node.options.items():
            if own is not None and name not in _TASK_OPTIONS and name not in own and not _is_off(value):
                reader.lose(
                    value, f"{name} of the task {node.task_id!r} has no equivalent" + _ADVICE.get(name, "")
                )
        self._look_at_templates(node)
        decorator = f"hark.task({', '.join(self._task_options(dag, node))})"
        name = self._name(node)
        given = f"task_id={node.task_id!r}, xcom=xcom"

        def said(*words: str, first: str = "") -> str:
            parts = [f"{w}={ast.unparse(node.options[w])}" for w in words if w in node.options]
            return ", ".join([*([first] if first else []), given, *parts])

        def body(text: str) -> str:
            return f"@{decorator}\ndef {name}(xcom=None):\n    {text}"

        if node.function is not None:
            function = node.function.name
            if node.function.kind == "bash":
                return f"@{decorator}\ndef {name}(*args, xcom=None, **kwargs):\n    return airflow_.bash({function}(*args, **kwargs), {given})"
            return f"{name} = {decorator}({self._with_context(node, function)})"
        if node.operator == "PythonOperator" and "python_callable" in node.options:
            return f"{name} = {decorator}({self._with_context(node, ast.unparse(node.options['python_callable']))})"
        if node.operator in _EMPTY:
            return body("return None")
        if node.operator == "BashOperator" and "bash_command" in node.options:
            return body(
                f"return airflow_.bash({said('env', 'cwd', 'append_env', first=ast.unparse(node.options['bash_command']))})"
            )
        if node.operator in _HTTP:
            return body(
                f"return airflow_.http({said('endpoint', 'http_conn_id', 'method', 'data', 'headers')})"
            )
        if node.operator == "EmailOperator":
            self._mail(node)
            return body(f"airflow_.email({said('to', 'subject', 'html_content')})")
        if node.operator == "TriggerDagRunOperator":
            target = literal(node.options.get("trigger_dag_id"))
            if isinstance(target, str):
                wait = "" if literal(node.options.get("wait_for_completion")) is True else ", timeout=0"
                conf = ast.unparse(node.options["conf"]) if "conf" in node.options else "{}"
                return body(f"hark.run_deployment({slug(target, default='dag')!r}, parameters={conf}{wait})")
        reader.lose(
            node.at, f"{node.operator} ({node.task_id}) has no equivalent; its task fails until it is written"
        )
        return body(f"raise NotImplementedError({f'write what {node.operator} did'!r})")

    def _with_context(self, node: Node, function: str) -> str:
        return (
            f"airflow_.with_context({function}, task_id={node.task_id!r})"
            if self._wants_context(node)
            else function
        )

    def _wants_context(self, node: Node) -> bool:
        if node.operator == "PythonOperator":
            return True
        assert node.function is not None
        if node.function.kind == "bash":
            return True
        spec = node.function.function.args
        return spec.kwarg is not None or any(a.arg in _CONTEXT for a in (*spec.args, *spec.kwonlyargs))

    def _task_options(self, dag: Dag, node: Node) -> list[str]:
        reader = self.reader
        out = [f"name={node.task_id!r}"]
        retries = reader.option(dag, node, "retries")
        if retries is not None:
            out.append(f"retries={ast.unparse(retries)}")
        delay = reader.seconds(reader.option(dag, node, "retry_delay"), "retry_delay")
        if retries is not None and delay is None:
            delay = 300.0  # as there
        if delay is not None and literal(reader.option(dag, node, "retry_exponential_backoff")) is True:
            out.append(f"retry_delay_seconds=hark.exponential_backoff({delay:g})")
        elif delay is not None:
            out.append(f"retry_delay_seconds={delay:g}")
        limit = reader.seconds(reader.option(dag, node, "execution_timeout"), "execution_timeout")
        if limit is not None:
            out.append(f"timeout_seconds={limit:g}")
        return out

    def _call(self, dag: Dag, node: Node) -> list[str]:
        """Return the lines of the flow that run the task."""
        before = [b for b in node.after if b in dag.nodes and not _is_wait(dag.nodes[b])]
        if _is_wait(node):
            return [*([f"airflow_.finish({', '.join(before)})"] if before else []), self._wait(node)]
        rule = literal(self.reader.option(dag, node, "trigger_rule"), "all_success")
        rule = (
            rule
            if isinstance(rule, str)
            else str(getattr(self.reader.option(dag, node, "trigger_rule"), "attr", rule)).lower()
        )
        anyhow = rule in ("all_done", "always")
        if not anyhow and rule != "all_success":
            self.reader.lose(
                node.at, f"trigger_rule {rule!r} of {node.task_id!r}; it runs when all before it succeeded"
            )
        args = [ast.unparse(a) for a in node.args]
        kwargs = {k: ast.unparse(v) for k, v in node.kwargs.items()}
        if node.operator == "PythonOperator":
            for option, star in (("op_args", "*"), ("op_kwargs", "**")):
                if option in node.options:
                    args.append(f"{star}{ast.unparse(node.options[option])}")
        words = [f"{k}=hark.unmapped({v})" if node.mapped else f"{k}={v}" for k, v in kwargs.items()]
        words += [f"{k}={ast.unparse(v)}" for k, v in node.mapped.items()]
        if node.function is None or self._wants_context(node):
            named = (
                "" if anyhow else ", ".join(f"{dag.nodes[b].task_id!r}: {b}" for b in self._pulled(dag, node))
            )
            if named and node.mapped:
                words.append(f"xcom=hark.unmapped({{{named}}})")
            elif named:
                words.append(f"xcom={{{named}}}")
        if before:
            words.append(
                "wait_for=[" + ", ".join(f"hark.allow_failure({b})" if anyhow else b for b in before) + "]"
            )
        stars = [a for a in args if a.startswith("**")]
        plain = [a for a in args if not a.startswith("**")]
        return [
            f"{node.var} = {self._name(node)}.{'map' if node.mapped else 'submit'}({', '.join([*plain, *words, *stars])})"
        ]

    def _pulled(self, dag: Dag, node: Node) -> list[str]:
        """Return the tasks whose results a task may pull: those right before it, and those before them that it names."""
        right, seen = [b for b in (*node.after, *node.takes) if b in dag.nodes], set[str]()
        todo = list(right)
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo += [b for b in (*dag.nodes[one].after, *dag.nodes[one].takes) if b in dag.nodes]
        text = " ".join(ast.unparse(v) for v in node.options.values()) + " ".join(self.functions)
        text += " ".join(self._source(k) for k in self.reader.kept)
        named = [
            v for v in dag.nodes if v in seen and v not in right and _is_quoted(dag.nodes[v].task_id, text)
        ]
        return [v for v in dict.fromkeys([*right, *named]) if not _is_wait(dag.nodes[v])]

    def _name(self, node: Node) -> str:
        return f"{node.var[:-4]}_task" if node.var.endswith("_run") else f"{node.var}_task"

    def _wait(self, node: Node) -> str:
        """Return the line at which the flow waits for what a sensor looked for."""
        reader, options = self.reader, node.options
        within = reader.seconds(options.get("timeout"), "timeout")
        limit = f"within={_WEEK_S if within is None else within:g}"
        if node.operator.startswith("TimeDelta"):
            delta = reader.seconds(options.get("delta"), "delta")
            if delta is not None:
                reader.look(
                    node.at,
                    f"{node.task_id} sleeps from where the flow is; there it counted from the slot's end",
                )
                return f"hark.sleep({delta:g})"
        other = literal(options.get("external_dag_id"))
        if node.operator == "ExternalTaskSensor" and isinstance(other, str):
            task = literal(options.get("external_task_id"))
            what = f"the task {task!r} of it alone cannot be waited for, and " if task else ""
            reader.look(
                node.at,
                f"{node.task_id} waits for {other} to complete from the run's start on; {what}the slot is not compared",
            )
            return (
                f'hark.wait_for_event("flow-run.completed", where={{"data.flow.name": {other!r}}}, {limit})'
            )
        event = f"sensor.{slug(node.task_id, default='arrived').replace('_', '-').replace('.', '-')}"
        said = ", ".join(f"{k}={ast.unparse(v)}" for k, v in options.items() if k not in ("task_id", "dag"))
        reader.look(
            node.at, f"nothing polls: emit `{event}` when {node.operator}({said[:100]}) would have succeeded"
        )
        return f"hark.wait_for_event({event!r}, {limit})"

    def _mail(self, node: Node) -> None:
        rules = self.out.sections.setdefault("automations", {})
        rules["send-mail"] = {
            "on": "email.requested",
            "do": [{"notify": "mail", "title": "{{ event.data.title }}", "body": "{{ event.data.body }}"}],
        }
        self.out.sections.setdefault("channels", {})["mail"] = {"urls": ["{{ secrets.mail_url }}"]}
        self.reader.look(
            node.at,
            "mails go to the channel `mail`: `hark secrets set mail_url` (mailto://user:pass@host?to=…)",
        )

    def _look_at_templates(self, node: Node) -> None:
        """Say which templates mean something else here, or name what is not there."""
        texts = [n.value for v in node.options.values() for n in ast.walk(v) if isinstance(n, ast.Constant)]
        names = {n for t in texts if isinstance(t, str) for n in re.findall(r"\{\{-?\s*([a-zA-Z_]\w*)", t)}
        if names & _DATES:
            said = (
                "`ds` and the like are of the time the run was scheduled for, not of the interval before it"
            )
            self.reader.look(node.at, said)
        for name in sorted(names - _CONTEXT):
            said = f"{{{{ {name} }}}} in a template is not known here; the task fails until it is written otherwise"
            self.reader.lose(node.at, said)


_ADVICE = {
    "pool": "; make a limit and use `with concurrency(NAME)` in the task",
    "owner": "; tag the deployment",
    "email_on_failure": "; write a rule on flow-run.failed",
    "email": "; write a rule on flow-run.failed",
    "on_failure_callback": "; use on_failure of @task, or a rule on flow-run.failed",
    "depends_on_past": "; set `overlap: queue` at the schedule",
    "sla": "; write a rule with `expect` and `within`",
}


def _is_off(value: ast.expr) -> bool:
    """Whether an option is given its default, and says nothing."""
    return isinstance(value, ast.Constant) and value.value in (False, None)


def _is_quoted(word: str, text: str) -> bool:
    return f"'{word}'" in text or f'"{word}"' in text


def _is_wait(node: Node) -> bool:
    return "Sensor" in node.operator
