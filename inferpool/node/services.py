"""What a node serves: a manifest, its engine, its price and how much it takes at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from inferpool.engines.base import Engine
from inferpool.models.manifest import Manifest
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.job import Job, Task
from inferpool.protocol.limits import QUEUE_MAX
from inferpool.protocol.offer import Service

_SMOOTHING = 0.2  # of the running averages: about the last ten calls count

# What a manifest's `max_rows` bounds, by task: the parameter at fault, and the error's code.
_SIZE_AT: Final = {
    Task.TENSOR: ("inputs[0].shape", "invalid_tensor"),
    Task.EMBEDDING: ("input", "invalid_request"),
    Task.TRANSCRIPTION: ("file", "invalid_request"),
    Task.IMAGE: ("n", "invalid_request"),
}


def _size(job: Job) -> int:
    """Rows, texts, whole seconds, or steps of all images."""
    if job.task is Task.EMBEDDING:
        return job.messages
    if job.task is Task.TRANSCRIPTION:
        return -(-job.audio_ms // 1000)
    return job.steps * job.choices if job.task is Task.IMAGE else job.rows


@dataclass(slots=True)
class Pace:
    """Measured speed of one service, told in leases; running averages."""

    first_unit_ms: float = 0.0
    unit_us: float = 0.0

    def add(self, first_ms: float, total_ms: float, units: int) -> None:
        """Count one finished call of `units` units."""
        self.first_unit_ms = self._mix(self.first_unit_ms, first_ms)
        if units > 1:
            self.unit_us = self._mix(self.unit_us, 1000 * (total_ms - first_ms) / (units - 1))

    @staticmethod
    def _mix(old: float, new: float) -> float:
        return new if old == 0.0 else old + _SMOOTHING * (new - old)


@dataclass(slots=True)
class Hosted:
    """One service with what runs it. Prices in pico-USD per unit."""

    manifest: Manifest
    engine: Any  # a TextEngine or a TensorEngine, by the manifest's task
    price_in_pico_usd_per_unit: int
    price_out_pico_usd_per_unit: int
    slots: int
    running: int = 0
    withheld: bool = False  # by the owner: loaded or not, it is not offered
    closed: bool = False  # unloaded on purpose, to be started again
    leaving: bool = False  # it is unloaded when its work has ended, and takes no more
    cold: bool = False  # for want of memory: loaded again when there is room, or for who pays
    memory: int = 0  # bytes that it took when it was in memory; 0: it never was
    used_ms: int = 0  # when a call last began or ended
    wanted_ms: int = 0  # when it was last asked for while it was cold
    loaded_ms: int = 0
    retry_ms: int = 0  # not loaded again before
    failures: int = 0  # of its loading, since it was loaded
    failure: str = ""  # why, in words
    renew: Callable[[], tuple[Any, int]] | None = None  # engine and slots, for the next loading
    pace: Pace = field(default_factory=Pace)
    task: Task = field(init=False)
    _service: Service | None = None

    def __post_init__(self) -> None:
        self.task = Task(self.manifest.task)

    @property
    def open(self) -> bool:
        """Whether a call would be taken now."""
        return not self.withheld and not self.leaving and bool(self.engine.ready())

    @property
    def needs(self) -> int:
        """Bytes of memory that it takes: as measured, before that no less than its files."""
        return self.memory or self.manifest.size

    def service(self) -> Service:
        """The entry in the node's offer; one object, since every request compares it."""
        if self._service is None:
            self._service = self._describe()
        return self._service

    def reprice(self, price_in_pico_usd_per_unit: int, price_out_pico_usd_per_unit: int) -> None:
        """Ask another price from the next offer on; offers that are out keep theirs."""
        self.price_in_pico_usd_per_unit = price_in_pico_usd_per_unit
        self.price_out_pico_usd_per_unit = price_out_pico_usd_per_unit
        self._service = None

    def _describe(self) -> Service:
        manifest, limits = self.manifest, self.manifest.limits
        text = self.task in (Task.CHAT, Task.COMPLETION)
        # Another server's answers come without ids: nothing to go on from, nothing to audit.
        tells_ids = getattr(self.engine, "tells_ids", True)
        return Service(
            manifest=bytes.fromhex(manifest.id[2:]),
            model=manifest.name,
            task=self.task,
            engine_class=self.engine.engine_class,
            price_in_pico_usd_per_unit=self.price_in_pico_usd_per_unit,
            price_out_pico_usd_per_unit=self.price_out_pico_usd_per_unit,
            context=limits.context or limits.max_rows,
            default_max_output=limits.default_max_output or 0,
            template_overhead=manifest.template_overhead,
            message_overhead=manifest.message_overhead,
            resume=text and tells_ids,
            audited=text and tells_ids,
            parameters=tuple(sorted(getattr(self.engine, "parameters", ()))),
        )

    def check(self, job: Job) -> None:
        """Refuse what the model cannot take. Raises BadRequest."""
        for name in job.needs:
            if name not in self.service().parameters:
                raise BadRequest(
                    f"{job.model} does not take {name} here; leave it out.",
                    code="unsupported_parameter",
                    param=name,
                )
        limits = self.manifest.limits
        param, code = _SIZE_AT.get(self.task, ("", ""))
        units = _size(job)
        if param and limits.max_rows and units > limits.max_rows:
            unit = "text" if self.task is Task.EMBEDDING else self.task.unit
            raise BadRequest(
                f"{job.model} takes at most {limits.max_rows} {unit}s a request, not {units}.",
                code=code,
                param=param,
            )
        if limits.max_output and (job.max_output or 0) > limits.max_output:
            raise BadRequest(
                f"{job.model} gives at most {limits.max_output} tokens an answer.",
                code="context_length_exceeded",
                param="max_tokens",
            )

    def take_place(self) -> None:
        """Take a place, running or in the queue; who has it must leave it.

        Raises Unavailable(overloaded) when full.
        """
        if not self.open:
            raise Unavailable(
                f"The engine of {self.manifest.name} is not ready yet.",
                code="engine_unavailable",
                retry_after_s=2,
            )
        if self.running >= self.slots + QUEUE_MAX:
            raise Unavailable(
                f"All {self.slots} slots of {self.manifest.name} and its queue are taken.",
                code="overloaded",
                retry_after_s=2,
            )
        self.running += 1

    def leave_place(self) -> None:
        """Give it back."""
        self.running -= 1
        assert self.running >= 0, "a place is left by who took it"


