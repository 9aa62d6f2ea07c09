"""How bodies lie while they pass through: in memory or on disk, within bounds, and gone afterwards."""

import os

import pytest

from node_agent.proxy.spool import IN_MEMORY, NoRoom, Spool

LARGE = bytes(range(256)) * 1000


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state" / "proxy"


@pytest.fixture
def spool(folder):
    return Spool(folder, total=10 * len(LARGE))


def filled(spool, content):
    body = spool.body("a")
    for at in range(0, len(content), 10_000):
        body.append(content[at : at + 10_000])
    return body


def large(spool, owner="a"):
    body = spool.body(owner)
    body.append(LARGE)
    return body


@pytest.mark.parametrize("size", [0, 1, IN_MEMORY - 1, IN_MEMORY, IN_MEMORY + 1, len(LARGE)])
def test_a_body_comes_back_as_it_came_and_as_often_as_it_is_read(spool, size):
    body = filled(spool, LARGE[:size])
    assert body.length == len(body) == size
    assert b"".join(body) == b"".join(body) == LARGE[:size]
    body.close()


def test_only_a_large_body_takes_room_and_closing_gives_it_back(spool):
    small, big = filled(spool, LARGE[:IN_MEMORY]), large(spool)
    assert (small.in_memory, big.in_memory) == (True, False)
    assert spool.taken == len(LARGE)
    for body in (small, big, big):
        body.close()
    assert spool.taken == 0


def test_a_body_is_read_like_a_file(spool):
    body = filled(spool, LARGE)
    file = body.getfile()
    assert file.seekable()
    assert file.read(3) == LARGE[:3]
    assert file.tell() == 3
    assert file.seek(2, os.SEEK_CUR) == 5
    assert file.read(4) == LARGE[5:9]
    assert file.seek(0, os.SEEK_END) == len(LARGE)
    assert file.read() == b""
    file.seek(0)
    assert file.read() == LARGE
    body.close()


def test_a_body_on_disk_has_no_name_that_could_stay(spool, folder):
    body = filled(spool, LARGE)
    assert list(folder.iterdir()) == []
    body.close()


def test_a_closed_body_takes_nothing_more(spool):
    body = filled(spool, LARGE)
    body.close()
    body.append(LARGE)
    assert spool.taken == 0


def test_one_container_gets_half_of_the_room_and_another_one_the_rest(spool):
    first = [large(spool, "a") for _ in range(5)]
    with pytest.raises(NoRoom, match="this researcher"):
        large(spool, "a")
    second = [large(spool, "b") for _ in range(5)]
    with pytest.raises(NoRoom, match="no room on disk"):
        large(spool, "c")
    for body in first + second:
        body.close()
    assert spool.taken == 0


def test_the_last_of_the_disk_is_left_to_others(folder):
    spool = Spool(folder, total=1 << 30, keep_free=1 << 60)
    assert b"".join(filled(spool, LARGE[:IN_MEMORY])) == LARGE[:IN_MEMORY]
    body = spool.body("a")
    with pytest.raises(NoRoom, match="nearly full"):
        body.append(LARGE)
    body.close()
    assert spool.taken == 0


def test_a_place_is_held_and_gone_with_all_that_lies_in_it(spool, folder):
    with spool.place("a", 1000) as place:
        (place / "text").write_bytes(b"x")
        assert spool.taken == 1000
    assert spool.taken == 0
    assert list(folder.iterdir()) == []


def test_a_place_that_is_too_large_is_not_given(spool, folder):
    with pytest.raises(NoRoom), spool.place("a", 6 * len(LARGE)):
        pass
    assert (spool.taken, list(folder.iterdir())) == (0, [])


def test_what_an_earlier_process_left_is_gone_at_the_start(folder):
    left = folder / "tmpxyz"
    left.mkdir(parents=True)
    (left / "text-1").write_bytes(b"left")
    Spool(folder, total=1000)
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_takes_no_file_is_no_room_and_costs_none(spool, folder):
    body = spool.body("a")
    folder.rmdir()
    folder.write_bytes(b"in the way")
    with pytest.raises(NoRoom, match="disk"):
        body.append(LARGE)
    body.close()
    assert spool.taken == 0
