"""Reading what was written for other tools: Airflow's DAGs, rulebooks of Event-Driven Ansible, Prefect's automations. Pure: reads
text, writes text. What converted Airflow tasks stand on is ``airflow.py``, one folder up.
"""
