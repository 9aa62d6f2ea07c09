"""The folders of runs: every call may be repeated, and nothing an algorithm leaves there can hurt or stay."""

import errno
import hashlib
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node_agent.domain.ports import Folders
from node_agent.domain.run import RunId
from node_agent.domain.secret import Secret
from node_agent.domain.task import JobKey
from node_agent.errors import DiskFull, DiskUnwritable, InputChanged, InputUnreadable, OutputTooLarge
from node_agent.store.disk import disk_errors
from node_agent.store.rundir import DiskRunFolders

RUN = RunId(12)
JOB = JobKey("7-1")
USER = (65534, 65534)
LIMIT = 1000
LATER = 4_000_000_000.0


@pytest.fixture
def folders(own_dir: Path) -> DiskRunFolders:
    return DiskRunFolders(own_dir, user=USER)


def prepare(folders: DiskRunFolders, token: str = "token-1") -> Folders:
    folders.store_input(RUN, [b"input"])
    return folders.prepare(RUN, JOB, token=Secret(token), open_to_all=False)


def task_of(prepared: Folders) -> Path:
    return prepared.private / "task-000000012"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- before the container -------------------------------------------------------------------------------------


def test_the_input_listed_first_is_kept_and_another_one_is_refused(folders: DiskRunFolders) -> None:
    assert not folders.has_input(RUN)
    digest = folders.store_input(RUN, [b"fir", b"st"])
    assert digest == hashlib.sha256(b"first").hexdigest() == folders.input_digest(RUN)
    assert folders.store_input(RUN, [b"first"]) == digest
    with pytest.raises(InputChanged):
        folders.store_input(RUN, [b"second"])
    assert folders.has_input(RUN)
    prepared = folders.prepare(RUN, JOB, token=Secret("t"), open_to_all=False)
    assert (task_of(prepared) / "input").read_bytes() == b"first"
    assert folders.input_digest(RUN) is None


def test_an_input_that_arrives_while_another_one_is_kept_does_not_replace_it(folders: DiskRunFolders) -> None:
    def late() -> Iterator[bytes]:
        yield b"sec"
        folders.store_input(RUN, [b"first"])
        yield b"ond"

    with pytest.raises(InputChanged):
        folders.store_input(RUN, late())
    assert folders.read_input(RUN, limit=100) == b"first"


def test_an_input_that_arrives_while_the_container_takes_the_first_over_is_thrown_away(
    folders: DiskRunFolders, own_dir: Path
) -> None:
    def late() -> Iterator[bytes]:
        yield b"sec"
        prepare(folders)
        yield b"ond"

    folders.store_input(RUN, late())
    prepared = folders.prepare(RUN, JOB, token=Secret("t"), open_to_all=False)
    assert (task_of(prepared) / "input").read_bytes() == b"input"
    assert not list(own_dir.glob("runs/*/.input*"))


