import threading

import pytest

from node_agent.errors import RunClosed
from node_agent.runtime.stream import StreamStalled, lines_of


class Answer:
    """An engine's streamed answer; *silent* ones never say anything until they are hung up."""

    def __init__(self, chunks=(), *, silent=False, fault=None):
        self._chunks, self._silent, self._fault = chunks, silent, fault
        self.closed = threading.Event()
        self.raw = self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed.set()

    def iter_content(self, chunk_size):
        yield from self._chunks
        if self._silent:
            self.closed.wait()
        if self._fault is not None:
            raise self._fault

    def shutdown(self):
        self.closed.set()


def read(answer, *, patience=60.0, tick=60.0, on_tick=lambda: None):
    return list(lines_of(lambda: answer, patience=patience, tick=tick, on_tick=on_tick))


def test_lines_are_put_together_from_any_pieces():
    assert read(Answer([b"on", b"e\r\ntwo\n\nth", b"ree"])) == [b"one", b"two", b"three"]


def test_an_empty_answer_has_no_lines():
    assert read(Answer()) == []


def test_the_answer_is_hung_up_at_the_end():
    answer = Answer([b"one\n"])
    read(answer)
    assert answer.closed.wait(10)


def test_a_fault_of_the_stream_is_raised_where_it_is_read():
    with pytest.raises(ConnectionResetError):
        read(Answer([b"one\n"], fault=ConnectionResetError()))


def test_a_question_that_is_refused_is_raised_where_the_answer_is_read():
    def refuse():
        raise RunClosed("refused")

    with pytest.raises(RunClosed):
        list(lines_of(refuse, patience=60.0, tick=60.0, on_tick=lambda: None))


def test_a_reader_may_leave_before_the_answer_begins():
    asked, answered = threading.Event(), threading.Event()

    def slow():
        asked.set()
        answered.wait()
        return Answer()

    def leave():
        if asked.is_set():
            raise RunClosed("called off")

    with pytest.raises(RunClosed):
        list(lines_of(slow, patience=60.0, tick=0.001, on_tick=leave))
    answered.set()


def test_silence_ends_when_patience_does():
    answer = Answer([b"one\n"], silent=True)
    with pytest.raises(StreamStalled):
        read(answer, patience=0.0, tick=0.001)
    assert answer.closed.is_set()


def test_a_reader_may_leave_while_the_stream_is_silent():
    answer = Answer(silent=True)

    def leave():
        raise RunClosed("called off")

    with pytest.raises(RunClosed):
        read(answer, tick=0.001, on_tick=leave)
    assert answer.closed.is_set()
