"""Whose call has a thread next."""

import pytest

from node_agent.proxy.turns import LOOKS, NOBODY, SHARE, FairQueue


class Call:
    def __init__(self, researcher, number=0):
        self.researcher = researcher
        self.number = number
        self.ended = ""

    def service(self):
        self.ended = "served"
        if self.number < 0:
            raise RuntimeError("a bug")

    def cancel(self):
        self.ended = "cancelled"


@pytest.fixture
def queue():
    def is_over(name):
        found.is_over(name)

    found = FairQueue(is_over)
    return found


def taken(queue):
    turn = queue.popleft()
    return turn._task.researcher, turn._task.number


def test_calls_of_one_researcher_keep_their_order(queue):
    for number in range(3):
        queue.append(Call("alice", number))
    assert [taken(queue) for _ in range(3)] == [("alice", number) for number in range(3)]
    assert not queue


def test_researchers_take_turns_however_many_calls_one_of_them_has(queue):
    for number in range(5):
        queue.append(Call("alice", number))
    queue.append(Call("bob", 0))
    queue.append(Call("carol", 0))
    assert [taken(queue)[0] for _ in range(4)] == ["alice", "bob", "carol", "alice"]


@pytest.mark.parametrize(("name", "share"), [("alice", SHARE), (NOBODY, 4), (LOOKS, 8)])
def test_nobody_has_more_than_a_share_of_the_threads(queue, name, share):
    for number in range(share + 3):
        queue.append(Call(name, number))
    turns = [queue.popleft() for _ in range(share)]
    assert not queue
    assert len(queue) == 3
    with pytest.raises(IndexError):
        queue.popleft()
    queue.append(Call("bob"))
    assert taken(queue) == ("bob", 0)
    turns[0].service()
    assert taken(queue) == (name, share)


def test_a_call_that_fails_gives_its_thread_back(queue):
    for _ in range(SHARE + 1):
        queue.append(Call("alice", -1))
    turns = [queue.popleft() for _ in range(SHARE)]
    assert not queue
    with pytest.raises(RuntimeError):
        turns[0].service()
    assert queue


def test_whatever_waits_can_be_cancelled(queue):
    calls = [Call("alice") for _ in range(SHARE + 5)]
    for call in calls:
        queue.append(call)
    while queue:
        queue.popleft().cancel()
    assert {call.ended for call in calls} == {"cancelled"}
