"""What a summary may say: a writer that says what it is told to, and the guard before it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from inferpool.recipes.kit.use import Meter
from inferpool.recipes.summarise import Tally, Writer, first_sentence, numbers, prose, thirds

TEXT = (
    "The gateway keeps an answer for 120 seconds. A node renews its lease every 10 seconds.\n"
    "```sh\ninferpool up --port 9999\n```\n| a | 1 |\n"
    "A lease that nobody renews ends after three such times, which is half a minute of silence."
    " Payers then ask another node of the same model for the rest of the answer at once."
    " Nothing is charged twice, since each attempt has a receipt of its own and a price for it."
)


class Speaker:
    """A pool whose model says these lines, one a call."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)
        self.chat = SimpleNamespace(
            completions=SimpleNamespace(with_raw_response=SimpleNamespace(create=self._create))
        )

    def _create(self, **asked: Any) -> Any:
        assert "9999" not in asked["messages"][0]["content"]
        said = SimpleNamespace(message=SimpleNamespace(content=self.lines.pop(0)))
        answer = SimpleNamespace(choices=[said], model_extra=None)
        return SimpleNamespace(headers={}, parse=lambda: answer)


def told(*lines: str) -> tuple[list[str], Tally]:
    tally = Tally()
    return Writer(Speaker(*lines), Meter(), tally).summary(TEXT), tally


def test_an_invented_number_is_asked_for_again_and_then_quoted() -> None:
    good = "The gateway keeps an answer for 120 seconds."
    third = "Nothing is charged twice, each attempt has a receipt."
    found, tally = told(
        "The gateway keeps an answer for 130 seconds.", good,  # mended by the second try
        "A lease nobody renews ends after 30 seconds of silence.",
        "A lease nobody renews ends after four such times.",  # written out, and wrong as well
        third,
    )  # fmt: skip
    assert found == [good, thirds(TEXT)[1][0], third]
    assert all(numbers(item) <= numbers(TEXT) for item in found)
    assert tally == Tally(written=5, invented=3, unsupported=0, kept=2, quoted=1)


def test_what_the_text_does_not_bear_out_is_dropped() -> None:
    found, tally = told(*["Bananas ripen slowly in warm, sunny places."] * 6)
    assert found == [run[0] for run in thirds(TEXT)]
    assert (tally.unsupported, tally.kept, tally.quoted) == (6, 0, 3)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,000 and 2.50 or 2.5", {"1000", "2.5"}),
        ("ten or 10", {"10"}),
        ("one of none", set()),
    ],
)
def test_numbers_are_the_same_however_they_are_written(text: str, found: set[str]) -> None:
    assert numbers(text) == found


def test_a_short_text_gets_one_sentence_and_code_is_no_prose() -> None:
    assert len(thirds("A short text has one sentence here.")) == 1
    assert not any("9999" in item or "|" in item for item in prose(TEXT))
    assert first_sentence('\n- The text says: "It ends. And more"') == "It ends."
    assert first_sentence("") == ""
