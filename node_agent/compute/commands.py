"""The commands around the compute API: what is offered under which DID, and the owner's grants.

Owns their words and what they print. Must not know how anything is done. Parts are imported when they are called, so
that `--help` is quick.
"""

import time
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node_agent import screen
from node_agent.options import config_option, examples, json_option

if TYPE_CHECKING:
    from node_agent.commands import Parts
    from node_agent.compute.granting import SeenGrant

_MOST_USES: Final = 1_000_000_000
_SHORT: Final = 16


class _Consumer(click.ParamType[str]):
    """The address of a consumer."""

    name = "0x…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what is no address, and one whose capitals show a typing mistake."""
        from node_agent.compute.signatures import parse_address

        address = parse_address(value)
        if address is None:
            self.fail("an address is `0x` and 40 hexadecimal digits", param, ctx)
        if not _has_right_capitals(str(value), _shown(address)):
            self.fail("its capitals do not fit its digits: something is mistyped", param, ctx)
        return address


def _has_right_capitals(text: str, shown: str) -> bool:
    """Tell whether the capitals are those of the checksum; who writes in one case, or has no library, is believed."""
    digits = text.removeprefix("0x")
    return text == shown or digits in {digits.lower(), digits.upper()} or shown == shown.lower()


class _Expiry(click.ParamType[float]):
    """When something ends, in epoch seconds: with a day (UTC), or so long from now."""

    name = "2027-01-31|30d"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Refuse what is neither, and what is over."""
        if isinstance(value, float):
            return value
        moment = _end_of_day(str(value)) or _from_now(str(value))
        if moment is None:
            self.fail("write a day (2027-01-31, which still counts) or a duration (30d, 12h)", param, ctx)
        if moment <= time.time():
            self.fail("that is over already", param, ctx)
        return moment


def _end_of_day(text: str) -> float | None:
    try:
        following = date.fromisoformat(text) + timedelta(days=1)
    except (ValueError, OverflowError):
        return None
    return datetime(following.year, following.month, following.day, tzinfo=UTC).timestamp()


def _from_now(text: str) -> float | None:
    from node_agent.config.values import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError:
        return None
    return time.time() + float(str(seconds))


# --- what is offered ------------------------------------------------------------------------------------------


@click.command(
    epilog=examples("offer -c /etc/node-agent/alpha.yaml", "offer -c /etc/node-agent/alpha.yaml --json")
)
@config_option
@json_option
@click.pass_obj
def offer(parts: "Parts", config: Path, *, as_json: bool) -> None:
    """Show what the compute API offers.

    Environments, data sets and algorithms, with the DID that requests name them by, given in the configuration or derived.
    No agent is asked.
    """
    from node_agent.compute.offer import facts_of_offer

    facts = facts_of_offer(parts.load_place(config))
    if as_json:
        click.echo(screen.as_json(facts))
        return
    where = facts["listen"] or "nowhere: it is off (compute_api.listen)"
    click.echo(f"listens  {where}\naccess   {facts['access']}")
    _show_list("environments", facts["environments"], _ENVIRONMENT)
    _show_list("data sets", facts["data_sets"], _DATA_SET)
    _show_list("algorithms", facts["algorithms"], _ALGORITHM)


_ENVIRONMENT: Final = ("id", "cpus", "memory", "disk", "max_jobs", "max_job_time", "keep_results")
_DATA_SET: Final = (
    "label",
    "did",
    "service_id",
    "trusted_algorithms",
    "trusted_publishers",
    "raw_algorithms",
)
_ALGORITHM: Final = (
    "image",
    "did",
    "service_id",
    "owner",
    "contract",
    "files_checksum",
    "container_checksum",
)


def _show_list(title: str, entries: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    """Show each thing with a line for each fact: DIDs and checksums are there to be copied."""
    click.echo(f"\n{title}" if entries else f"\n{title}  none")
    for entry in entries:
        first, *others = names
        click.echo(f"  {screen.plain(entry[first])}")
        for name in others:
            if entry[name] not in ("", None, []):
                click.echo(f"    {name:<19} {screen.plain(_in_words(entry[name]))}")


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- grants ---------------------------------------------------------------------------------------------------


@click.group()
def grant() -> None:
    """Give consumers of the compute API the right to use data sets.

    They count with `compute_api.access: grants`, at once, also while the agent runs.
    """


@grant.command(
    epilog=examples(
        "grant create -c /etc/node-agent/alpha.yaml --consumer 0x19E7… --dataset patients",
        "grant create -c /etc/node-agent/alpha.yaml --consumer 0x19E7… --dataset patients --uses 10 --expires 30d",
    )
)
@config_option
@json_option
@click.option("--consumer", required=True, type=_Consumer(), help="Who may use it: the consumer's address.")
@click.option("--dataset", required=True, metavar="NAME", help="Which data set: its label or its DID.")
@click.option(
    "--uses", type=click.IntRange(1, _MOST_USES), metavar="N", help="How many jobs; any if not given."
)
@click.option(
    "--expires", type=_Expiry(), help="Until when: a day that still counts (UTC), or so long from now."
)
@click.pass_obj
def create(
    parts: "Parts",
    config: Path,
    *,
    as_json: bool,
    consumer: str,
    dataset: str,
    uses: int | None,
    expires: float | None,
) -> None:
    """Let a consumer use a data set.

    The id that is printed is what the consumer sends as `transferTxId`; without one the agent looks for a grant itself.
    It is no secret: it counts for this consumer's signature only.
    """
    from node_agent.compute.granting import create_grant

    settings = parts.load_place(config)
    made = create_grant(
        settings, consumer=consumer, data_set=dataset, uses=uses, expires_at=expires, now=time.time()
    )
    if as_json:
        click.echo(screen.as_json(_facts(made)))
    else:
        click.echo(f"grant     {made.grant.id}")
        click.echo("\n".join(_lines(made)))
    if settings.compute_api.access != "grants":
        access = settings.compute_api.access
        click.echo(f"→ Grants count only with compute_api.access: grants; it is {access} now.", err=True)


@grant.command(
    "list",
    epilog=examples(
        "grant list -c /etc/node-agent/alpha.yaml",
        "grant list -c /etc/node-agent/alpha.yaml --dataset patients --json",
    ),
)
@config_option
@json_option
@click.option("--consumer", type=_Consumer(), help="Only those of this consumer.")
@click.option("--dataset", metavar="NAME", help="Only those for this data set: its label or its DID.")
@click.pass_obj
def list_(parts: "Parts", config: Path, *, as_json: bool, consumer: str | None, dataset: str | None) -> None:
    """List the grants, oldest first, also those that no longer let in."""
    from node_agent.compute.granting import list_grants

    found = list_grants(parts.load_place(config), consumer=consumer, data_set=dataset, now=time.time())
    if as_json:
        click.echo(screen.as_json([_facts(seen) for seen in found]))
    elif not found:
        click.echo("No grants.")
    else:
        screen.show_table([_HEADING, *map(_row, found)])


@grant.command(epilog=examples("grant revoke -c /etc/node-agent/alpha.yaml 0x3f…"))
@config_option
@json_option
@click.argument("grant_id")
@click.pass_obj
def revoke(parts: "Parts", config: Path, *, as_json: bool, grant_id: str) -> None:
    """Take a grant back.

    No further job gets in by it; those that are here go on. May be repeated.
    """
    from node_agent.compute.granting import revoke_grant

    seen = revoke_grant(parts.load_place(config), grant_id, now=time.time())
    if as_json:
        click.echo(screen.as_json(_facts(seen)))
        return
    click.echo(f"The grant is revoked since {screen.moment(seen.grant.revoked_at)}.")


_HEADING: Final = ("grant", "consumer", "data set", "uses left", "expires", "state")


def _row(seen: "SeenGrant") -> list[str]:
    return [seen.grant.id, _shown(seen.grant.consumer), *_words(seen).values()]


def _lines(seen: "SeenGrant") -> list[str]:
    facts = {"consumer": _shown(seen.grant.consumer), **_words(seen)}
    return [f"{name:<9} {value}" for name, value in facts.items()]


def _words(seen: "SeenGrant") -> Mapping[str, str]:
    grant = seen.grant
    return {
        "data set": seen.label or f"{grant.data_set} (not offered)",
        "uses": "any" if grant.uses_left is None else str(grant.uses_left),
        "expires": screen.moment(grant.expires_at) or "never",
        "state": str(seen.state),
    }


def _facts(seen: "SeenGrant") -> dict[str, Any]:
    grant = seen.grant
    return {
        "id": grant.id,
        "consumer": _shown(grant.consumer),
        "data_set": grant.data_set,
        "label": seen.label,
        "uses_left": grant.uses_left,
        "created_at": screen.iso(grant.created_at),
        "expires_at": screen.iso(grant.expires_at),
        "revoked_at": screen.iso(grant.revoked_at),
        "state": str(seen.state),
    }


def _shown(address: str) -> str:
    """Write an address with its checksum's capitals, where the library for them is installed."""
    from node_agent.compute.signatures import Address, shown_address

    try:
        return shown_address(Address(address))
    except ImportError:
        return address
