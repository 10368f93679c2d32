"""The html file: description, arrays, style and scripts, and a policy that lets nothing else in."""

import base64
import hashlib
import json
import re
from importlib.resources import files
from string import Template
from typing import Any

from vlm_vision.page.arrays import Arrays

SCRIPTS = (
    "data.js", "numbers.js", "color.js", "dom.js", "view.js", "state.js", "attention.js", "patches.js", "flow.js", "comparison.js",
    "similarity.js", "lengths.js", "texts.js", "answer.js", "episode.js", "main.js",
)  # fmt: skip
"""The page's modules, each after those that it imports."""
_WEB = files("vlm_vision.page") / "web"


def script() -> str:
    """All modules as one, without their imports and exports: a file opened from the disk cannot import another."""
    parts = []
    for name in SCRIPTS:
        text = (_WEB / name).read_text(encoding="utf-8")
        text = re.sub(r"^import .*? from .*?;\n", "", text, flags=re.MULTILINE)
        parts.append(re.sub(r"^export ", "", text, flags=re.MULTILINE))
    return "\n".join(parts)


def page_html(about: dict[str, Any], arrays: Arrays) -> str:
    """The page. Its content security policy names the one script and the one style by their hashes; a page of a server
    (`about["served"]`) may also ask that server."""
    style, code = (_WEB / "style.css").read_text(encoding="utf-8"), script()
    connect = "'self'" if about["served"] else "'none'"
    policy = (
        f"default-src 'none'; script-src '{_hash(code)}'; style-src '{_hash(style)}'; img-src data:; connect-src {connect}; "
        "base-uri 'none'; form-action 'none'"
    )
    holders = [f'<script type="text/plain" id="array-{i}">{text}</script>' for i, text in enumerate(arrays.texts)]
    template = Template((_WEB / "index.html").read_text(encoding="utf-8"))
    return template.substitute(
        policy=policy, style=style, script=code, about=_inline_json(about), arrays="\n".join(holders)
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _inline_json(value: Any) -> str:
    """JSON that no name in it can end early: < and & only as escapes."""
    return json.dumps(value, allow_nan=False).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
