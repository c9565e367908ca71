"""Webhooks from Python: the models of ``webhook.py`` and ``preset.py`` under the plural a Prefect user would guess."""

from __future__ import annotations

from .preset import (
    BasicVerify,
    BearerVerify,
    CloudEventsVerify,
    GithubVerify,
    GitlabVerify,
    HmacVerify,
    NoneVerify,
    ShopifyVerify,
    SlackVerify,
    StandardWebhooksVerify,
    StripeVerify,
)
from .webhook import EventMapping, Webhook

__all__ = [
    "BasicVerify", "BearerVerify", "CloudEventsVerify", "EventMapping", "GithubVerify", "GitlabVerify", "HmacVerify",
    "NoneVerify", "ShopifyVerify", "SlackVerify", "StandardWebhooksVerify", "StripeVerify", "Webhook",
]  # fmt: skip
