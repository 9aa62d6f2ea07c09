"""Secrets in logs: masked in every form a container meets them in, however the log is cut into pieces."""

import random

import pytest

from node_agent.config.credentials import credentials_of, sounds_secret
from node_agent.domain.contract import encode
from node_agent.domain.database import Database, DatabaseType
from node_agent.domain.masking import LONGEST_LINE, mask_for
from node_agent.domain.secret import Secret

TOKEN = b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOjF9.c2lnbmF0dXJl"
URI = "postgresql://reader:s3cret%2Fword@db.example.org:5432/study?sslmode=require"
SERVICE = Database(
    label="study", type=DatabaseType.SQL, uri=URI, env={"API_KEY": "k-1234567", "schema": "public"}
)


def masked(text: bytes, *secrets: str, values: tuple[str, ...] = ()) -> bytes:
    return b"".join(mask_for([Secret(secret) for secret in secrets], values)([text]))


def texts(*databases: Database, **variables: str) -> set[str]:
    return {secret.reveal() for secret in credentials_of(databases, variables)}


def test_the_password_of_an_address_is_a_secret_as_written_and_as_meant() -> None:
    assert texts(SERVICE) == {"s3cret%2Fword", "s3cret/word", "k-1234567"}


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("https://a-token@sparql.example.org/q", "a-token"),
        ("https://h.example.org/q?access_token=abc123&x=1", "abc123"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dhidden7%3BUID%3Dme", "hidden7"),
        ("jdbc:sqlserver://h:1433;user=me;password=hidden7", "hidden7"),
        ("mysql://u:p@ss:word@h/db", "p@ss:word"),
    ],
)
def test_credentials_are_found_wherever_an_address_holds_them(uri: str, secret: str) -> None:
    assert secret in texts(Database(label="a", type=DatabaseType.OTHER, uri=uri))


def test_a_name_without_password_is_no_secret_and_files_have_none() -> None:
    assert texts(Database(label="a", type=DatabaseType.SQL, uri="postgresql://reader@h/db")) == set()
    assert texts(Database(label="a", type=DatabaseType.CSV, uri="/srv/x://u:password@h.csv")) == set()


@pytest.mark.parametrize("name", ["DB_PASSWORD", "pwd", "ApiKey", "AWS_SECRET", "token", "CREDENTIALS"])
def test_variables_that_sound_like_secrets_are_secrets(name: str) -> None:
    assert sounds_secret(name)
    assert texts(**{name: "value-1"}) == {"value-1"}


def test_other_variables_are_not_but_addresses_in_them_are_looked_into() -> None:
    assert texts(THRESHOLD="12345", CACHE="redis://:hush-hush@h:1/0") == {"hush-hush"}


def test_a_secret_is_masked_in_the_form_in_which_containers_see_it() -> None:
    for form in (encode(URI), encode(URI).replace("!", "="), encode(URI).rstrip("!"), encode("s3cret/word")):
        log = masked(f"STUDY_DATABASE_URI={form}\n".encode(), "s3cret%2Fword", "s3cret/word", values=(URI,))
        assert log == b"STUDY_DATABASE_URI=***\n" or log.rstrip(b"!=\n") == b"STUDY_DATABASE_URI=***"


def test_every_token_of_the_servers_form_is_masked() -> None:
    assert masked(b"Authorization: Bearer " + TOKEN + b"\n") == b"Authorization: Bearer ***\n"
    assert masked(b"eyJust a word. and. another\n") == b"eyJust a word. and. another\n"


def test_each_line_of_a_key_file_is_masked() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADAN\nBgkqhkiG9w0B\n-----END KEY-----"
    assert masked(b"a\n" + key.encode() + b"\nb\n", key) == b"a\n***\n***\n***\n***\nb\n"


def test_a_short_password_is_masked_where_it_can_only_be_one() -> None:
    assert masked(b"ab u:ab@h ab\n", "ab") == b"ab u***h ab\n"


def test_the_longer_of_two_secrets_is_masked_whole() -> None:
    assert masked(b"password1 password12\n", "password1", "password12") == b"*** ***\n"


def test_masking_does_not_depend_on_how_the_log_is_cut_into_pieces() -> None:
    secrets = ["hunter2hunter2", "abcabcabd", "ünïcode-pässword"]
    log = b"".join(
        [b"x hunter2hunter2 abcabcabcabd\n", TOKEN, b" \xff\xfe \n\n", "ünïcode-pässword".encode(), b" end"]
        * 50
    )
    expected = b"".join(mask_for(map(Secret, secrets), ())([log]))
    assert b"hunter2" not in expected
    dice = random.Random(4)
    for _ in range(50):
        cuts = sorted(dice.choices(range(len(log)), k=30))
        pieces = [log[a:b] for a, b in zip([0, *cuts], [*cuts, len(log)], strict=True)]
        assert b"".join(mask_for(map(Secret, secrets), ())(pieces)) == expected


def test_a_line_without_end_is_passed_on_in_bounded_pieces_and_masked_at_their_borders() -> None:
    secret = b"the-secret-of-the-line"
    line = (b"y" * 4099 + secret) * 100
    pieces = [line[at : at + 1000] for at in range(0, len(line), 1000)]
    given = list(mask_for([Secret(secret.decode())], ())(pieces))
    assert b"".join(given) == (b"y" * 4099 + b"***") * 100
    assert max(map(len, given)) <= LONGEST_LINE + 1000


def test_a_line_is_passed_on_as_soon_as_it_ends() -> None:
    stream = mask_for([Secret("a-rather-long-secret")], ())(iter([b"one\ntw", b"o\n"]))
    assert next(stream) == b"one\n"
    assert next(stream) == b"two\n"
