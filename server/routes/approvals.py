"""``/api/approvals`` and ``/approve/{token}``: questions that rules ask, and their answers.

Opening a link answers nothing: mail programs and chat services open links to show what is behind them. The page has a
button, and only that counts.
"""

from __future__ import annotations

from html import escape
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import HTMLResponse

from ...automations.acting.approval import Answer, Approval, Approvals
from ...errors import AccessDenied, RefusedError, UnknownName
from ..answer import answer, listing
from ..bodies import AnswerBody
from ..body import read_body
from ..context import context_of
from ..openapi import REFUSED
from ..paging import Paging
from ..taken import Taken

router = APIRouter(tags=["automations"])

_HEADERS = {
    "Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
}  # fmt: skip
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:3rem auto;padding:0 1rem}}
button{{font:inherit;padding:.6rem 1.2rem;margin-right:1rem}}p{{white-space:pre-wrap}}</style><h1>{title}</h1>{body}</html>"""


def _page(title: str, body: str, status: int = 200) -> Response:
    return HTMLResponse(_PAGE.format(title=escape(title), body=body), status_code=status, headers=_HEADERS)


def _over(found: Approval) -> Response | None:
    if found.state == "open":
        return None
    if found.state == "expired":
        return _page(found.title, "<p>The time for an answer is over.</p>", 410)
    if found.state == "dropped":
        return _page(found.title, "<p>This question was taken back.</p>", 410)
    return _page(found.title, f"<p>It was answered: {escape(found.state)}.</p>")


async def _asked(request: Request, token: str) -> Approval | Response:
    context = context_of(request)
    try:
        if context.approval_links is None:
            raise AccessDenied("this server makes no such links")
        return await Approvals(context.bus, context.clock).get(context.approval_links.read(token))
    except AccessDenied as exc:
        return _page("Not valid", f"<p>{escape(str(exc))}.</p>", 403)
    except UnknownName:
        return _page("Gone", "<p>This question is not remembered any more.</p>", 410)


@router.get("/approve/{token}", include_in_schema=False)
async def ask(request: Request, token: str) -> Response:
    """Show the question with its buttons, the linked answer first."""
    found = await _asked(request, token)
    if isinstance(found, Response):
        return found
    over = _over(found)
    if over is not None:
        return over
    first = "no" if request.query_params.get("answer") == "no" else "yes"
    words = (first, "yes" if first == "no" else "no")
    buttons = "".join(f'<button name="answer" value="{w}">{w.capitalize()}</button>' for w in words)
    return _page(found.title, f'<p>{escape(found.body)}</p><form method="post">{buttons}</form>')


@router.post("/approve/{token}", include_in_schema=False)
async def decide(request: Request, token: str) -> Response:
    """Take the answer, once."""
    found = await _asked(request, token)
    if isinstance(found, Response):
        return found
    context = context_of(request)
    body = await read_body(request, limit_bytes=4096)
    said = parse_qs(body.decode(errors="replace")).get("answer", [request.query_params.get("answer", "")])[0]
    if said not in ("yes", "no"):
        return _page(found.title, "<p>The answer is yes or no.</p>", 400)
    word: Answer = "yes" if said == "yes" else "no"
    try:
        await Approvals(context.bus, context.clock).answer(found.id, word, by="link")
    except (RefusedError, UnknownName) as exc:
        return _page(found.title, f"<p>{escape(str(exc))}.</p>", 410)
    return _page(found.title, f"<p>Thank you: {word}.</p>")


@router.get("/api/approvals")
async def list_approvals(request: Request, paging: Paging) -> Response:
    """List the questions that are open, and those answered or run out lately, the newest first."""
    context = context_of(request)
    return listing([a.to_json() for a in await Approvals(context.bus, context.clock).list()], paging)


@router.post("/api/approvals/{id:path}", responses=REFUSED)
async def answer_approval(
    request: Request, id: str, body: Annotated[AnswerBody, Depends(Taken(AnswerBody))]
) -> Response:
    """Answer a question (its id or the beginning of it): `{"answer": "yes" or "no", "by": …}`."""
    context = context_of(request)
    approvals = Approvals(context.bus, context.clock)
    found = await approvals.named(id)
    made = await approvals.answer(found.id, body.answer, by=body.by or "api")
    return answer(made.to_json())
