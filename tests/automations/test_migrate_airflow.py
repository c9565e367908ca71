"""Airflow DAG files as flows that run: what they print, pass on and wait for; and every loss is said with its line."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hark import flow, task
from hark.automations import airflow
from hark.automations.migrate.migrate_airflow import ConvertedFile, convert_airflow
from hark.cli.main import app
from hark.errors import DefinitionError, UpstreamFailed
from hark.server.manifest import check_manifest
from typer.testing import CliRunner

CLASSIC = """
from datetime import datetime, timedelta
from airflow import DAG
from airflow.models.baseoperator import chain
from airflow.operators.bash import BashOperator
from airflow.operators.empty import EmptyOperator
from airflow.operators.python import PythonOperator
from airflow.utils.task_group import TaskGroup

SEEN = []
default_args = {"retries": 0, "retry_delay": timedelta(minutes=5)}


def pull(ti, ds, factor=1, **context):
    # kept as it was written
    ti.xcom_push(key="double", value=factor * 2)
    SEEN.append((ti.xcom_pull(task_ids="print_date"), len(ds), context["params"]["region"]))
    return "pulled"


with DAG(
    "classic.one", default_args=default_args, schedule="@daily", start_date=datetime(2026, 1, 1), catchup=False,
    max_active_runs=1, tags=["prod"], params={"region": "eu"}, description="All of it",
) as dag:
    start = EmptyOperator(task_id="start")
    t1 = BashOperator(task_id="print_date", bash_command="echo first; echo hi {{ params.region }}")
    t2 = PythonOperator(task_id="pull", python_callable=pull, op_kwargs={"factor": 4})
    with TaskGroup("g") as g:
        a = BashOperator(task_id="a", bash_command="echo {{ ti.xcom_pull(task_ids='pull', key='double') }}")
        b = BashOperator(task_id="b", bash_command="echo {{ ti.xcom_pull(task_ids='pull') }}")
    last = PythonOperator(task_id="last", python_callable=lambda ti: SEEN.append(ti.xcom_pull(task_ids=["a", "b"])))
    start >> t1 >> t2
    chain(t2, g, last)
"""
TASKFLOW = """
from airflow.decorators import dag, task
from datetime import timedelta
import pendulum

SEEN = []

@dag(schedule=timedelta(hours=6), start_date=pendulum.datetime(2026, 1, 1, tz="Europe/Berlin"), catchup=True)
def flow_of_tasks(n: int = 2):
    @task
    def extract(n):
        return {"values": list(range(n)), "k": 3}

    @task(retries=1, retry_delay=timedelta(seconds=2), multiple_outputs=True, task_id="transform-it")
    def transform(data: dict) -> dict:
        return {"total": sum(data["values"]), "k": data["k"]}

    @task
    def load(total, k, ds=None):
        SEEN.append((total, k, len(ds)))

    @task
    def one(x, y):
        SEEN.append(x * y)

    @task.bash
    def shell(word):
        return f"echo {word}"

    out = transform(extract(n))
    done = load(out["total"], k=out["k"])
    done >> one.partial(y=2).expand(x=[1, 2, 3]) >> shell("end")

flow_of_tasks()
"""


def module_of(made: ConvertedFile, name: str) -> Any:
    """Import the code that came out."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(made.code, f"{name}.py", "exec"), module.__dict__)
    return module


@pytest.fixture
def convert(request: pytest.FixtureRequest) -> Any:
    """Convert a text; return what came out and the module of it."""
    names: list[str] = []

    def converted(text: str) -> tuple[ConvertedFile, Any]:
        names.append(f"converted_{len(names)}")
        made = convert_airflow(text, file="flows.py")
        return made, module_of(made, names[-1])

    yield converted
    for name in names:
        sys.modules.pop(name, None)


def test_a_classic_dag_runs_in_order_and_passes_xcoms_on(convert: Any) -> None:
    """Operators, a task group, chain, templates, params, pushes under keys; the code of callables is kept."""
    made, module = convert(CLASSIC)
    assert [n.message for n in made.notes if n.is_lost] == []
    assert "# kept as it was written" in made.code
    module.classic_one()
    assert module.SEEN == [("hi eu", 10, "eu"), ["8", "pulled"]]
    assert made.sections == {
        "deployments": {
            "classic.one": {
                "flow": "flows.py:classic_one", "tags": ["prod"], "concurrency": {"limit": 1, "on_conflict": "queue"},
                "schedules": [{"cron": "0 0 * * *", "start": "2026-01-01T00:00:00Z", "catch_up": "latest"}],
            }
        }
    }  # fmt: skip