def test_nothing_of_an_input_that_breaks_off_is_kept(folders: DiskRunFolders, own_dir: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise InputUnreadable("damaged")

    with pytest.raises(InputUnreadable):
        folders.store_input(RUN, broken())
    assert not folders.has_input(RUN)
    assert [path for path in own_dir.rglob("*") if path.is_file()] == []


def test_the_input_is_not_kept_again_when_the_container_has_it(folders: DiskRunFolders) -> None:
    prepared = prepare(folders)
    folders.store_input(RUN, [b"another"])
    folders.prepare(RUN, JOB, token=Secret("t"), open_to_all=False)
    assert (task_of(prepared) / "input").read_bytes() == b"input"


def test_a_container_finds_input_output_and_token(folders: DiskRunFolders) -> None:
    prepared = prepare(folders)
    names = {path.name: path.read_bytes() for path in task_of(prepared).iterdir()}
    assert names == {"input": b"input", "output": b"", "token": b"token-1"}


def test_preparing_again_renews_the_token_and_keeps_the_output(folders: DiskRunFolders) -> None:
    prepared = prepare(folders)
    (task_of(prepared) / "output").write_bytes(b"42")
    assert prepare(folders, "token-2") == prepared
    assert (task_of(prepared) / "token").read_bytes() == b"token-2"
    assert (task_of(prepared) / "output").read_bytes() == b"42"


@pytest.mark.parametrize("leftover", [".input.new", ".token.new"])
def test_preparing_again_after_a_stop_in_the_middle_works(folders: DiskRunFolders, leftover: str) -> None:
    prepared = prepare(folders)
    (task_of(prepared) / leftover).write_bytes(b"half")
    (task_of(prepared) / "output").unlink()
    prepare(folders)
    assert (task_of(prepared) / "token").read_bytes() == b"token-1"


def test_only_the_owner_enters_a_run_folder(folders: DiskRunFolders, own_dir: Path) -> None:
    prepared = prepare(folders)
    for path in (own_dir / "runs", own_dir / "runs" / "000000012", prepared.private, prepared.temporary):
        assert mode_of(path) == 0o700
    for name in ("input", "output", "token"):
        assert mode_of(task_of(prepared) / name) == 0o600


def test_what_the_container_uses_belongs_to_its_user(folders: DiskRunFolders) -> None:
    prepared = prepare(folders)
    for path in (prepared.private, task_of(prepared), task_of(prepared) / "output", prepared.temporary):
        assert (path.stat().st_uid, path.stat().st_gid) == USER


def test_an_image_with_its_own_user_gets_in_by_mode(folders: DiskRunFolders) -> None:
    folders.store_input(RUN, [b"input"])
    prepared = folders.prepare(RUN, JOB, token=Secret("t"), open_to_all=True)
    assert mode_of(task_of(prepared)) == 0o777
    assert mode_of(task_of(prepared) / "output") == 0o666


def test_runs_of_one_job_share_their_temporary_folder_and_nothing_else(folders: DiskRunFolders) -> None:
    first = prepare(folders)
    folders.store_input(RunId(13), [b"other"])
    second = folders.prepare(RunId(13), JOB, token=Secret("t"), open_to_all=False)
    assert first.temporary == second.temporary
    assert first.private != second.private


# --- the output -----------------------------------------------------------------------------------------------


def test_the_output_becomes_the_result(folders: DiskRunFolders) -> None:
    prepared = prepare(folders)
    (task_of(prepared) / "output").write_bytes(b"42")
    assert folders.result_path(RUN) is None
    assert folders.capture_output(RUN, limit=LIMIT) == 2
    result = folders.result_path(RUN)
    assert result is not None
    assert result.read_bytes() == b"42"
    assert mode_of(result) == 0o600


def test_capturing_again_gives_the_same_result(folders: DiskRunFolders) -> None:
    prepared = prepare(folders)
    (task_of(prepared) / "output").write_bytes(b"42")
    folders.capture_output(RUN, limit=LIMIT)
    (task_of(prepared) / "output").write_bytes(b"something else")
    assert folders.capture_output(RUN, limit=LIMIT) == 2


def test_an_output_of_exactly_the_limit_is_taken(folders: DiskRunFolders) -> None:
    (task_of(prepare(folders)) / "output").write_bytes(b"x" * LIMIT)
    assert folders.capture_output(RUN, limit=LIMIT) == LIMIT


def test_a_larger_output_is_refused_with_both_numbers(folders: DiskRunFolders) -> None:
    (task_of(prepare(folders)) / "output").write_bytes(b"x" * (LIMIT + 1))
    with pytest.raises(OutputTooLarge, match=r"1,001 bytes.*1,000"):
        folders.capture_output(RUN, limit=LIMIT)
    assert folders.result_path(RUN) is None


# --- sealed results -------------------------------------------------------------------------------------------


def captured(folders: DiskRunFolders, content: bytes = b"42") -> None:
    (task_of(prepare(folders)) / "output").write_bytes(content)
    folders.capture_output(RUN, limit=LIMIT)


def test_a_sealed_result_takes_the_place_of_the_plain_one(folders: DiskRunFolders) -> None:
    captured(folders)
    assert folders.sealed_path(RUN) is None
    folders.seal_result(RUN, [b"sea", b"led"])
    assert folders.result_path(RUN) is None
    sealed = folders.sealed_path(RUN)
    assert sealed is not None
    assert sealed.read_bytes() == b"sealed"
    assert mode_of(sealed) == 0o600


def test_after_a_stop_between_the_two_results_the_plain_one_goes_and_nothing_is_sealed_again(
    folders: DiskRunFolders, own_dir: Path
) -> None:
    captured(folders)
    (own_dir / "runs" / "000000012" / "result.sealed").write_bytes(b"sealed")
    folders.seal_result(RUN, [b"another"])
    sealed = folders.sealed_path(RUN)
    assert (folders.result_path(RUN), sealed and sealed.read_bytes()) == (None, b"sealed")
    folders.seal_result(RUN, [b"another"])


def test_half_of_a_sealed_result_does_not_count(folders: DiskRunFolders, own_dir: Path) -> None:
    captured(folders)
    (own_dir / "runs" / "000000012" / ".result.sealed.new").write_bytes(b"half of a longer one")
    assert folders.sealed_path(RUN) is None
    folders.seal_result(RUN, [b"sealed"])
    sealed = folders.sealed_path(RUN)
    assert sealed is not None
    assert sealed.read_bytes() == b"sealed"


def test_a_seal_that_breaks_off_leaves_the_plain_result(folders: DiskRunFolders, own_dir: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError(errno.ENOSPC, "No space left on device")

    captured(folders)
    with pytest.raises(DiskFull):
        folders.seal_result(RUN, broken())
    assert folders.result_path(RUN) is not None
    assert [file.name for file in (own_dir / "runs" / "000000012").glob("*result.sealed*")] == []


def test_an_output_is_not_taken_over_again_once_it_was_sealed(folders: DiskRunFolders) -> None:
    captured(folders)
    folders.seal_result(RUN, [b"sealed"])
    assert folders.capture_output(RUN, limit=LIMIT) == len(b"sealed")
    assert folders.result_path(RUN) is None


def test_the_plain_result_goes_only_when_the_sealed_one_is_on_the_disk(
    folders: DiskRunFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    unlink = Path.unlink

    def sync(descriptor: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    def remove(path: Path, missing_ok: bool = False) -> None:
        done.append(f"remove {path.name}")
        unlink(path, missing_ok=missing_ok)

    captured(folders)
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "unlink", remove)
    folders.seal_result(RUN, [b"sealed"])
    assert done == ["sync .result.sealed.new", "sync 000000012", "remove result", "sync 000000012"]


def test_the_readers_key_is_kept_with_the_run(folders: DiskRunFolders) -> None:
    assert folders.reader_key(RUN) is None
    folders.keep_reader_key(RUN, "key")
    folders.keep_reader_key(RUN, "newer key")
    assert folders.reader_key(RUN) == "newer key"


# --- what algorithms leave in place of an output --------------------------------------------------------------


def nothing(task: Path, _: Path) -> None:
    (task / "output").unlink()


def link_to_a_secret(task: Path, secret: Path) -> None:
    (task / "output").unlink()
    (task / "output").symlink_to(secret)


def dangling_link(task: Path, _: Path) -> None:
    (task / "output").unlink()
    (task / "output").symlink_to("/nowhere/at/all")


def pipe(task: Path, _: Path) -> None:
    (task / "output").unlink()
    os.mkfifo(task / "output")


def folder(task: Path, _: Path) -> None:
    (task / "output").unlink()
    (task / "output").mkdir()


def socket_file(task: Path, _: Path) -> None:
    (task / "output").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(task / "output"))


def task_folder_gone(task: Path, _: Path) -> None:
    task.rename(task.with_name("elsewhere"))


def task_folder_is_a_file(task: Path, _: Path) -> None:
    task.rename(task.with_name("elsewhere"))
    task.write_bytes(b"file")


def task_folder_is_a_link(task: Path, secret: Path) -> None:
    task.rename(task.with_name("elsewhere"))
    (secret.parent / "output").write_bytes(b"secret")
    task.symlink_to(secret.parent)


def mount_gone(task: Path, _: Path) -> None:
    task.parent.rename(task.parent.with_name("moved"))


HOSTILE = [
    nothing,
    link_to_a_secret,
    dangling_link,
    pipe,
    folder,
    socket_file,
    task_folder_gone,
    task_folder_is_a_file,
    task_folder_is_a_link,
    mount_gone,
]


@pytest.mark.parametrize("leave", HOSTILE, ids=lambda leave: leave.__name__)
def test_a_hostile_output_counts_as_empty(
    folders: DiskRunFolders, own_dir: Path, leave: Callable[[Path, Path], None]
) -> None:
    (own_dir / "private").mkdir()
    secret = own_dir / "private" / "secret"
    secret.write_bytes(b"secret")
    leave(task_of(prepare(folders)), secret)
    assert folders.capture_output(RUN, limit=LIMIT) == 0
    result = folders.result_path(RUN)
    assert result is not None
    assert result.read_bytes() == b""
    assert secret.read_bytes() == b"secret"
    folders.remove(RUN)
    assert secret.read_bytes() == b"secret"
    assert not (own_dir / "runs" / "000000012").exists()


@pytest.mark.parametrize("locked", ["mount", "task", "output"])
def test_an_output_the_algorithm_locked_away_does_not_stop_the_agent(
    folders: DiskRunFolders, locked: str
) -> None:
    prepared = prepare(folders)
    task = task_of(prepared)
    (task / "output").write_bytes(b"42")
    {"mount": prepared.private, "task": task, "output": task / "output"}[locked].chmod(0)
    # root reads it all the same; everybody else finds nothing
    assert folders.capture_output(RUN, limit=LIMIT) == (2 if os.geteuid() == 0 else 0)


# --- the log --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("captured", "note", "expected"),
    [
        (b"hello\n", "[node] why\n", b"hello\n[node] why\n"),
        (b"no newline", "[node] why\n", b"no newline\n[node] why\n"),
        (b"no newline", "", b"no newline"),
        (b"", "[node] why\n", b"[node] why\n"),
    ],
)
def test_the_final_log_is_the_captured_one_and_the_note(
    folders: DiskRunFolders, captured: bytes, note: str, expected: bytes
) -> None:
    with folders.log_file(RUN) as file:
        file.write(captured)
    for _ in range(2):
        final = folders.final_log(RUN, note)
        assert final is not None
        assert final.read_bytes() == expected


def test_without_log_and_note_there_is_no_final_log(folders: DiskRunFolders) -> None:
    assert folders.final_log(RUN, "") is None


def test_a_note_is_kept_for_a_run_that_never_had_a_folder(folders: DiskRunFolders) -> None:
    final = folders.final_log(RUN, "[node] half a pair \ud800\n")
    assert final is not None
    assert final.read_bytes() == b"[node] half a pair ?\n"


def test_a_log_captured_again_begins_anew(folders: DiskRunFolders) -> None:
    for text in (b"a long first try", b"short"):
        with folders.log_file(RUN) as file:
            file.write(text)
    final = folders.final_log(RUN, "")
    assert final is not None
    assert final.read_bytes() == b"short"


# --- how much -------------------------------------------------------------------------------------------------


def test_what_a_run_and_its_job_use_is_counted_together(folders: DiskRunFolders) -> None:
    prepared = prepare(folders)
    before = folders.used_bytes(RUN, JOB)
    (task_of(prepared) / "output").write_bytes(b"x" * 100_000)
    (prepared.temporary / "scratch").write_bytes(b"x" * 100_000)
    assert 200_000 <= folders.used_bytes(RUN, JOB) - before <= 300_000


def test_many_empty_files_count_too(folders: DiskRunFolders) -> None:
    prepared = prepare(folders)
    before = folders.used_bytes(RUN, JOB)
    for number in range(100):
        (prepared.temporary / str(number)).touch()
    assert folders.used_bytes(RUN, JOB) - before >= 100 * 4096


def test_what_a_link_points_to_is_not_counted(folders: DiskRunFolders, own_dir: Path) -> None:
    prepared = prepare(folders)
    (own_dir / "large").mkdir()
    (own_dir / "large" / "file").write_bytes(b"x" * 10_000_000)
    (prepared.temporary / "link").symlink_to(own_dir / "large")
    assert folders.used_bytes(RUN, JOB) < 1_000_000


def test_what_is_not_there_uses_nothing(folders: DiskRunFolders) -> None:
    assert folders.used_bytes(RUN, JOB) == 0


def test_a_temporary_folder_the_algorithm_locked_does_not_stop_the_agent(folders: DiskRunFolders) -> None:
    prepared = prepare(folders)
    (prepared.temporary / "inner").mkdir(mode=0)
    prepared.temporary.chmod(0)
    assert folders.used_bytes(RUN, JOB) > 0
    assert prepare(folders) == prepared


def test_a_tree_too_deep_to_count_is_refused(folders: DiskRunFolders) -> None:
    dig(prepare(folders).temporary, 2000)
    with pytest.raises(OutputTooLarge, match="deep"):
        folders.used_bytes(RUN, JOB)
    folders.remove_job(JOB)


# --- the end --------------------------------------------------------------------------------------------------


def dig(place: Path, depth: int) -> None:
    """Nest folders far deeper than a path can say."""
    descriptor = os.open(place, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper-and-deeper", dir_fd=descriptor)
        inner = os.open("deeper-and-deeper", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open("treasure", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)


def lock(place: Path) -> None:
    (place / "a" / "b").mkdir(parents=True)
    (place / "a" / "b" / "file").touch()
    (place / "a" / "empty").mkdir()
    for path in (place / "a" / "b" / "file", place / "a" / "b", place / "a" / "empty", place / "a", place):
        path.chmod(0)


def strange_names(place: Path) -> None:
    for name in (b"\xff\xfe", b"-rf", b"new\nline", b".lifted-0", b"x" * 255):
        (place / os.fsdecode(name) / ".lifted-1").mkdir(parents=True)


def links_out(place: Path) -> None:
    outside = place.parents[1] / "outside"
    outside.mkdir()
    outside.chmod(0o755)
    (outside / "file").touch()
    (place / "folder").symlink_to(outside)
    (place / "up").symlink_to("../..")
    (place / "inner").mkdir()
    (place / "inner" / "folder").symlink_to(outside)


@pytest.mark.parametrize(
    "leave",
    [lambda place: dig(place, 3000), lock, strange_names, links_out],
    ids=["deep", "locked", "strange names", "links out"],
)
def test_however_an_algorithm_leaves_its_folders_they_are_removed(
    folders: DiskRunFolders, own_dir: Path, leave: Callable[[Path], None]
) -> None:
    prepared = prepare(folders)
    leave(prepared.temporary)
    folders.remove_job(JOB)
    assert not prepared.temporary.exists()
    if (own_dir / "outside").exists():
        assert (own_dir / "outside" / "file").exists()
        assert mode_of(own_dir / "outside") == 0o755


@pytest.mark.parametrize(
    "leave", [lambda place: dig(place, 3000), lock, strange_names], ids=["deep", "locked", "strange names"]
)
def test_however_an_algorithm_leaves_its_run_folder_it_is_removed(
    folders: DiskRunFolders, own_dir: Path, leave: Callable[[Path], None]
) -> None:
    leave(task_of(prepare(folders)))
    folders.remove(RUN)
    assert list((own_dir / "runs").iterdir()) == []


def test_a_removal_that_was_interrupted_is_finished(folders: DiskRunFolders, own_dir: Path) -> None:
    prepared = prepare(folders)
    half = own_dir / "runs" / "000000012" / ".lifted-0"
    half.mkdir()
    (half / "left").touch()
    assert prepared.private.exists()
    folders.remove(RUN)
    assert not half.parent.exists()


def test_trouble_of_the_disk_while_reading_the_output_is_not_taken_for_an_empty_one(
    folders: DiskRunFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(folders)

    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(DiskUnwritable, match="Input/output"):
        folders.capture_output(RUN, limit=LIMIT)


def test_what_is_gone_is_removed_already(folders: DiskRunFolders) -> None:
    folders.remove(RUN)
    folders.remove_job(JOB)


def test_the_work_of_a_run_is_discarded_and_what_was_taken_over_stays(folders: DiskRunFolders) -> None:
    made = prepare(folders)
    folders.capture_output(RUN, limit=LIMIT)
    for _ in range(2):
        folders.discard_work(RUN)
    assert not made.private.exists()
    assert folders.result_path(RUN) is not None


def test_a_discarded_job_folder_is_gone_at_once_and_leaves_nothing_to_be_swept(
    folders: DiskRunFolders,
) -> None:
    temporary = prepare(folders).temporary
    (temporary / "deep").mkdir()
    for _ in range(2):
        folders.discard_job(JOB)
    assert list(temporary.parent.iterdir()) == []


def test_a_run_of_another_job_is_left_alone(folders: DiskRunFolders) -> None:
    prepare(folders)
    folders.store_input(RunId(1), [b"other"])
    folders.remove(RUN)
    folders.remove_job(JobKey("8-1"))
    assert folders.has_input(RunId(1))
    assert list(folders.idle_jobs(before=LATER)) == [JOB]


def test_stored_runs_and_idle_jobs_are_listed_by_their_age(folders: DiskRunFolders, own_dir: Path) -> None:
    prepared = prepare(folders)
    (own_dir / "runs" / "not-a-run").mkdir()
    os.utime(own_dir / "runs" / "000000012", (100.0, 100.0))
    os.utime(prepared.temporary, (100.0, 100.0))
    assert (list(folders.stored_runs(before=100.0)), list(folders.idle_jobs(before=100.0))) == ([], [])
    assert (list(folders.stored_runs(before=101.0)), list(folders.idle_jobs(before=101.0))) == ([RUN], [JOB])


def test_a_job_given_to_a_run_again_is_not_idle(folders: DiskRunFolders) -> None:
    prepared = prepare(folders)
    os.utime(prepared.temporary, (100.0, 100.0))
    prepare(folders)
    assert list(folders.idle_jobs(before=101.0)) == []


def test_opening_the_folders_twice_keeps_what_is_there(own_dir: Path) -> None:
    DiskRunFolders(own_dir, user=USER).store_input(RUN, [b"input"])
    assert DiskRunFolders(own_dir, user=USER).has_input(RUN)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_transient_and_says_what_to_do(number: int) -> None:
    with pytest.raises(DiskFull, match="full") as trouble, disk_errors():
        raise OSError(number, "No space left on device", "/state/runs/1")
    assert "Free some space" in trouble.value.hint


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_disk_that_was_made_read_only_or_is_broken_is_transient(number: int) -> None:
    with pytest.raises(DiskUnwritable, match="cannot be written") as trouble, disk_errors():
        raise OSError(number, os.strerror(number), "/state/runs/1")
    assert not isinstance(trouble.value, DiskFull)
    assert "/state/runs/1" in trouble.value.message


def test_a_log_that_could_not_be_written_whole_leaves_the_earlier_one(folders: DiskRunFolders) -> None:
    with folders.log_file(RUN) as file:
        file.write(b"all of it")
    half = folders.log_file(RUN)
    half.__enter__().write(b"half")
    with pytest.raises(DiskFull):
        half.__exit__(OSError, OSError(errno.ENOSPC, "No space left on device"), None)
    log = folders.final_log(RUN, "")
    assert log is not None
    assert log.read_bytes() == b"all of it"


def test_result_and_log_are_on_the_disk_before_they_have_their_names(
    folders: DiskRunFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(folders)
    (task_of(prepared) / "output").write_bytes(b"result")
    done: list[str] = []

    def sync(descriptor: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    def naming(rename: Callable[..., None]) -> Callable[..., None]:
        def name(source: str, target: Path, **folders: int) -> None:
            done.append(f"name {Path(target).name}")
            rename(source, target, **folders)

        return name

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", naming(os.replace))
    monkeypatch.setattr(os, "rename", naming(os.rename))
    with folders.log_file(RUN) as file:
        file.write(b"log")
    folders.capture_output(RUN, limit=LIMIT)
    folder = f"{RUN:09d}"
    assert done == [
        "sync .log.new",
        "name log",
        f"sync {folder}",
        "sync .result.new",
        "name result",
        f"sync {folder}",
    ]


def test_what_waits_to_be_reported_is_counted_in_bytes(folders: DiskRunFolders) -> None:
    assert folders.report_size(RUN) == 0
    (task_of(prepare(folders)) / "output").write_bytes(b"result")
    folders.capture_output(RUN, limit=LIMIT)
    with folders.log_file(RUN) as file:
        file.write(b"log")
    assert folders.report_size(RUN) == len(b"resultlog")
    folders.final_log(RUN, "note")
    assert folders.report_size(RUN) == len(b"resultlog\nnote")
    folders.seal_result(RUN, [b"result, sealed"])
    assert folders.report_size(RUN) == len(b"result, sealedlog\nnote")


def test_the_folders_know_how_much_may_still_be_written(folders: DiskRunFolders) -> None:
    assert folders.free_bytes() > 0


def test_any_other_trouble_of_the_disk_stays_what_it_is() -> None:
    with pytest.raises(PermissionError), disk_errors():
        raise PermissionError(errno.EACCES, "Permission denied")
