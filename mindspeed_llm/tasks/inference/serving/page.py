"""The chat page, one file that needs nothing from elsewhere (`page.html`)."""

import base64
import hashlib
import re
from pathlib import Path

_FILE = Path(__file__).with_name("page.html")


class Page:
    """The page as it is sent: `body` and `headers`, which let the browser run what is in the file and nothing else."""

    def __init__(self, *, needs_key: bool) -> None:
        text = _FILE.read_text(encoding="utf-8").replace("{{needs_key}}", str(needs_key).lower())
        self.body = text.encode()
        allowed = {kind: _hash(re.search(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)[1])
                   for kind in ("script", "style")}
        self.headers = {
            "Content-Security-Policy": f"default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
                                       f"form-action 'none'; frame-ancestors 'none'; script-src {allowed['script']}; "
                                       f"style-src {allowed['style']}",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
