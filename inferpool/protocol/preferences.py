"""What a client may say about who serves it: OpenRouter's `provider` object, field for field, and
the object `inferpool` beside it.

A provider's name is the address of a node's key or of its owner. What no node can promise yet is
accepted only where it asks for nothing. Source: OpenRouter's documentation, "Provider Routing".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import orjson

from inferpool.protocol.body import fail, flag
from inferpool.protocol.encoding import from_hex
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.limits import PREFERENCES_MAX, PROVIDERS_MAX, TEXT_MAX

SORTS: Final = ("price", "throughput", "latency")
# A model's numbers as OpenRouter names them -> as the classes of this network do.
_QUANTIZATIONS: Final = {"fp32": "f32", "fp16": "f16", "fp8": "f8"}
_PROVIDER: Final = frozenset(
    {
        *("order", "only", "ignore", "allow_fallbacks", "require_parameters", "data_collection"),
        *("zdr", "quantizations", "max_price", "sort"),
        *("preferred_min_throughput", "preferred_max_latency"),
    }
)
_PERCENTILES: Final = ("p50", "p75", "p90", "p99")
_MICRO: Final = 10**6
_PER_HOUR: Final = 3600


@dataclass(frozen=True, slots=True)
class RoutePreferences:
    """Everything that narrows or orders the choice of a node. Prices in pico-USD per unit."""

    order: tuple[bytes, ...] = ()  # 20-byte addresses, of node keys or owners
    only: frozenset[bytes] = frozenset()
    ignore: frozenset[bytes] = frozenset()
    allow_fallbacks: bool = True  # beyond `order`, or beyond the first choice
    private: bool = False  # only nodes that promise to keep nothing; none can promise it yet
    quantizations: frozenset[str] = frozenset()
    max_in_pico_usd_per_unit: int | None = None
    max_out_pico_usd_per_unit: int | None = None
    max_request_pico_usd: int | None = None
    sort: str = ""  # one of SORTS, or "" for the expected cost
    min_units_per_s: float = 0.0  # preferred, not required
    max_first_ms: float = math.inf  # preferred, not required
    min_trust: float = 0.0  # 0: strangers too; 1: nodes that have delivered and do not fail
    value_of_time_pico_usd_per_s: int | None = None
    hold: bool | None = None  # deliver a stream only when it is whole; None: where it must be


NO_PREFERENCES: Final = RoutePreferences()


def take_preferences(body: dict[str, object]) -> RoutePreferences:
    """`provider`, and our own members of `inferpool`, taken out of a body. Raises BadRequest."""
    provider, ours = body.pop("provider", None), body.get("inferpool")
    if ours is None:
        body.pop("inferpool", None)
    if provider is None and ours is None:
        return NO_PREFERENCES
    fields: dict[str, Any] = {}
    if provider is not None:
        fields |= _provider(_object(provider, "provider"))
    if isinstance(ours, dict):
        fields |= _ours(ours)
        if not ours:
            body.pop("inferpool")
    return RoutePreferences(**fields) if fields else NO_PREFERENCES


def preferences_of(header: bytes | None) -> RoutePreferences:
    """The same from the header `Inferpool-Provider`, for bodies that are no JSON of OpenAI's.

    A JSON object with `provider`, `inferpool` or both. Raises BadRequest.
    """
    if header is None:
        return NO_PREFERENCES
    if len(header) > PREFERENCES_MAX:
        fail("Inferpool-Provider", f"The header is over {PREFERENCES_MAX} bytes.")
    try:
        value = orjson.loads(header)
    except orjson.JSONDecodeError as error:
        raise BadRequest(
            f"The header Inferpool-Provider is not JSON: {error}", param="Inferpool-Provider"
        ) from None
    body = _object(value, "Inferpool-Provider")
    _known(body, ("provider", "inferpool"), "Inferpool-Provider")
    found = take_preferences(body)
    if body.get("inferpool"):
        fail("inferpool", "This header takes preferences only.", "unsupported_parameter")
    return found


def refuse_preferences(found: RoutePreferences) -> None:
    """A node chooses nobody: what only a gateway can do is not dropped in silence."""
    if found != NO_PREFERENCES:
        fail("provider", "Preferences are for gateways; a node serves by itself.")


# -- the two objects -----------------------------------------------------------------------------


def _provider(value: dict[str, Any]) -> dict[str, Any]:
    _known(value, _PROVIDER, "provider")
    if value.get("require_parameters", True) is not True:
        fail(
            "provider.require_parameters",
            "No parameter is dropped here: require_parameters is always true.",
            "unsupported_parameter",
        )
    collection = value.get("data_collection")
    if collection not in ("allow", "deny", None):
        fail("provider.data_collection", "data_collection must be allow or deny.")
    fallbacks = value.get("allow_fallbacks")
    return {
        "order": tuple(_addresses(value.get("order"), "provider.order")),
        "only": frozenset(_addresses(value.get("only"), "provider.only")),
        "ignore": frozenset(_addresses(value.get("ignore"), "provider.ignore")),
        "allow_fallbacks": fallbacks is None or flag(fallbacks, "provider.allow_fallbacks"),
        "private": collection == "deny" or flag(value.get("zdr"), "provider.zdr"),
        "quantizations": _quantizations(value.get("quantizations")),
        "sort": _sort(value.get("sort")),
        "min_units_per_s": _rate(value, "preferred_min_throughput", 0.0, max),
        "max_first_ms": 1000 * _rate(value, "preferred_max_latency", math.inf, min),
        **_max_price(value.get("max_price")),
    }


def _ours(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    trust = value.pop("min_trust", None)
    if trust is not None:
        found["min_trust"] = _number(trust, "inferpool.min_trust", 1)
    worth = value.pop("value_of_time_usd_per_hour", None)
    if worth is not None:
        name = "inferpool.value_of_time_usd_per_hour"
        found["value_of_time_pico_usd_per_s"] = _usd(worth, name, 10**12) // _PER_HOUR
    hold = value.pop("hold", None)
    if hold is not None:
        found["hold"] = flag(hold, "inferpool.hold")
    if value.pop("region", None) is not None:
        fail(
            "inferpool.region",
            "No node says where it stands yet; leave the region out.",
            "unsupported_parameter",
        )
    return found


def _max_price(value: object) -> dict[str, int]:
    if value is None:
        return {}
    prices = _object(value, "provider.max_price")
    names = {
        "prompt": ("max_in_pico_usd_per_unit", _MICRO),  # USD per million units
        "completion": ("max_out_pico_usd_per_unit", _MICRO),
        "request": ("max_request_pico_usd", 10**12),
    }
    _known(prices, names, "provider.max_price")
    return {
        names[name][0]: _usd(price, f"provider.max_price.{name}", names[name][1])
        for name, price in prices.items()
        if price is not None
    }


def _sort(value: object) -> str:
    if isinstance(value, dict):
        _known(value, ("by", "partition"), "provider.sort")
        if value.get("partition") not in ("model", None):
            fail("provider.sort.partition", "A request names one model; its partition is model.")
        value = value.get("by")
    if value is None:
        return ""
    if not isinstance(value, str) or value not in SORTS:
        fail("provider.sort", f"sort must be one of {', '.join(SORTS)}.")
    return value


def _quantizations(value: object) -> frozenset[str]:
    names = _list(value, "provider.quantizations")
    found = set()
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= TEXT_MAX:
            fail("provider.quantizations", "quantizations must be names such as q4_1 or int8.")
        found.add(_QUANTIZATIONS.get(name.lower(), name.lower()))
    return frozenset(found)


def _rate(value: dict[str, Any], name: str, none: float, stricter: Any) -> float:
    """A number, or one for each percentile: the node's own average has to meet the strictest."""
    wanted = value.get(name)
    if wanted is None:
        return none
    path = f"provider.{name}"
    if isinstance(wanted, dict):
        _known(wanted, _PERCENTILES, path)
        given = [_number(n, path, 10**9) for n in wanted.values() if n is not None]
        return float(stricter(given)) if given else none
    return _number(wanted, path, 10**9)