def test_a_taskflow_dag_runs_with_its_outputs_and_maps(convert: Any) -> None:
    """Several outputs, `partial` and `expand`, context by name, overrides of decorators, dependencies by >>."""
    made, module = convert(TASKFLOW)
    assert [n.message for n in made.notes if n.is_lost] == []
    module.flow_of_tasks(4)
    assert module.SEEN[0] == (6, 3, 10)
    assert sorted(module.SEEN[1:]) == [2, 4, 6]
    assert module.transform_it_task.retries == 1
    assert made.sections["deployments"]["flow_of_tasks"] == {
        "flow": "flows.py:flow_of_tasks",
        "schedules": [
            {
                "interval": "21600s",
                "start": "2026-01-01T00:00:00",
                "anchor": "2026-01-01T00:00:00",
                "catch_up": "all",
            }
        ],
    }


def test_a_failed_task_stops_those_after_it_but_not_those_that_run_anyhow(convert: Any) -> None:
    """`all_success` and `all_done`; the flow fails as the DAG would, by its last tasks."""
    _, module = convert("""
from airflow import DAG
from airflow.operators.python import PythonOperator
from airflow.operators.bash import BashOperator
SEEN = []
with DAG("d"):
    bad = BashOperator(task_id="bad", bash_command="exit 3")
    skipped = BashOperator(task_id="skipped", bash_command="exit 99")
    next_ = PythonOperator(task_id="next", python_callable=lambda: SEEN.append("next"))
    clean = PythonOperator(task_id="clean", python_callable=lambda: SEEN.append("clean"), trigger_rule="all_done")
    bad >> [next_, clean]
""")
    with pytest.raises(UpstreamFailed):
        module.d()
    assert module.SEEN == ["clean"]


def test_what_has_no_equivalent_is_said_and_the_file_still_loads(convert: Any) -> None:
    """Operators, options, schedules, loops, helpers of Airflow, trigger rules: each with its line, nothing in silence."""
    made, module = convert("""
from airflow import DAG
from airflow.hooks.base import BaseHook
from airflow.models import Variable
from airflow.operators.bash import BashOperator
from airflow.operators.python import PythonOperator
from airflow.providers.snowflake.operators.snowflake import SnowflakeOperator
from airflow.providers.slack.hooks.slack import SlackHook
from airflow.sensors.filesystem import FileSensor
from airflow.sensors.external_task import ExternalTaskSensor
from airflow.utils.dates import days_ago

args = {"owner": "me", "start_date": days_ago(2)}
class Mine(SnowflakeOperator):
    pass
def tell():
    SlackHook("x").call()
with DAG("d", schedule=[object()], default_args=args, sla_miss_callback=tell, catchup=False) as dag:
    snow = SnowflakeOperator(task_id="snow", sql="select 1")
    t = BashOperator(task_id="t", bash_command="x", pool="p", trigger_rule="one_failed")
    file = FileSensor(task_id="file_there", filepath="/x", timeout=60)
    ext = ExternalTaskSensor(task_id="ext", external_dag_id="other", external_task_id="z")
    p = PythonOperator(task_id="p", python_callable=tell)
    for i in range(3):
        BashOperator(task_id=f"t{i}", bash_command="x")
    snow >> t >> file >> p
    ext >> p
""")
    lost = {(n.line, n.message.split(";")[0]) for n in made.notes if n.is_lost}
    lines = {line for line, _ in lost}
    assert {13, 14, 17, 18, 19, 20, 24} <= lines, sorted(lost)
    assert all(n.line > 1 for n in made.notes)
    looks = " ".join(n.message for n in made.notes if not n.is_lost)
    assert "emit `sensor.file-there`" in looks
    assert "where={\"data.flow.name\": 'other'}" in made.code
    assert made.code.index("sensor.file-there") < made.code.index("p_run =")
    with pytest.raises(DefinitionError, match="SlackHook"):
        module.tell()
    with pytest.raises(NotImplementedError, match="SnowflakeOperator"):
        module.snow_task()


def test_variables_connections_and_mails_are_those_of_hark(convert: Any) -> None:
    """The calls stay; what has to be set is said; a mail is an event and a rule that sends it."""
    made, module = convert("""
from airflow import DAG
from airflow.models import Variable
from airflow.hooks.base import BaseHook
from airflow.exceptions import AirflowSkipException as Skipped
from airflow.operators.email import EmailOperator
from airflow.providers.http.operators.http import HttpOperator
from airflow.operators.trigger_dagrun import TriggerDagRunOperator
def f():
    if Variable.get("x", default_var="d") == "d":
        raise Skipped(BaseHook.get_connection("db").host)
with DAG("d"):
    EmailOperator(task_id="mail", to="a@b.c", subject="It is {{ ds }}", html_content="<b>x</b>")
    HttpOperator(task_id="call", endpoint="/x", method="GET", data={"a": 1})
    TriggerDagRunOperator(task_id="go", trigger_dag_id="Other DAG", conf={"a": 1}, wait_for_completion=True)
""")
    assert [n.message for n in made.notes if n.is_lost] == []
    looks = " ".join(n.message for n in made.notes)
    assert "hark variables set" in looks
    assert "hark secrets set conn_ID" in looks
    assert "hark secrets set mail_url" in looks
    assert module.Variable is airflow.Variable
    assert "run_deployment('other-dag', parameters={'a': 1})" in made.code
    assert list(made.sections["automations"]) == ["send-mail"]


