"""What can be said of flows and tasks where they are written: hooks, retries, whether results are kept, and the methods of flows
that lead to deployments and pictures. Plain values and their checks; nothing runs here.
"""
