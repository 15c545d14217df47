"""Structured pruning: whole heads and feed-forward neurons go, an ordinary smaller graph stays.

`calibrate.py` finds what layers take and how much of it matters, `order.py` which units go first
and what that costs in accuracy, `choice.py` how many go where within a budget of time; `prune.py`
joins the three. `widths.py` removes units, and `calibrate.repair` fits what remains. `steps.py`
divides a run that goes there in several steps.
`toolkit/measure/structured.py` adds what layers cost on this machine.
"""
