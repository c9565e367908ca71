"""Deliveries in the shape GitHub documents for `push` and `workflow_run`, and their signature.

Source: GitHub Docs, "Webhook events and payloads" and "Validating webhook deliveries".
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from dataclasses import dataclass, field

import orjson

from ...vocabulary import JsonObject

_OWNER: JsonObject = {
    "login": "octo",
    "id": 1,
    "type": "Organization",
    "url": "https://api.github.com/users/octo",
}
_REPOSITORY: JsonObject = {
    "id": 186853002, "node_id": "MDEwOlJlcG9zaXRvcnkxODY4NTMwMDI=", "name": "shop", "full_name": "octo/shop",
    "private": False, "owner": _OWNER, "html_url": "https://github.com/octo/shop", "default_branch": "main",
}  # fmt: skip
_SENDER: JsonObject = {"login": "mona", "id": 21031067, "type": "User", "site_admin": False}
_BEFORE = "6113728f27ae82c7b1a177c8d03f9e96e0adf246"
_AFTER = "59b20b8d5c6ff8d09518216e87bbe6c1e5e9c3a7"


@dataclass(frozen=True)
class Delivery:
    """One POST as GitHub would send it: the event's name, the exact bytes, the delivery's id."""

    event: str
    body: bytes
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def headers(self, secret: str) -> dict[str, str]:
        """Return the headers, signed with ``secret`` over the raw body."""
        digest = hmac.new(secret.encode(), self.body, hashlib.sha256).hexdigest()
        return {
            "Content-Type": "application/json",
            "User-Agent": "GitHub-Hookshot/044aadd",
            "X-GitHub-Delivery": self.id,
            "X-GitHub-Event": self.event,
            "X-Hub-Signature-256": f"sha256={digest}",
        }


def push() -> Delivery:
    """A push of one commit to the default branch."""
    commit: JsonObject = {
        "id": _AFTER, "tree_id": "f9d2a07e9488b91af2641b26b9407fe22a451433", "distinct": True,
        "message": "Charge the card once", "timestamp": "2026-11-20T09:30:00+01:00",
        "url": f"https://github.com/octo/shop/commit/{_AFTER}",
        "author": {"name": "Mona", "email": "mona@example.com", "username": "mona"},
        "committer": {"name": "Mona", "email": "mona@example.com", "username": "mona"},
        "added": [], "removed": [], "modified": ["shop/payment.py", "tests/test_payment.py"],
    }  # fmt: skip
    return Delivery("push", orjson.dumps({
        "ref": "refs/heads/main", "before": _BEFORE, "after": _AFTER, "base_ref": None,
        "created": False, "deleted": False, "forced": False,
        "compare": f"https://github.com/octo/shop/compare/{_BEFORE[:12]}...{_AFTER[:12]}",
        "commits": [commit], "head_commit": commit, "repository": _REPOSITORY,
        "pusher": {"name": "mona", "email": "mona@example.com"}, "sender": _SENDER,
    }))  # fmt: skip


def failed_workflow_run(number: int) -> Delivery:
    """A workflow run that has completed with a failure; ``number`` counts the runs of the workflow."""
    return Delivery("workflow_run", orjson.dumps({
        "action": "completed",
        "workflow_run": {
            "id": 30433642 + number, "name": "build", "node_id": "MDEyOldvcmtmbG93IFJ1bjI2OTI4OQ==",
            "head_branch": "main", "head_sha": _AFTER, "path": ".github/workflows/build.yml", "run_number": number,
            "run_attempt": 1, "event": "push", "status": "completed", "conclusion": "failure", "workflow_id": 159038,
            "html_url": f"https://github.com/octo/shop/actions/runs/{30433642 + number}",
            "created_at": "2026-11-20T08:30:00Z", "updated_at": "2026-11-20T08:33:00Z",
            "run_started_at": "2026-11-20T08:30:02Z",
        },
        "workflow": {"id": 159038, "name": "build", "path": ".github/workflows/build.yml", "state": "active"},
        "repository": _REPOSITORY, "sender": _SENDER,
    }))  # fmt: skip
