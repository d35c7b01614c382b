"""The admin API: keys, teams and usage of a running gateway, for whoever has the control token.

| route, below /inferpool/admin/ | what |
| --- | --- |
| GET keys, GET keys/NAME | accounts, never a key |
| POST keys | a new one; its key is in this answer alone |
| POST keys/NAME/limit, /revoke, /rotate | other rules; an end; a new key |
| GET teams, GET teams/NAME, POST teams, POST teams/NAME/limit | the same for teams |
| GET usage?by=&since=&until= | what was used and paid |
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

import orjson

from inferpool.payments.access import Access
from inferpool.payments.journal import Journal
from inferpool.payments.usage import usage_of, window_of
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.limits import ADMIN_BODY_MAX
from inferpool.transport.asgi import HttpRequest


@dataclass(slots=True)
class Admin:
    """What lies below /inferpool/admin/, on a book: a running gateway's, or one on disk."""

    access: Access
    journal: Journal

    async def serve(self, request: HttpRequest, path: str) -> None:
        """Answer; the caller has checked the token. Raises BadRequest."""
        if request.method == "GET":
            await request.answer_json(await self.read(path, request.query.decode("latin-1")))
            return
        if request.method != "POST":
            raise BadRequest(f"{request.method} is not served here.", code="method_not_allowed")
        body = await request.body(ADMIN_BODY_MAX)
        try:
            value = orjson.loads(body) if body else {}
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"The body is not JSON: {error}", code="invalid_json") from None
        await request.answer_json(await self.write(path, value))

    async def read(self, path: str, query: str = "") -> object:
        """A GET. Raises BadRequest."""
        access, parts = self.access, [unquote(part) for part in path.split("/")]
        match parts:
            case ["keys"]:
                return {"keys": access.keys()}
            case ["keys", name]:
                return access.show(name)
            case ["teams"]:
                return {"teams": access.teams()}
            case ["teams", name]:
                return access.show_team(name)
            case ["usage"]:
                asked = {key: values[-1] for key, values in parse_qs(query).items()}
                window = window_of(asked.pop("since", ""), asked.pop("until", ""))
                by = asked.pop("by", "key,model,node,day")
                if asked:
                    raise BadRequest(f"Unknown: {', '.join(asked)}.", param=next(iter(asked)))
                return await usage_of(self.journal, by, window)
        raise BadRequest(f"There is no {path[:64]!r}.", code="not_found")

    async def write(self, path: str, value: object) -> object:
        """A POST. Raises BadRequest."""
        access, parts = self.access, [unquote(part) for part in path.split("/")]
        match parts:
            case ["keys"]:
                return await access.create(value)
            case ["keys", name, "limit"]:
                return await access.limit(name, value)
            case ["keys", name, "revoke"]:
                return await access.revoke(name)
            case ["keys", name, "rotate"]:
                return await access.rotate(name, value)
            case ["teams"]:
                return await access.create_team(value)
            case ["teams", name, "limit"]:
                return await access.limit_team(name, value)
        raise BadRequest(f"There is no {path[:64]!r}.", code="not_found")
