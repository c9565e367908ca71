"""What rules would have done, why they did or did not, and what in them is likely a mistake: backtests, explanations, the tests
written into rules, warnings. Nobody acts on any of it.
"""
