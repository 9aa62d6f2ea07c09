"""What the policy asks for is found out, no more than needed, and nobody is believed who contradicts himself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent.admission import DEEPEST, METHOD_LIMIT, Admission, method_of
from node_agent.domain.policy import Combine, Policy, Restriction
from node_agent.domain.run import Run, RunId
from node_agent.domain.task import DatabaseRequest, OrganizationId, Task, TaskId
from node_agent.errors import NotAllowed, ServerUnreachable, StoreUnreachable
from node_agent.store.rundir import DiskRunFolders
from tests.doubles.clock import ManualClock
from tests.doubles.core import DIGEST, IMAGE, ServerBook, StoreBook, make_run, make_task

STORE = "https://store.example.org/api"
OTHER = "sha256:" + "b" * 64


class Bench:
    """An admission whose policy can be changed, and everybody it asks."""

    def __init__(self, state_dir: Path) -> None:
        self.server = ServerBook()
        self.stores = StoreBook()
        self.clock = ManualClock()
        self.folders = DiskRunFolders(state_dir, user=(65534, 65534))
        self.policy = Policy(algorithms=("registry.example.org/*",))

    def rule(self, **changes: Any) -> None:
        self.policy = replace(self.policy, **changes)

    @property
    def admission(self) -> Admission:
        return Admission(
            policy=self.policy,
            own_organization_id=OrganizationId(9),
            server=self.server,
            stores=self.stores,
            folders=self.folders,
            clock=self.clock,
        )

    def admits(self, run: Run, *, digest: str | None = DIGEST) -> bool:
        """Ask before and after the pull; both must agree unless only the digest was missing."""
        try:
            self.admission.admit(run)
            self.admission.admit_content(run, digest=digest)
        except NotAllowed:
            return False
        return True

    def refusal(self, run: Run, *, digest: str | None = DIGEST) -> str:
        with pytest.raises(NotAllowed) as refused:
            self.admission.admit_content(run, digest=digest)
        return str(refused.value)


@pytest.fixture
def bench(quick_dir: Path) -> Bench:
    return Bench(quick_dir)


def run_of(**task: Any) -> Run:
    return make_run(1, task=make_task(1, **task))


def test_a_verdict_stands_in_the_log_with_the_rule_that_decided(bench: Bench) -> None:
    with capture_logs() as lines:
        assert bench.admits(run_of())
        assert not bench.admits(run_of(image="evil.example/x"))
    allowed, refused = lines
    assert (allowed["event"], allowed["digest"]) == ("run_allowed", DIGEST)
    assert allowed["rule"] == "policy.algorithms: registry.example.org/*"
    assert (refused["event"], refused["rule"]) == ("run_refused", "policy.algorithms")


def test_a_refusal_names_image_and_rule_for_the_researcher(bench: Bench) -> None:
    bench.rule(users=(5,))
    text = bench.refusal(run_of(init_user_id=4))
    assert (
        text
        == f"This node does not allow the image {IMAGE} for this task: policy.users: user 4 is not listed."
    )


def test_nobody_is_asked_for_what_no_rule_needs(bench: Bench) -> None:
    for call in ("find_task", "organization_name", "store_url"):
        bench.server.faults.plan(call, AssertionError(call), times=9)
    assert bench.admits(run_of(parent_id=TaskId(4), store_id=3))
    assert bench.stores.asked == []


# --- who asks -----------------------------------------------------------------------------------------------------


def test_the_name_of_an_organization_is_looked_up(bench: Bench) -> None:
    bench.server.organizations[OrganizationId(3)] = "beta"
    bench.rule(organizations=("beta",))
    assert bench.admits(run_of(init_org_id=OrganizationId(3)))
    assert not bench.admits(run_of(init_org_id=OrganizationId(4)))
    assert not bench.admits(run_of(init_org_id=None))


def test_a_user_counts_by_name_only_where_the_server_tells_it(bench: Bench) -> None:
    bench.rule(users=("alice",))
    assert bench.admits(run_of(init_user_id=4, init_user_name="alice"))
    assert "do not tell nodes the names of users" in bench.refusal(run_of(init_user_id=4))


def subtask(bench: Bench, *, root_org: int, **above: Any) -> Run:
    """A subtask that organization 5 created for a task of *root_org*."""
    bench.server.tasks[TaskId(1)] = make_task(
        1, **{"init_org_id": OrganizationId(root_org), "init_user_id": 7, **above}
    )
    return make_run(2, task=make_task(2, parent_id=TaskId(1), init_org_id=OrganizationId(5), init_user_id=7))


def test_a_subtask_counts_for_whoever_asked_the_first_task(bench: Bench) -> None:
    bench.rule(organizations=(3,))
    assert bench.admits(subtask(bench, root_org=3))
    assert not bench.admits(subtask(bench, root_org=4))
    bench.rule(organizations=(5,))
    # being the node that carries out somebody's task makes nobody the one who asks
    assert not bench.admits(subtask(bench, root_org=4))


def test_a_node_for_its_own_organization_takes_part_in_its_own_tasks_wherever_they_are_led(
    bench: Bench,
) -> None:
    bench.rule(own_organization_only=True)
    assert bench.admits(subtask(bench, root_org=9))
    assert not bench.admits(subtask(bench, root_org=5))
    own = run_of(init_org_id=OrganizationId(9))
    assert bench.admits(own)


@pytest.mark.parametrize(
    "above",
    [{"job_id": 8}, {"init_user_id": 8}, {"init_user_id": None}, {"collaboration_id": 2}],
)
def test_a_first_task_that_does_not_fit_proves_nothing(bench: Bench, above: dict[str, Any]) -> None:
    bench.rule(organizations=(3,))
    assert "another job, user or collaboration" in bench.refusal(subtask(bench, root_org=3, **above))


def test_a_first_task_that_is_not_shown_proves_nothing(bench: Bench) -> None:
    bench.rule(organizations=(3,))
    run = subtask(bench, root_org=3)
    bench.server.tasks.clear()
    assert "does not show this node the task 1" in bench.refusal(run)


def test_a_ring_of_tasks_ends(bench: Bench) -> None:
    bench.rule(organizations=(3,))

    def ring(number: int, above: int) -> Task:
        return make_task(number, parent_id=TaskId(above), init_org_id=OrganizationId(3))

    bench.server.tasks = {TaskId(1): ring(1, 2), TaskId(2): ring(2, 1)}
    assert f"more than {DEEPEST} tasks" in bench.refusal(make_run(1, task=ring(1, 2)))


def test_a_server_that_is_away_is_asked_again_later(bench: Bench) -> None:
    bench.rule(organizations=("beta",))
    bench.server.faults.plan("organization_name", ServerUnreachable("away"))
    with pytest.raises(ServerUnreachable):
        bench.admission.admit(run_of(init_org_id=OrganizationId(3)))


# --- what is asked ------------------------------------------------------------------------------------------------


def test_the_method_is_read_from_the_input(bench: Bench) -> None:
    bench.rule(restrictions=(Restriction(image="registry.example.org/*", methods=("mean",)),))
    assert "is not there" in bench.refusal(run_of())
    bench.folders.store_input(RunId(1), [b'{"method": "mean", "kwargs": {"method": "other"}}'])
    assert bench.admits(run_of())


def test_another_method_is_refused_before_anything_is_pulled(bench: Bench) -> None:
    bench.rule(restrictions=(Restriction(image="registry.example.org/*", methods=("mean",)),))
    bench.folders.store_input(RunId(1), [b'{"method": "median"}'])
    with pytest.raises(NotAllowed, match=r"policy\.restrict\[0\]\.methods: the method median"):
        bench.admission.admit(run_of())


def test_the_databases_a_task_asks_for_are_judged(bench: Bench) -> None:
    bench.rule(restrictions=(Restriction(image="registry.example.org/*", databases=("default",)),))
    assert bench.admits(run_of(databases=(DatabaseRequest(label="default"),)))
    assert not bench.admits(
        run_of(databases=(DatabaseRequest(label="default"), DatabaseRequest(label="secret")))
    )


def test_the_method_is_found_however_it_is_written() -> None:
    assert method_of(b'{"args": [1.5, 9e999, -1], "method": "mean"}') == "mean"
    assert method_of(rb'{"m\u0065thod": "me\u0061n"}') == "mean"
    assert method_of(b' {"a": {"method": 1}, "method": "m\\nx"} ') == "m\nx"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "larger than"),
        (b"", "not JSON"),
        (b"\x80\x04pickle", "not JSON"),
        (b'\xef\xbb\xbf{"method": "mean"}', "not JSON"),
        ('{"method": "mean"}'.encode("utf-16"), "not JSON"),
        (b'{"method": "mean"', "not JSON"),
        (b'{"method": "mean"} {"method": "median"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'["method", "mean"]', "not a JSON object"),
        (b'"mean"', "not a JSON object"),
        (b"{}", "names no method"),
        (b'{"Method": "mean"}', "names no method"),
        (b'{"kwargs": {"method": "mean"}}', "names no method"),
        (b'{"method": "mean", "method": "median"}', "more than one method"),
        (rb'{"method": "mean", "m\u0065thod": "median"}', "more than one method"),
        (b'{"method": ["mean"]}', "is not text"),
        (b'{"method": null}', "is not text"),
        (b'{"method": 1}', "is not text"),
        (b'{"method": {"method": "mean"}}', "is not text"),
    ],
)
def test_a_method_that_could_be_read_in_two_ways_is_none(content: bytes | None, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        method_of(content)


def test_an_input_too_large_to_look_into_is_refused(bench: Bench) -> None:
    bench.rule(restrictions=(Restriction(image="registry.example.org/*", methods=("mean",)),))
    padding = b" " * METHOD_LIMIT
    bench.folders.store_input(RunId(1), [b'{"method": "mean"}', padding])
    assert "larger than 16 MiB" in bench.refusal(run_of())


# --- stores -------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_store(bench: Bench) -> Bench:
    bench.rule(algorithms=None, stores=(STORE,))
    bench.server.stores[3] = STORE
    bench.stores.approved.add((STORE, IMAGE, DIGEST))
    return bench


def test_a_store_confirms_the_content_that_will_run(with_store: Bench) -> None:
    assert with_store.admits(run_of(store_id=3))
    assert with_store.stores.asked == [(STORE, IMAGE, DIGEST)]
    assert not with_store.admits(run_of(store_id=3), digest=OTHER)


def test_an_image_named_with_its_digest_is_asked_about_before_the_pull(with_store: Bench) -> None:
    image = f"{IMAGE}@{OTHER}"
    with pytest.raises(NotAllowed, match="it has no such algorithm"):
        with_store.admission.admit(run_of(store_id=3, image=image))
    assert with_store.stores.asked == [(STORE, image, OTHER)]


def test_a_store_that_no_rule_names_is_never_asked(with_store: Bench) -> None:
    with_store.server.stores[3] = "https://evil.example/api"
    assert "no entry names the store https://evil.example/api" in with_store.refusal(run_of(store_id=3))
    assert with_store.stores.asked == []


def test_a_task_without_a_store_is_refused(with_store: Bench) -> None:
    assert "the task names no algorithm store" in with_store.refusal(run_of())


def test_a_store_the_server_does_not_show_is_refused(with_store: Bench) -> None:
    assert "does not show this node the store 4" in with_store.refusal(run_of(store_id=4))


def test_an_image_without_a_registry_digest_cannot_be_confirmed(with_store: Bench) -> None:
    with_store.admission.admit(run_of(store_id=3))
    assert "no digest of a registry" in with_store.refusal(run_of(store_id=3), digest=None)


def test_a_silent_store_is_asked_again_later(with_store: Bench) -> None:
    with_store.stores.faults.plan("approval", StoreUnreachable("silent"))
    with pytest.raises(StoreUnreachable):
        with_store.admission.admit_content(run_of(store_id=3), digest=DIGEST)


def test_with_either_the_list_is_enough_and_the_store_helps_where_it_is_not(with_store: Bench) -> None:
    with_store.rule(algorithms=("listed.example.org/*",), combine=Combine.EITHER)
    assert with_store.admits(run_of(image="listed.example.org/x"))
    assert with_store.stores.asked == []
    assert with_store.admits(run_of(store_id=3))
    assert not with_store.admits(run_of(image="elsewhere.example/x", store_id=3))


def test_a_list_that_waits_for_the_digest_lets_the_pull_happen_and_no_more(bench: Bench) -> None:
    bench.rule(algorithms=(f"{IMAGE}@{DIGEST}",))
    bench.admission.admit(run_of())
    assert bench.admits(run_of())
    assert not bench.admits(run_of(), digest=OTHER)
    assert not bench.admits(run_of(), digest=None)
