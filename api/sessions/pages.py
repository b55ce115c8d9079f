"""Our pages. They have no script and no text of others but what is escaped here (`api.http.security_headers.PAGE`)."""

from __future__ import annotations

from html import escape
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from starlette.responses import HTMLResponse

from api.http.security_headers import PAGE

STATIC = Path(__file__).with_name("static")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="/docs/assets/favicon.png">
<link rel="stylesheet" href="/pages/pages.css">
<title>{title}</title>{head}
</head>
<body>
{body}
</body>
</html>
"""
_LOGIN_FORM = """<form method="post" action="/login">
<label for="token">Service token</label>
<input id="token" name="token" type="password" autocomplete="off" required placeholder="dm_…">
<input type="hidden" name="next" value="{target}">
<button>Log in</button>
</form>"""


def docs_page() -> HTMLResponse:
    """Return the documentation of the API, by Swagger UI; who is logged in can try requests there."""
    head = '\n<link rel="stylesheet" href="/docs/assets/swagger-ui.css">'
    scripts = ("/docs/assets/swagger-ui-bundle.js", "/pages/docs.js")
    loaded = "\n".join(f'<script src="{script}"></script>' for script in scripts)
    body = f'<header id="session"></header>\n<div id="swagger-ui"></div>\n{loaded}'
    return _page("Data Manager", body, head=head)


def login_page(target: str, issuer: str | None, *, problem: str | None = None, status: int = 200) -> HTMLResponse:
    """Return the page where a person logs in, to see `target` then; `issuer` is where, if it is at one."""
    parts = ["<main>", "<h1>Data Manager</h1>"]
    if problem is not None:
        parts.append(f'<p class="problem" role="alert">{escape(problem)}</p>')
    if issuer is not None:
        link = escape(f"/login/start?{urlencode({'next': target})}")
        parts.append(f'<p><a class="button" href="{link}">Log in at {escape(urlsplit(issuer).netloc)}</a></p>')
    parts += [_LOGIN_FORM.format(target=escape(target)), '<script src="/pages/login.js"></script>', "</main>"]
    return _page("Log in", "\n".join(parts), status=status)


def bounce_page(target: str) -> HTMLResponse:
    """Return a page that goes on to `target` at once.

    After a redirect from the issuer the browser would not send a SameSite=Strict cookie: the way began on another site.
    It begins anew on this page.
    """
    link = escape(target)
    page = _page(
        "Logged in",
        f'<main><p>You are logged in. <a href="{link}">Continue</a></p></main>',
        head=f'\n<meta http-equiv="refresh" content="0; url={link}">',
    )
    page.headers["Referrer-Policy"] = "no-referrer"  # this page's address has the issuer's code
    return page


def _page(title: str, body: str, *, head: str = "", status: int = 200) -> HTMLResponse:
    text = _PAGE.format(title=escape(title), head=head, body=body)
    return HTMLResponse(text, status_code=status, headers={"Content-Security-Policy": PAGE})
