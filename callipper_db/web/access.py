"""Who may ask: the host that is addressed, the token, and what a browser may do with the page."""

from __future__ import annotations

import hmac
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from callipper_db.web.failures import sentence
from callipper_db.web.settings import MapSettings, is_loopback

COOKIE = "callipper_token"
OPEN = {"/healthz"}


class Access:
    """Refuses requests that may not ask, and writes the headers that keep a page to itself."""

    def __init__(self, app: ASGIApp, settings: MapSettings) -> None:
        self.app, self.settings = app, settings
        self._policy = _policy(settings.basemap)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Content-Security-Policy"] = self._policy
            await send(message)

        headers = Headers(scope=scope)
        token = self.settings.token
        if token is None and not is_loopback(_host(headers.get("host", ""))):
            # A page of another site, whose name leads to this machine, must not read the answers.
            answer = sentence(403, "This map answers under localhost alone. Start it with --host to let others ask.")
            await answer(scope, receive, send_with_headers)
        elif token is None or scope["path"] in OPEN or _has_token(headers, token):
            await self.app(scope, receive, send_with_headers)
        elif (
            _is(parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0], token) and scope["path"] == "/"
        ):
            redirect = RedirectResponse("/", 303)
            redirect.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            await redirect(scope, receive, send_with_headers)
        else:
            says = "A token is needed: open the address that callipper-db map printed, or send Authorization: Bearer TOKEN."
            await sentence(401, says)(scope, receive, send_with_headers)


def _host(header: str) -> str:
    return urlsplit(f"//{header}").hostname or ""


def _has_token(headers: Headers, token: str) -> bool:
    cookies = SimpleCookie(headers.get("cookie", ""))
    given = cookies[COOKIE].value if COOKIE in cookies else ""
    return _is(given, token) or _is(headers.get("authorization", "").removeprefix("Bearer "), token)


def _is(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _policy(basemap: str | None) -> str:
    """The page loads from this server alone, and from the basemap's where there is one."""
    parts = urlsplit(basemap or "")
    other = f" {parts.scheme}://{parts.netloc}" if parts.netloc else ""
    return (
        "default-src 'none'; script-src 'self'; worker-src 'self' blob:; style-src 'self' 'unsafe-inline'; base-uri 'none';"
        f" form-action 'self'; frame-ancestors 'none'; img-src 'self' data: blob:{other}; connect-src 'self'{other}"
    )