class Services:
    """The node's services by model name and by manifest id."""

    def __init__(self, hosted: Iterable[Hosted]) -> None:
        self.hosted: Sequence[Hosted] = tuple(hosted)
        self._by_name: dict[str, Hosted] = {}
        for item in self.hosted:
            self._by_name[item.manifest.name] = item
            self._by_name[item.manifest.id] = item

    def find(self, model: str, task: Task) -> Hosted:
        """The service of a model. Raises BadRequest(model_not_found)."""
        found = self._by_name.get(model)
        if found is None or not found.task.serves(task):
            names = ", ".join(i.manifest.name for i in self.hosted if i.task.serves(task))
            raise BadRequest(
                f"The model {model!r} is not served here for {task.value};"
                f" served: {names or 'none'}.",
                code="model_not_found",
                param="model",
            )
        return found

    def offered(self) -> list[Service]:
        """What an offer may name now: services whose engine is ready."""
        return [item.service() for item in self.hosted if item.open]

    def wish(self, names: object, now_ms: int) -> None:
        """Models that a gateway's callers asked for and nobody offers: a cold one is wanted."""
        for item in self.hosted:
            if item.cold and isinstance(names, list) and item.manifest.name in names:
                item.wanted_ms = now_ms

    @property
    def engines(self) -> list[Engine]:
        """Every engine."""
        return [item.engine for item in self.hosted]

    @property
    def free_slots(self) -> int:
        """Calls that would start at once."""
        return sum(max(0, item.slots - item.running) for item in self.hosted if item.open)
