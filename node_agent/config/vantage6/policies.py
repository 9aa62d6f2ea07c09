"""What may run: the old node's lists as rules that allow nothing more than before.

Owns the differences between both kinds of policy. Must not know how a rule is judged.
"""

import re
from collections.abc import Callable

from node_agent.config.document import Loc
from node_agent.config.vantage6.draft import Draft, Weight
from node_agent.config.vantage6.patterns import KeptOut, expression_rules, image_rules, store_rules

_ALGORITHMS: Loc = ("policy", "algorithms")
_STORES: Loc = ("policy", "algorithm_stores")
_ID = re.compile(r"[1-9][0-9]{0,18}\Z")


def carry_lists(draft: Draft) -> None:
    """Carry over which images and stores are allowed."""
    _carry(draft, ("policies", "allowed_algorithms"), _ALGORITHMS, image_rules)
    _carry(draft, ("allowed_images",), _ALGORITHMS, expression_rules)
    _carry(draft, ("policies", "allowed_algorithm_stores"), _STORES, store_rules)
    if not _given(draft, "allowed_algorithms", "allowed_algorithm_stores") and not draft.old.at(
        "allowed_images"
    ):
        _say_that_everything_was_allowed(draft)
    _combine(draft)


def _say_that_everything_was_allowed(draft: Draft) -> None:
    draft.put(_ALGORITHMS, ())
    draft.say(
        Weight.DECIDE,
        ("policies",),
        "named no algorithms and no stores, so everybody's code was allowed to run; here nothing runs before you say what "
        "may",
        here=_ALGORITHMS,
    )
    draft.remark(_ALGORITHMS, "for example:", "- registry.example.org/approved/*")


def _given(draft: Draft, *keys: str) -> bool:
    return any(draft.old.at("policies", key) for key in keys)


def _carry(draft: Draft, old: Loc, here: Loc, rules_of: Callable[[str], list[str]]) -> None:
    if not draft.old.at(*old):
        return
    rules: list[str] = []
    for place, pattern in draft.texts(*old):
        try:
            rules += rules_of(pattern.strip())
        except KeptOut as kept:
            _keep_out(draft, place, here, kept, pattern)
    for index, rule in enumerate(dict.fromkeys(rules)):
        draft.put((*here, index), rule)
        _say_what_is_open(draft, (*here, index), rule)
    if not rules:
        draft.put(here, ())


def _keep_out(draft: Draft, old: Loc, here: Loc, kept: KeptOut, pattern: str) -> None:
    draft.say(Weight.DECIDE, old, f"{pattern} is not carried over: it {kept.reason}", here=here)
    for line, meaning in kept.offers:
        draft.remark(here, "", f"- {line}   # {meaning}")


def _say_what_is_open(draft: Draft, here: Loc, rule: str) -> None:
    if rule.endswith("*") and not rule.endswith("/*"):
        draft.remark(
            here, f"was not anchored at its end: everything that begins with {rule.rstrip('*')} is allowed"
        )


def _combine(draft: Draft) -> None:
    old: Loc = ("policies", "allow_either_whitelist_or_store")
    either = draft.truth(*old)
    here: Loc = ("policy", "combine")
    if either is None:
        return
    draft.put(here, "either" if either else "both")
    if either and not (_given(draft, "allowed_algorithms") and _given(draft, "allowed_algorithm_stores")):
        draft.say(
            Weight.CHANGED,
            old,
            "with one list only allowed every image there; here that one list decides",
            here=here,
        )


def carry_people(draft: Draft) -> None:
    """Carry over who may start tasks."""
    for key, setting in (("allowed_users", "users"), ("allowed_organizations", "organizations")):
        _people(draft, ("policies", key), ("policy", setting))
    if _given(draft, "allowed_users") and _given(draft, "allowed_organizations"):
        draft.say(
            Weight.CHANGED,
            ("policies", "allowed_users"),
            "and allowed_organizations stood beside each other, and one of them was enough; here both must allow",
            here=("policy", "users"),
        )


def _people(draft: Draft, old: Loc, here: Loc) -> None:
    value = draft.old.at(*old)
    if value == []:
        draft.say(
            Weight.NOTE,
            old,
            "was empty and allowed everybody; here an empty list means nobody, so it is left out",
        )
        return
    for place, text in draft.texts(*old):
        who = int(text) if _ID.match(text) else text
        if who in (value for loc, value in draft.values.items() if loc[:-1] == here):
            continue
        index = draft.count(*here)
        draft.put((*here, index), who)
        item = draft.old.at(*place)
        if isinstance(item, int) and not isinstance(item, bool):
            draft.say(
                Weight.CHANGED,
                place,
                "as a number never matched there, so this one was refused; here it is the id and is allowed",
                here=(*here, index),
            )
        elif isinstance(who, str) and here[-1] == "users":
            draft.say(
                Weight.DECIDE,
                place,
                "is a name: a server that does not tell names to nodes cannot prove it, so give the id",
                here=(*here, index),
            )


def carry_basics(draft: Draft) -> None:
    """Carry over whether the basics algorithm is refused."""
    allowed = draft.truth("policies", "allow_basics_algorithm")
    if allowed is not None:
        draft.put(("policy", "basics_algorithm"), allowed)


def carry_pull(draft: Draft) -> None:
    """Carry over what happens when an image cannot be pulled."""
    required = draft.truth("policies", "require_algorithm_pull")
    if required is None:
        return
    draft.put(("images", "pull"), "always" if required else "missing")
    if not required:
        draft.say(
            Weight.CHANGED,
            ("policies", "require_algorithm_pull"),
            "pulled first and fell back on the image here; missing never asks for an image that is here",
            here=("images", "pull"),
        )


def carry_gpu(draft: Draft) -> None:
    """Give GPUs to the images that are allowed, not to everything."""
    old: Loc = ("algorithm_device_requests", "gpu")
    if not draft.truth(*old):
        return
    rules = [value for loc, value in draft.values.items() if loc[:2] == _ALGORITHMS and len(loc) > 2]  # noqa: PLR2004 - an item of the list
    for index, rule in enumerate(rules):
        draft.put(("policy", "gpu", index), rule)
    here: Loc = ("policy", "gpu")
    if not rules:
        draft.put(here, ())
    draft.say(
        Weight.CHANGED if rules else Weight.DECIDE,
        old,
        "gave every run all GPUs; here only the images named in this list get them: keep those that need one",
        here=here,
    )
