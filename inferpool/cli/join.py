"""`inferpool node join`: from a bare machine to its first paid unit, each step timed."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from inferpool.cli.console import ERR, OUT, AsJson, print_json, progress_bars, settings
from inferpool.config import Config
from inferpool.home import Home
from inferpool.protocol.errors import InferpoolError, Refused, Unavailable
from inferpool.protocol.units import format_usd

if TYPE_CHECKING:
    from inferpool.daemon.joining import Choice, Priced
    from inferpool.daemon.pool import Pool
    from inferpool.models.manifest import Manifest
    from inferpool.node.hardware import Hardware
    from inferpool.node.measure import Measured
    from inferpool.node.speed import Speed

HELP = """Make this machine a provider: measure it, choose models, propose prices, serve, get paid.

Examples:

  inferpool node join

  inferpool node join --yes --gateway http://127.0.0.1:8420

  inferpool node join --model spam --payout 0x52908400098527886E0F7030069857D2E4169EE7"""

_FIRST_WORK_S: Final = 120.0
_LOOK_S: Final = 0.1


@dataclass(slots=True)
class Stages:
    """Says each step with its time; quiet where JSON is asked for."""

    quiet: bool
    begun: float = field(default_factory=time.monotonic)
    took_s: dict[str, float] = field(default_factory=dict)
    _shown: Any = None  # what goes on now, where somebody watches

    def now(self, what: str) -> None:
        """Show what goes on, until the stage ends."""
        if self._shown is not None:
            self._shown.update(f"[dim]{what}[/]")

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[str], None]]:
        """One step; what it yields says a line about it."""
        begun, lines = time.monotonic(), list[str]()
        watched = not self.quiet and OUT.is_terminal and name != "pull"  # which has bars of its own
        with OUT.status(f"[dim]{name}[/]") if watched else nullcontext() as self._shown:
            yield lines.append
        self.took_s[name] = round(time.monotonic() - begun, 2)
        if self.quiet:
            return
        OUT.print(f"[bold]{name:9}[/] {self.took_s[name]:6.2f} s  {lines[0] if lines else ''}")
        for line in lines[1:]:
            OUT.print(f"{'':20}{line}")

    @property
    def so_far_s(self) -> float:
        """Since the command was given."""
        return round(time.monotonic() - self.begun, 2)


def join(
    model: Annotated[
        list[str] | None, typer.Option(help="Model to serve, whatever else fits; repeat for more.")
    ] = None,
    gateway: Annotated[
        list[str] | None, typer.Option(help="URL of a gateway to offer to; repeat for more.")
    ] = None,
    relay: Annotated[
        list[str] | None,
        typer.Option(help="HOST:PORT of a relay to wait at, where nobody can dial this machine."),
    ] = None,
    chain: Annotated[str | None, typer.Option(help="JSON-RPC URL of the chain.")] = None,
    payout: Annotated[
        str | None, typer.Option(help="Address that is paid; the owner key's where none is given.")
    ] = None,
    stake: Annotated[
        int | None, typer.Option(help="Stake in base units of the token; none is needed.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    trial: Annotated[bool, typer.Option(help="End after the first paid unit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Detect, measure, choose, pull, price, serve; then wait for work until Ctrl-C."""
    flags = {
        "chain.url": chain,
        "node.payout": payout,
        "node.stake_base_units": stake,
        "node.port": port,
        "node.gateways": gateway or None,
        "node.relays": relay or None,
    }
    config, home = settings(flags)
    if home.running("node") is not None:
        raise Refused("A node runs here already; `inferpool node status` shows it.")
    joining = Joining(config, home, Stages(as_json), ask=not yes and sys.stdin.isatty())
    report = joining.prepare(model or [])
    joining.serve({key: value for key, value in flags.items() if value is not None}, report, trial)


