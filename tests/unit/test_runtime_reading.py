import pytest

from node_agent.domain.container import Phase
from node_agent.runtime.connection import readable
from node_agent.runtime.reading import report_of, run_of_labels, seconds_of


def described(status, **state):
    return {"Id": "c1", "Config": {"Labels": {"node-agent.run": "7"}}, "State": {"Status": status, **state}}


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ("created", Phase.CREATED),
        ("running", Phase.RUNNING),
        ("paused", Phase.RUNNING),
        ("restarting", Phase.RUNNING),
        ("exited", Phase.EXITED),
        ("dead", Phase.EXITED),
        ("removing", Phase.EXITED),
    ],
)
def test_the_engines_words_become_phases(status, phase):
    assert report_of(described(status)).phase is phase


def test_an_exit_code_counts_only_after_the_end():
    assert report_of(described("running", ExitCode=0)).exit_code is None
    assert report_of(described("exited", ExitCode=3)).exit_code == 3


def test_a_report_carries_what_the_engine_says():
    report = report_of(
        described(
            "exited",
            ExitCode=137,
            OOMKilled=True,
            StartedAt="2024-01-01T00:00:00.5Z",
            FinishedAt="2024-01-01T00:00:01.123456789Z",
            Error="bad\nluck",
        )
    )
    assert report.out_of_memory
    assert report.started_at == 1704067200.5
    assert report.finished_at == pytest.approx(1704067201.123456)
    assert report.error == "bad luck"


def test_a_container_of_a_moment_does_not_end_before_it_begins():
    report = report_of(
        described("exited", StartedAt="2024-01-01T00:00:00.002Z", FinishedAt="2024-01-01T00:00:00.001Z")
    )
    assert report.finished_at == report.started_at


@pytest.mark.parametrize(
    "labels", [None, {}, {"node-agent.run": "x"}, {"node-agent.run": "-1"}, {"node-agent.run": "²"}]
)
def test_a_container_without_a_readable_run_has_none(labels):
    assert run_of_labels(labels) is None


@pytest.mark.parametrize("never", ["0001-01-01T00:00:00Z", "", None, "yesterday"])
def test_never_is_no_moment(never):
    assert seconds_of(never) is None


@pytest.mark.parametrize(
    "moment", ["1970-01-01T00:00:10Z", "1970-01-01T01:00:10+01:00", "1970-01-01T00:00:10.000000001Z"]
)
def test_moments_are_read_in_any_of_their_forms(moment):
    assert seconds_of(moment) == 10


def test_the_engines_wrapping_is_taken_off_its_sentence():
    text = (
        "failed to create shim task: OCI runtime create failed: runc create failed: "
        'unable to start container process: exec: "/x": no such file or directory: unknown'
    )
    assert readable(text) == 'unable to start container process: exec: "/x": no such file or directory'
