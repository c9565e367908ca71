"""What ``prefect.utilities`` has and Hark itself has no need of: for code written for Prefect, which finds it as
``hark.utilities``.
"""
