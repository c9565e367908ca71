"""The forms a rule can have, one file each: counting, absence, sequence, groups, … Each is a small state machine over keys
(``form.py``); ``catalogue.py`` says which rule has which. Pure.
"""
