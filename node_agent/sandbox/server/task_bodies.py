"""What a task may look like when it is asked for: as clients of today write it, and as older ones do.

Owns the reading of both forms into one. Must not know who may create a task.

The older form has one `input` for everybody and `organization_ids` instead of an input for each organization. Its
input may be plain text or JSON; nodes want base64, so it is put into base64 here, unless it is that already.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from node_agent.sandbox.server.call import Body
from node_agent.sandbox.server.refusal import bad, bad_field
from node_agent.sandbox.server.work import NewTask

_DATABASE_KEYS: Final = frozenset({"label", "query", "sheet_name", "preprocessing", "arguments"})
_LONGEST_DESCRIPTION: Final = 1024
_LONGEST_NAME: Final = 256


def read_task(body: Body, members: Sequence[int]) -> NewTask:
    """Read a task for a collaboration with these members; refuse what makes no sense."""
    is_older = "organizations" not in body and "input" in body
    inputs, is_plain = _older_inputs(body, members) if is_older else (_inputs(body), False)
    if not inputs:
        raise bad_field("organizations", "At least one organization is needed.")
    if not set(inputs) <= set(members):
        raise bad("At least one of the supplied organizations in not within the collaboration.")
    return NewTask(
        name=_short(body, "name", _LONGEST_NAME),
        description=_short(body, "description", _LONGEST_DESCRIPTION),
        image=_image(body),
        collaboration_id=body.number("collaboration_id"),
        inputs=inputs,
        databases=_databases(body),
        is_plain=is_plain,
    )


def _short(body: Body, field: str, longest: int) -> str:
    text = body.text_or(field, "")
    if len(text) > longest:
        raise bad_field(field, f"Longer than {longest} characters.")
    return text


def _image(body: Body) -> str:
    image = body.text("image").strip()
    if not image:
        raise bad_field("image", "Missing data for required field.")
    return image


def _inputs(body: Body) -> dict[int, str]:
    inputs: dict[int, str] = {}
    for entry in body.list("organizations"):
        if not isinstance(entry, dict):
            raise bad_field("organizations", "Each must be an object with `id` and `input`.")
        each = Body(entry)
        organization_id = each.number("id")
        if organization_id in inputs:
            raise bad_field("organizations", f"Organization {organization_id} is named twice.")
        inputs[organization_id] = each.text("input")
    return inputs


# --- the older form ---------------------------------------------------------------------------------------------


def _older_inputs(body: Body, members: Sequence[int]) -> tuple[dict[int, str], bool]:
    text, is_plain = older_input(body.any("input"))
    wanted = body.list("organization_ids") if "organization_ids" in body else members
    if not all(type(organization_id) is int for organization_id in wanted):
        raise bad_field("organization_ids", "Not a list of numbers.")
    return dict.fromkeys(wanted, text), is_plain


def older_input(given: object) -> tuple[str, bool]:
    """Give an input in base64, and whether it came as something else."""
    text = given if isinstance(given, str) else json.dumps(given)
    if _holds_json(text):
        return text, False
    return base64.b64encode(text.encode()).decode(), True


def _holds_json(text: str) -> bool:
    """Tell whether a text is base64 of JSON; a plain word may happen to be base64, but not of JSON."""
    try:
        json.loads(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return False
    return True


def older_result(result: str | None, *, is_plain: bool) -> str | None:
    """Give a result in the form the input came in: as text if that was plain and the result is text."""
    if result is None or not is_plain:
        return result
    try:
        return base64.b64decode(result, validate=True).decode()
    except (binascii.Error, ValueError):
        return result


# --- databases --------------------------------------------------------------------------------------------------


def _databases(body: Body) -> list[Mapping[str, Any]]:
    if "databases" not in body:
        return [{"label": body.text("database")}] if "database" in body else []
    wanted = body.any("databases")
    if isinstance(wanted, str):
        return [{"label": wanted}]
    return [_database(entry) for entry in body.list("databases")]


def _database(entry: object) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise bad_field("databases", "Each must be an object with a `label`.")
    if not isinstance(entry.get("label"), str) or not entry["label"]:
        raise bad(f"Database label missing! Each database needs one; this has {', '.join(map(str, entry))}")
    unknown = set(entry) - _DATABASE_KEYS
    if unknown:
        raise bad_field("databases", f"Unknown: {', '.join(sorted(map(str, unknown)))}.")
    return entry