@dataclass(slots=True)
class Joining:
    """One run of the command."""

    config: Config
    home: Home
    stages: Stages
    ask: bool

    # -- before it serves ------------------------------------------------------------------------

    def prepare(self, names: list[str]) -> dict[str, Any]:
        """Everything up to the written configuration. Raises InferpoolError."""
        from inferpool.daemon.chains import chain_url

        chain_url(self.config.chain, self.home)  # before minutes are spent: is there a chain?
        hardware, measured = self._look()
        uploads = self._upload()
        choices = self._choose(names, hardware)
        speeds = self._measure([item.manifest for item in choices if not item.why_not])
        priced, report = self._price(hardware, measured, speeds)
        payout = self._payout()
        self._write(priced, payout)
        report["hardware"], report["measured"] = (
            hardware.to_wire(),
            measured.to_wire() if measured else None,
        )
        report["upload_bytes_per_s"] = uploads
        report["left_out"] = {i.manifest.name: i.why_not for i in choices if i.why_not}
        return report

    def _look(self) -> tuple[Hardware, Measured | None]:
        from inferpool.models.store import Store
        from inferpool.node.hardware import detect
        from inferpool.node.measure import measure

        with self.stages.stage("detect") as say:
            hardware = detect(Store().root)
            say(f"{hardware.cpu}, {hardware.cores} cores, {' '.join(hardware.features)}")
            say(
                f"{_gb(hardware.memory_usable)} of memory to use"
                f"{' (container limit)' if hardware.memory_limit else ''},"
                f" {_gb(hardware.disk_free)} of disk free"
            )
            for gpu in hardware.gpus:
                mark = " [yellow](detection untested)[/]" if gpu.untested else ""
                say(f"{gpu.name}, {_gb(gpu.memory)}, by {gpu.source}{mark}")
        with self.stages.stage("measure") as say:
            try:
                measured = measure()
            except ImportError:
                say("numpy is missing, nothing measured")
                return hardware, None
            watts = measured.busy_milliwatts
            say(
                f"memory {measured.memory_bytes_per_s / 1e9:.1f} GB/s,"
                f" {measured.flop_per_s / 1e9:.0f} GFLOP/s,"
                f" power {f'{watts / 1000:.1f} W' if watts else 'not readable: rated'}"
            )
        return hardware, measured

    def _upload(self) -> dict[str, int | None]:
        """Bytes a second to each gateway, None where it cannot be measured."""
        from inferpool.daemon.joining import upload_to

        found: dict[str, int | None] = {}
        with self.stages.stage("upload") as say:
            for url in self._gateways():
                rate, why = upload_to(url)
                found[url] = rate or None
                say(f"{_rate(rate)} to {url}" if rate else f"[yellow]not measured: {url}: {why}[/]")
            if not found:
                say("no gateway is named; the registry's will come by themselves")
            if self.config.node.relays:
                say("answers go by the relay, whose own line may be slower: not measured")
        return found

    def _choose(self, names: list[str], hardware: Hardware) -> list[Choice]:
        from inferpool.daemon.joining import Choice, choose_models
        from inferpool.models.pull import preferred, pull_model
        from inferpool.models.store import Store

        store = Store()
        lost: dict[Manifest, str] = {}
        with self.stages.stage("choose") as say:
            choices = choose_models(names, hardware, store)
            taken = [item.manifest for item in choices if not item.why_not]
            say(", ".join(item.name for item in taken) or "nothing fits")
            for item in choices:
                if item.why_not and item.manifest.engine != "fake":
                    say(f"[dim]not {item.manifest.name}: {item.why_not}[/]")
        if not taken:
            raise Refused(
                "No model fits this machine: " + "; ".join(item.why_not for item in choices),
                code="bad_config",
            )
        with self.stages.stage("pull") as say, progress_bars() as on_progress:
            missing = sum(file.size for found in taken for file in store.missing(found))
            for found in taken:
                try:
                    pull_model(store, found, prefer=preferred(), on_progress=on_progress)
                except InferpoolError as error:
                    if names:  # asked for by name: nothing else will do
                        raise
                    lost[found] = f"cannot be fetched: {error.message}"
            say(f"{missing / 1e6:.0f} MB fetched" if missing else "all weights are here")
            for found, why in lost.items():
                say(f"[yellow]not {found.name}: {why}[/]")
        choices = [Choice(i.manifest, i.why_not or lost.get(i.manifest, "")) for i in choices]
        return choices

    def _measure(self, manifests: list[Manifest]) -> dict[Manifest, Speed]:
        from inferpool.daemon.joining import measure_model
        from inferpool.models.store import Store

        speeds: dict[Manifest, Speed] = {}
        store = Store()
        with self.stages.stage("benchmark") as say:
            for item in manifests:
                self.stages.now(f"measuring {item.name}")
                try:
                    speed = asyncio.run(measure_model(item, store, self.config.node))
                except InferpoolError as error:
                    say(f"[yellow]not {item.name}: {error.message}[/]")
                    continue
                speeds[item] = speed
                into, out = speed.per_second()
                paces = [(into, " in" if out else ""), (out, " out" if into else "")]
                pace = ", ".join(f"{n:,.{n < 100:d}f} {item.unit}s/s{way}" for n, way in paces if n)
                say(f"{item.name}: {pace}, first after {speed.first_ms:.0f} ms")
        if not speeds:
            raise Unavailable("No engine could be started here; `inferpool node doctor` says why.")
        return speeds

    def _price(
        self, hardware: Hardware, measured: Measured | None, speeds: dict[Manifest, Speed]
    ) -> tuple[list[Priced], dict[str, Any]]:
        from inferpool.daemon.joining import asked_by, expected, machine_cost, price

        with self.stages.stage("price") as say:
            gateways = self._gateways()
            asked = asked_by(gateways[0]) if gateways else {}
            cost = machine_cost(self.config.cost, hardware, measured)
            priced = price(speeds, cost, self.config.cost, asked)
            low, high = expected(priced, cost)
            say(
                f"{cost.busy_milliwatts / 1000:.1f} W at work,"
                f" {self.config.cost.tariff_usd_per_kwh} USD/kWh"
            )
            for item in priced:
                out = item.price_out
                say(
                    f"{item.manifest.name}: {_asked(item)} USD per million {item.manifest.unit}s"
                    f" ({(out or item.price_in).why})"
                )
            say(
                f"expected net of energy and wear: {_usd(low.net)} to {_usd(high.net)} an hour,"
                f" if busy {low.busy_ppm // 10_000} to {high.busy_ppm // 10_000} % of the time"
            )
        report: dict[str, Any] = {
            "prices": [item.line() for item in priced],
            "expected_net_pico_usd_per_hour": [low.net, high.net],
            "expected_gross_pico_usd_per_hour": [low.gross, high.gross],
        }
        return priced, report

    def _gateways(self) -> list[str]:
        """Named ones, else the one that runs on this machine."""
        if self.config.node.gateways:
            return list(self.config.node.gateways)
        running = self.home.running("gateway")
        return [str(running["url"])] if running is not None else []

    def _payout(self) -> str:
        """The address to pay, "" for the owner key's own."""
        from inferpool.identity.keys import Role
        from inferpool.protocol.encoding import from_hex, to_checksum

        own = to_checksum(self.home.keys("node").key(Role.OWNER, create=True).address)
        chosen = self.config.node.payout or own
        if self.ask:
            chosen = typer.prompt("Pay out to", default=chosen)
        try:
            address = to_checksum(from_hex(chosen, 20))
        except ValueError as error:
            raise Refused(f"payout: {error}", code="bad_config", param="node.payout") from None
        return "" if address == own else address

    def _write(self, priced: list[Priced], payout: str) -> None:
        from inferpool.daemon.joining import settings_of
        from inferpool.toml_edit import update_file

        if self.ask and not typer.confirm("Serve these models at these prices?", default=True):
            raise Refused("Nothing was written; set your own prices with node.prices.")
        with self.stages.stage("write") as say:
            values = settings_of(self.config, priced, self._gateways(), payout)
            if self.config.origins["node.stake_base_units"] == "flag":
                values["stake_base_units"] = self.config.node.stake_base_units
            if self.config.node.relays:
                values["relays"] = list(self.config.node.relays)
            update_file(self.home.config, "node", values)
            if self.config.origins["chain.url"] == "flag":
                update_file(self.home.config, "chain", {"url": self.config.chain.url})
            say(f"{self.home.config}")

    # -- serving ---------------------------------------------------------------------------------

    def serve(self, flags: dict[str, object], report: dict[str, Any], trial: bool) -> None:
        """Start the node, wait for the first paid unit, then for Ctrl-C."""
        from inferpool.cli.up import wait_for_end
        from inferpool.daemon.pool import Pool

        kept: dict[str, object] = {
            key: flags[key] for key in ("node.port", "chain.url") if key in flags
        }
        pool = Pool(self.home, kept)
        try:
            with self.stages.stage("serve") as say:
                running = pool.start("node")
                say(f"{running.url}, node {running.facts['node']}")
            report["first_paid"] = self._first_work(pool)
            report["stages_s"], report["total_s"] = self.stages.took_s, self.stages.so_far_s
            if self.stages.quiet:
                print_json(report)
            if trial:
                return
            ERR.print("[dim]Serving; Ctrl-C ends it, `inferpool node status` shows it.[/]")
            ended = asyncio.run(wait_for_end(pool))
            if ended:
                raise Unavailable(f"The node ended by itself; see {pool.log('node')}.")
        finally:
            pool.close()

    def _first_work(self, pool: Pool) -> dict[str, Any] | None:
        """Wait for the first receipt; None where none came in time, which is no error."""
        from inferpool.cli.owner import ask_node

        with self.stages.stage("first job") as say:
            while True:
                state = ask_node(self.home, "GET", "status")
                if state["latest"]:  # read from disk: a receipt counts in memory a little earlier
                    break
                if pool.running["node"].process.poll() is not None:
                    raise Unavailable(f"The node ended by itself; see {pool.log('node')}.")
                if self.stages.so_far_s > _FIRST_WORK_S:
                    say("no work came yet; it goes on serving, and `node status` says why")
                    return None
                time.sleep(_LOOK_S)
            first: dict[str, Any] = state["latest"][-1]
            say(
                f"{first['model']}: {first['prompt_units']} in, {first['output_units']} out,"
                f" {format_usd(first['charge_pico_usd'])} from {first['payer']}"
            )
            say(f"[green]first paid unit {self.stages.so_far_s:.1f} s after the command[/]")
        return first


def _asked(item: Priced) -> str:
    from inferpool.daemon.joining import per_million

    prices = [(item.price_in.price, "in"), (item.price_out.price if item.price_out else 0, "out")]
    named = [(per_million(price), way) for price, way in prices if price]
    if len(named) > 1:
        return ", ".join(f"{price} {way}" for price, way in named)
    return named[0][0] if named else "0"


def _rate(bytes_per_s: int) -> str:
    return f"{8 * bytes_per_s / 1e6:,.1f} Mbit/s"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _usd(pico_usd: int) -> str:
    sign = "-" if pico_usd < 0 else ""
    return f"{sign}${abs(pico_usd) / 1e12:.6f}"