def test_two_dags_of_one_file_do_not_hide_one_anothers_tasks(convert: Any) -> None:
    """Functions of one name are told apart; other names that become one are said; so are templates nobody fills in."""
    made, module = convert("""
from airflow.decorators import dag, task
from airflow import DAG
from airflow.operators.bash import BashOperator
SEEN = []
@dag
def one():
    @task
    def step():
        SEEN.append("one")
    word = "a"
    step()
@dag
def two():
    @task
    def step():
        SEEN.append("two")
    word = "b"
    step()
one(); two()
with DAG("three", default_args={"depends_on_past": False}):
    BashOperator(task_id="x", bash_command="echo {{ macros.ds_add('2026-01-31', 1) }} {{ task.owner }}", pool=None)
""")
    module.one()
    module.two()
    assert module.SEEN == ["one", "two"]
    lost = [n.message.split(";")[0] for n in made.notes if n.is_lost]
    assert lost == [
        "word of two DAGs stands in one module now, and this one holds", "{{ task }} in a template is not known here",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("'30 6 * * 1-5'", {"cron": "30 6 * * 1-5"}), ("'@weekly'", {"cron": "0 0 * * 0"}), ("None", None),
        ("timedelta(minutes=90)", {"interval": "5400s"}),
        ("CronTriggerTimetable('0 1 * * *', timezone='Europe/Rome')", {"cron": "0 1 * * *", "timezone": "Europe/Rome"}),
        ("DeltaDataIntervalTimetable(timedelta(days=1))", {"interval": "86400s"}),
    ],
)  # fmt: skip
def test_schedules_of_every_kind(schedule: str, wanted: dict[str, str] | None) -> None:
    """Cron, presets, intervals, timetables; none is none."""
    text = f"from airflow import DAG\nDAG('d', schedule={schedule})\n"
    entry: Any = convert_airflow(text, file="f.py").sections["deployments"]["d"]
    found = entry.get("schedules", [None])[0]
    assert found == (wanted and {**wanted, "catch_up": "latest"})


def test_the_command_writes_a_folder_that_passes_lint(tmp_path: Path) -> None:
    """Flows and a hark.yaml without faults; the report on stderr; nothing is written over; --strict is exit 1."""
    dags, out = tmp_path / "dags", tmp_path / "out"
    (dags / "sub").mkdir(parents=True)
    (dags / "classic.py").write_text(CLASSIC)
    (dags / "sub" / "taskflow.py").write_text(TASKFLOW)
    (dags / "library.py").write_text("X = 1\n")
    run = CliRunner()
    made = run.invoke(app, ["migrate", "airflow", str(dags), "-o", str(out)])
    assert made.exit_code == 0, made.output
    assert "2 converted, 0 not converted" in made.stderr
    assert "library.py:1:1: look at this: there is no DAG in it" in made.stderr
    manifest, faults = check_manifest(out / "hark.yaml")
    assert [str(fault) for fault in faults if not fault.is_warning] == []
    assert sorted(manifest.names("deployments")) == ["classic.one", "flow_of_tasks"]
    again = run.invoke(app, ["migrate", "airflow", str(dags), "-o", str(out)])
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    (dags / "bad.py").write_text("def f(:\n")
    assert run.invoke(app, ["migrate", "airflow", str(dags)]).exit_code == 2
    (dags / "bad.py").write_text("from airflow import DAG\nDAG('d', schedule='@once')\n")
    assert run.invoke(app, ["migrate", "airflow", str(dags), "--strict"]).exit_code == 1


def test_templates_run_in_a_sandbox_and_miss_nothing_in_silence() -> None:
    """An unknown name is an error, not an empty text."""

    @task
    def asks(text: str) -> str:
        if text.startswith("all: "):
            return airflow.bash(text[5:], task_id="t", env={"A": "{{ ts_nodash[8] }}"}, append_env=True)
        return airflow.bash(text, task_id="t", env={"A": "{{ ts_nodash[8] }}"})

    @flow
    def run(text: str) -> str:
        return asks(text)

    assert run("echo {{ ts_nodash[8] }}; echo $((40 + 2))") == "42"
    assert run("echo $A-$HARK_HOME") == "T-"
    assert run("all: echo $A-$HARK_HOME").startswith("T-/")
    with pytest.raises(Exception, match="nothing"):
        run("echo {{ nothing }}")
    with pytest.raises(Exception, match="unsafe"):
        run("echo {{ ().__class__.__mro__ }}")
