"""One flow, which a rule starts for every paid order."""

from __future__ import annotations

from hark import flow, get_run_logger, task


@task(retries=2, retry_delay_seconds=1)
def charge(order: str, amount: float) -> str:
    """Stand in for a call to a payment service."""
    return f"{order}: {amount:.2f} charged"


@flow
def handle_order(order: str, amount: float) -> str:
    """Charge an order and say so."""
    receipt = charge(order, amount)
    get_run_logger().info("receipt: %s", receipt)
    return receipt
