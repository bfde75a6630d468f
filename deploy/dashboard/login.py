"""Access to the dashboard: the Host header, the token, and the page to sign in with it.

    restrict(app.server, access)

A browser signs in once, with the token in a form, and gets a cookie, whose value is new in each process. Programs send
``Authorization: Bearer TOKEN``.
"""

from __future__ import annotations

import hmac
import secrets
from http import HTTPStatus
from urllib.parse import urlencode

from flask import Flask, Response, redirect, render_template_string, request

from crossfade.deploy.access import Access
from crossfade.deploy.dashboard.bounded_waitress import ADMIT

_LOGIN = "/login"
_HEALTH = "/healthz"
_OPEN = ("/assets/", "/_favicon.ico")
"""What the page to sign in loads; it has nothing of the runs."""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sign in: Crossfade</title>
<link rel="icon" href="/_favicon.ico">
<link rel="stylesheet" href="/assets/page.css">
<link rel="stylesheet" href="/assets/explore.css">
<script src="/assets/early_theme.js"></script>
</head>
<body>
<header><div><span class="brand">Crossfade</span></div></header>
<main class="explore">
  <h1>Sign in</h1>
  <form method="post" class="controls card">
    <div class="field">
      <label for="token">Token</label>
      <div class="joined">
        <input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
        <button type="submit">Sign in</button>
      </div>
      <p class="hint" role="alert">{{ problem }}</p>
    </div>
    <input name="next" type="hidden" value="{{ next }}">
  </form>
</main>
</body>
</html>
"""


def restrict(server: Flask, access: Access) -> None:
    """Answer only requests that ``access`` allows, and add the page to sign in if it has a token."""
    session = secrets.token_urlsafe(32)

    def is_signed_in() -> bool:
        cookie = request.cookies.get(_cookie_name(), "")
        return hmac.compare_digest(cookie.encode(), session.encode()) or access.has_token(
            request.headers.get("Authorization")
        )

    @server.before_request
    def check() -> Response | None:
        if request.path == _HEALTH:
            return None
        if problem := access.host_problem(request.headers.get("Host")):
            return Response(f"{problem}\n", HTTPStatus.MISDIRECTED_REQUEST, mimetype="text/plain")
        if access.token is None or is_signed_in():
            if admit := request.environ.get(ADMIT):
                admit()
            return None
        if request.path == _LOGIN or request.path.startswith(_OPEN):
            return None
        accepted = request.accept_mimetypes
        if request.method == "GET" and accepted["text/html"] > accepted["text/plain"]:
            return _redirect(f"{_LOGIN}?{urlencode({'next': request.full_path.rstrip('?')})}")
        return Response(
            "a token is needed: sign in at /login, or send it as 'Authorization: Bearer TOKEN'\n",
            HTTPStatus.UNAUTHORIZED,
            {"WWW-Authenticate": "Bearer"},
            mimetype="text/plain",
        )

    if access.token is None:
        return

    @server.get(_LOGIN)
    def show_login() -> str:
        return render_template_string(_PAGE, next=request.args.get("next", "/"), problem="")

    @server.post(_LOGIN)
    def log_in() -> Response | tuple[str, int]:
        target = request.form.get("next", "/")
        if not access.is_token(request.form.get("token", "")):
            page = render_template_string(_PAGE, next=target, problem="This is not the token.")
            return page, HTTPStatus.UNAUTHORIZED
        response = _redirect(target if _is_local(target) else "/")
        response.set_cookie(_cookie_name(), session, httponly=True, samesite="Strict", secure=request.is_secure)
        return response


def _cookie_name() -> str:
    """Return the name of the cookie: browsers send the cookies of a host to all its ports."""
    return f"crossfade_{request.environ.get('SERVER_PORT', '')}"


def _is_local(target: str) -> bool:
    """Return whether ``target`` is a path of this server: two slashes of either kind lead to another one."""
    return target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()


def _redirect(target: str) -> Response:
    response = redirect(target, HTTPStatus.SEE_OTHER)
    assert isinstance(response, Response)
    return response