# -- values --------------------------------------------------------------------------------------


def _object(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        fail(path, f"{path} must be an object.")
    return value


def _known(value: dict[str, Any], names: Any, path: str) -> None:
    for name in value:
        if name not in names:
            found = f"{path}.{name[:TEXT_MAX]}"
            fail(found, f"{found} is not served; leave it out.", "unsupported_parameter")


def _list(value: object, path: str) -> list[Any]:
    found = [] if value is None else value
    if not isinstance(found, list) or len(found) > PROVIDERS_MAX:
        fail(path, f"{path} must be a list of at most {PROVIDERS_MAX}.")
    return found


def _addresses(value: object, path: str) -> list[bytes]:
    found = []
    for item in _list(value, path):
        try:
            found.append(from_hex(item, 20))
        except (ValueError, TypeError, AttributeError):
            fail(path, f"{path} names nodes or owners by address: 0x and 40 hex digits.")
    return found


def _number(value: object, path: str, greatest: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= greatest:
        fail(path, f"{path} must be a number from 0 to {greatest}.")
    return float(value)


def _usd(value: object, path: str, unit: int) -> int:
    """USD as a number or its text, in `unit`ths, rounded down: a bound is never widened."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > 40:
        fail(path, f"{path} must be an amount of USD.")
    try:
        amount = Decimal(str(value))
        if not 0 <= amount <= 10**6:
            raise InvalidOperation
    except InvalidOperation:
        fail(path, f"{path} must be an amount of USD from 0 to a million.")
    return int(amount * unit)
