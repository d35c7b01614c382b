"""The maximum and the exact price of an attempt: one formula, computed by both sides.

Without a tokenizer: a token is at least one byte, so the UTF-8 bytes of the prompt bound its
tokens; a chat template adds a fixed number of tokens and some for each message.
"""

from __future__ import annotations

from inferpool.protocol.errors import BadRequest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.limits import OUTPUT_UNITS_MAX
from inferpool.protocol.offer import Service
from inferpool.protocol.units import base_units_up
from inferpool.protocol.usage import Usage


def maximum_units(job: Job, service: Service) -> tuple[int, int]:
    """The most units in and out. Raises BadRequest(no_maximum) where none is finite."""
    task = job.task
    if task is Task.TENSOR and job.rows > 0:
        return job.rows, 0
    if task is Task.CHAT or task is Task.COMPLETION:
        output = service.default_max_output if job.max_output is None else job.max_output
        if not 0 < output <= OUTPUT_UNITS_MAX:
            raise BadRequest(
                f"max_tokens must be 1 to {OUTPUT_UNITS_MAX}", code="no_maximum", param="max_tokens"
            )
        return _text_units(job, service) + job.resume_units, output * job.choices
    if task is Task.EMBEDDING:
        return _text_units(job, service), 0
    if task is Task.TENSOR:
        return _positive(job.rows, "rows"), 0
    if task is Task.TRANSCRIPTION:
        return _positive(-(-job.audio_ms // 1000), "seconds of audio"), 0
    return 0, _positive(job.steps, "steps") * job.choices


def maximum_usage(job: Job, service: Service) -> Usage:
    """The most that a job can use. Raises BadRequest(no_maximum) where none is finite."""
    return Usage(*maximum_units(job, service))


def _text_units(job: Job, service: Service) -> int:
    overhead = service.template_overhead + service.message_overhead * job.messages
    return job.prompt_bytes + overhead


def _positive(units: int, what: str) -> int:
    if units <= 0:
        raise BadRequest(f"the request has no {what} to price", code="no_maximum")
    return units


def exact_pico_usd(usage: Usage, service: Service) -> int:
    """Price of what was used, in pico-USD."""
    return price_pico_usd(usage.prompt_units, usage.output_units, service)


def price_pico_usd(units_in: int, units_out: int, service: Service) -> int:
    """Price of so many units in and out, in pico-USD."""
    return (
        units_in * service.price_in_pico_usd_per_unit
        + units_out * service.price_out_pico_usd_per_unit
    )


def maximum_pico_usd(job: Job, service: Service) -> int:
    """The maximum price of a job under a service, in pico-USD."""
    return price_pico_usd(*maximum_units(job, service), service)


def maximum(job: Job, service: Service, decimals: int) -> int:
    """The maximum in base units of the token, rounded up, at least 1: the x402 `amount`."""
    return amount(maximum_pico_usd(job, service), decimals)


def amount(maximum_pico_usd: int, decimals: int) -> int:
    """A maximum in base units of the token, rounded up, at least 1."""
    return max(1, base_units_up(maximum_pico_usd, decimals))
