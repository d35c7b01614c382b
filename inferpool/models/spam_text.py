"""The text that the spam model reads: subject and body, cleaned the same way in training and use.

The model's vocabulary is lower-case ASCII, so that the ONNX graph needs no locale. Mail addresses
are replaced by a word: they identify people and say little about the next mail.
"""

from __future__ import annotations

import html
import re
from email import message_from_string
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from typing import Final

# The words that count; the vectoriser and the ONNX tokenizer both get exactly this pattern.
TOKEN_PATTERN: Final = "[a-z$!]{2,}"  # noqa: S105 - a word, not a secret

# What is said in a mail is said in its first kilobytes; the limit bounds a request's size.
MAX_CHARS: Final = 8_000
# Nothing after this is looked at. With the bounded repeats below it bounds the work for any input.
MAX_RAW_CHARS: Final = 200_000

_HIDDEN: Final = re.compile(r"<!--.{0,1000}?-->", re.DOTALL)
_BLOCKS: Final = re.compile(r"<(style|script)\b.{0,4000}?</\1\s*>", re.DOTALL)
_TAG: Final = re.compile(r"</?[a-z!][^<>]{0,2000}>")
_URL: Final = re.compile(r"\b(?:https?|ftp)://|\bwww\.")
_MAIL: Final = re.compile(r"[^\s<>@:;,\"'()]{1,64}@[a-z0-9.-]{1,255}")
_NUMBER: Final = re.compile(r"[0-9][0-9.,]*")
_FOREIGN: Final = re.compile(r"[^\x00-\x7f]+")
_OTHER: Final = re.compile(r"[^a-z$!]+")


def clean(subject: str, body: str) -> str:
    """The model's input for one mail: lower-case ASCII words, at most `MAX_CHARS` characters.

    Markup becomes `htmlref`, a mail address `mailref`, a number `numref`, other scripts `foreign`;
    a web address keeps its words after `urlref`. Never raises: any two strings give a text, which
    may be empty.
    """
    text = f"{subject[:1000]}\n{body[:MAX_RAW_CHARS]}".lower()
    text = _BLOCKS.sub(" ", _HIDDEN.sub("", text))
    text = _MAIL.sub(" mailref ", _URL.sub(" urlref ", text))
    text = html.unescape(_TAG.sub(" htmlref ", text)).lower()
    text = _FOREIGN.sub(" foreign ", _NUMBER.sub(" numref ", text))
    return _OTHER.sub(" ", text).strip()[:MAX_CHARS].rstrip()


def subject_and_body(raw: str) -> tuple[str, str]:
    """Subject and joined text parts of one mail as it lies on disk; headers are left out."""
    mail = message_from_string(raw)
    parts = [_text(part) for part in mail.walk() if part.get_content_maintype() == "text"]
    return _subject(mail), "\n".join(parts)


def _subject(mail: Message) -> str:
    value = str(mail.get("Subject", ""))
    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, UnicodeError, ValueError):
        return value


def _text(part: Message) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    charset = part.get_content_charset() or "latin-1"
    try:
        return payload.decode(charset, errors="replace")
    except (LookupError, UnicodeError):
        return payload.decode("latin-1")
