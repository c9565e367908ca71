"""From a call to what is run: parameters by name, checked; the key by which a resumed run finds the call's result again; futures in
arguments; ``map``. ``task_call.py`` is the call of a task, made ready where it is made.
"""
