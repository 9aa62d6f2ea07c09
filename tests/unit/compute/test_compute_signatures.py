"""Signatures and nonces: the published vectors, what is no signature, and what no captured request is good for."""

import threading
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from node_agent.compute.fields import MAX_NONCE, Fields
from node_agent.compute.layouts import Operation, may_be_cut_elsewhere, newer_message, specified_message
from node_agent.compute.signatures import parse_address, shown_address, signer_of
from node_agent.domain.assets import DataSet, derived_did
from tests.doubles.compute_scene import ANNE, BERT, DATA, META, MORE_DATA, TRUSTED, Scene, errors_of, without
from tests.doubles.wallet import Wallet


@pytest.fixture
def scene(quick_dir: Path) -> Iterator[Scene]:
    made = Scene(quick_dir)
    yield made
    made.ledger.close()


ADDRESS = "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"
DID = "did:op:" + "ab" * 32
JOB = "4d32947065bb46c8b87c1f7adfb7ed8b"
ORDER_OF_THE_CURVE = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
VECTORS = {
    "start": (
        f"{ADDRESS}{DID}2",
        (
            "0x997d0a256839192f4681ef11db44064ceae9fb7b541b8d528a7fe9249396f8b5"
            "6f00d3d1e0d2336f716e1f76dd73c846c3101cc87434114dbabd3ae0ccb9d4301c"
        ),
    ),
    "stop": (
        f"{ADDRESS}{JOB}{DID}3",
        (
            "0x6f30e531c42841e5145582d8a67f508f82ec26089fab4e5657dc02bc25a44f78"
            "5e8cb8439ca9b6a0e57d7b52abdcb7c48006cbfd5bc55d8534fcc7f6b9fe0b131b"
        ),
    ),
    "result": (
        f"{ADDRESS}{JOB}04",
        (
            "0x50da054e61089947d5e502bdf76fb6a7bc832c0c987a73f2fae3196791553628"
            "40c1136557510309fc78c229014e43e6672bca062f0d613a97c0bc2b47e10ca51c"
        ),
    ),
    "token": (
        f"{ADDRESS}5",
        (
            "0x2353744f35ca5adbf600e7828666f436bd5aa2cc74c90b88e5c474e203a904bc"
            "42f1e52dd08dee9758805e57cff7a99824e9f1e95ee7078c58ed9c0cd7632c6f1c"
        ),
    ),
    "free start": (
        f"{ADDRESS}6freeStartCompute",
        (
            "0x0568f02af34a2ad03fa3617b91725072f0669fd3a3d940eacc179bbf3983f13f"
            "0e89d391df2c79fa96a9f5cde5d626c7c7671c9a364add74d68670da3b4bd3e31c"
        ),
    ),
}


LAYOUTS: dict[str, tuple[Callable[..., str | None], Operation, dict[str, Any], str]] = {
    "start": (
        specified_message,
        Operation.START,
        {"consumerAddress": ADDRESS, "dataset": {"documentId": DID}},
        "2",
    ),
    "stop": (
        specified_message,
        Operation.STOP,
        {"consumerAddress": ADDRESS, "jobId": JOB, "documentId": DID},
        "3",
    ),
    "result": (
        specified_message,
        Operation.RESULT,
        {"consumerAddress": ADDRESS, "jobId": JOB, "index": 0},
        "4",
    ),
    "token": (specified_message, Operation.CREATE_TOKEN, {"address": ADDRESS}, "5"),
    "free start": (newer_message, Operation.FREE_START, {"consumerAddress": ADDRESS}, "6"),
}


@pytest.mark.parametrize("operation", VECTORS)
def test_the_text_of_a_published_vector_is_made_of_its_fields(operation: str) -> None:
    message, name, fields, nonce = LAYOUTS[operation]
    assert message(name, Fields(fields), nonce=nonce) == VECTORS[operation][0]


def raw_of(signature: str) -> bytes:
    return bytes.fromhex(signature[2:])


@pytest.mark.parametrize("operation", VECTORS)
def test_a_published_vector_names_its_signer(operation: str) -> None:
    assert signer_of(*VECTORS[operation]) == ADDRESS.lower()


@pytest.mark.parametrize("operation", VECTORS)
def test_both_counts_of_v_are_read(operation: str) -> None:
    text, signature = VECTORS[operation]
    raw = raw_of(signature)
    assert signer_of(text, (raw[:64] + bytes([raw[64] - 27])).hex()) == ADDRESS.lower()


@pytest.mark.parametrize("operation", VECTORS)
def test_the_mirror_image_of_s_names_the_same_signer(operation: str) -> None:
    text, signature = VECTORS[operation]
    raw = raw_of(signature)
    mirrored = ORDER_OF_THE_CURVE - int.from_bytes(raw[32:64])
    signature = (raw[:32] + mirrored.to_bytes(32) + bytes([55 - raw[64]])).hex()
    assert signer_of(text, signature) == ADDRESS.lower()


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "0x",
        "zz" * 65,
        "00" * 64,
        "00" * 65,
        "ff" * 64 + "1b",
        "00" * 64 + "05",
        "0x" + "11" * 66,
        "\u0661" * 130,
    ],
)
def test_what_is_no_signature_has_no_signer(signature: str) -> None:
    assert signer_of("anything", signature) is None


def test_another_text_has_another_signer() -> None:
    assert signer_of(VECTORS["start"][0] + "0", VECTORS["start"][1]) != ADDRESS.lower()


def test_an_address_is_shown_with_its_checksum() -> None:
    address = parse_address(ADDRESS.lower())
    assert address is not None
    assert shown_address(address) == ADDRESS


@pytest.mark.parametrize(
    "text", ["", "0x", ADDRESS[2:], ADDRESS + "0", "0x" + "g" * 40, None, 5, ADDRESS + "\n"]
)
def test_what_is_no_address_is_refused(text: object) -> None:
    assert parse_address(text) is None


def test_the_wallet_of_the_tests_signs_as_the_published_vectors() -> None:
    wallet = Wallet(0x11)
    assert wallet.shown == ADDRESS
    assert wallet.sign(VECTORS["start"][0]) == VECTORS["start"][1]


# --- nonces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonce", ["0", "1", "2"])
def test_a_nonce_counts_once(scene: Scene, nonce: str) -> None:
    scene.started(2)
    answer = scene.ask("computeStart", scene.start_fields(int(nonce)))
    assert list(errors_of(answer)) == ["nonce"]
    assert len(scene.ledger.open_jobs()) == 1


@pytest.mark.parametrize(
    "nonce",
    [
        str(2**53),
        2**53,
        "9" * 17,
        "1.5",
        1.5,
        1.0,
        "-1",
        -1,
        "01",
        "00",
        "1e3",
        "0x1",
        "+1",
        "\u0661",
        " ",
        "",
        True,
        [1],
    ],
)
def test_a_nonce_is_a_whole_number_that_clients_can_count(scene: Scene, nonce: Any) -> None:
    fields = scene.start_fields(1)
    fields |= {"nonce": nonce, "signature": ANNE.sign(f"{ANNE.shown}{DATA}{nonce}")}
    assert list(errors_of(scene.ask("computeStart", fields))) == ["nonce"]


def test_the_highest_nonce_may_be_used(scene: Scene) -> None:
    scene.started(MAX_NONCE)
    assert scene.ask("nonce", {"userAddress": ANNE.shown}).get_json() == {"nonce": 2**53 - 1}


def test_a_nonce_that_clients_cannot_count_is_refused_with_the_highest_one(scene: Scene) -> None:
    errors = errors_of(scene.ask("computeStart", scene.start_fields(2**53)))
    assert errors == {"nonce": ["The nonce must be a whole number of at most 9007199254740991."]}


def test_a_nonce_that_was_used_is_refused_with_the_one_to_pass(scene: Scene) -> None:
    scene.started(1_700_000_000_000)
    errors = errors_of(scene.ask("computeStart", scene.start_fields(7)))
    assert errors == {
        "nonce": [
            "The nonce must be higher than the last one used, which was 1700000000000; ask for it and add 1."
        ]
    }


def test_who_never_asked_has_used_no_nonce_and_none_is_written_down(scene: Scene) -> None:
    assert scene.ask("nonce", {"userAddress": BERT.shown}).get_json() == {"nonce": 0}
    rows = scene.ledger._connection.execute("SELECT count(*) FROM nonce").fetchone()
    assert rows[0] == 0


def test_an_address_has_one_count_in_whatever_capitals_it_is_written(scene: Scene) -> None:
    scene.started(5)
    low = ANNE.shown.lower()
    fields = {"consumerAddress": low, "nonce": "5", "signature": ANNE.sign(f"{low}5")}
    assert list(errors_of(scene.ask("computeStatus", fields))) == ["nonce"]


def test_the_mirror_image_of_a_signature_is_no_second_request(scene: Scene) -> None:
    fields = scene.start_fields(1)
    scene.ask("computeStart", fields)
    raw = raw_of(fields["signature"])
    mirrored = ORDER_OF_THE_CURVE - int.from_bytes(raw[32:64])
    again = {**fields, "signature": (raw[:32] + mirrored.to_bytes(32) + bytes([55 - raw[64]])).hex()}
    assert list(errors_of(scene.ask("computeStart", again))) == ["nonce"]


ONCE: dict[str, Callable[[Scene, Any], dict[str, Any]]] = {
    "computeStart": lambda scene, job: scene.start_fields(9),
    "freeCompute": lambda scene, job: scene.newer_fields(9),
    "computeStatus": lambda scene, job: scene.of_job(job, 9),
    "computeStop": lambda scene, job: scene.of_job(job, 9),
    "computeResult": lambda scene, job: scene.result_fields(job, 0, 9),
    "createAuthToken": lambda scene, job: scene.token_fields(9),
}


@pytest.mark.parametrize("route", ONCE)
def test_of_many_requests_with_one_nonce_at_the_same_time_one_counts(scene: Scene, route: str) -> None:
    job = scene.started(1)
    scene.end(job)
    fields, codes, api = ONCE[route](scene, job), [], scene.api
    together = threading.Barrier(8)

    def ask() -> None:
        together.wait(30)
        codes.append(scene.ask(route, fields, api=api).status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200] + [400] * 7
    assert len(scene.ledger.open_jobs()) == (route in {"computeStart", "freeCompute"})


@pytest.mark.parametrize("route", ONCE)
def test_every_signed_request_counts_once(scene: Scene, route: str) -> None:
    job = scene.started(1)
    scene.end(job)
    fields = ONCE[route](scene, job)
    assert scene.ask(route, fields).status_code == 200
    assert list(errors_of(scene.ask(route, fields))) == ["nonce"]
    assert scene.ledger.last_nonce(ANNE.address) == 9


def test_a_refused_start_uses_its_nonce_up_and_a_forged_one_does_not(scene: Scene) -> None:
    scene.ask("computeStart", scene.start_fields(5, algorithm={"meta": META}))
    assert scene.ledger.last_nonce(ANNE.address) == 5
    fields = scene.start_fields(9)
    fields["signature"] = BERT.sign(f"{ANNE.shown}{DATA}9")
    scene.ask("computeStart", fields)
    assert scene.ledger.last_nonce(ANNE.address) == 5


# --- one text, two readings -----------------------------------------------------------------------------------------


def test_an_index_and_a_nonce_that_were_cut_elsewhere_find_no_file(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    # signed for index 1 and nonce 23456; the same bytes are index 12 and nonce 3456
    captured = scene.result_fields(job, 1, 23456)
    assert "index" in errors_of(scene.ask("computeResult", {**captured, "index": "12", "nonce": "3456"}))
    assert scene.ledger.last_nonce(ANNE.address) == 1
    assert scene.ask("computeResult", captured).status_code == 200
    assert "nonce" in errors_of(scene.ask("computeResult", captured))


def test_a_text_that_was_used_for_one_file_is_good_for_no_other(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job, names=[f"{number:02}" for number in range(20)])
    captured = scene.result_fields(job, 12, 3456)
    assert scene.ask("computeResult", captured).data == b"12" * 10
    again = {**captured, "index": "1", "nonce": "23456"}
    assert errors_of(scene.ask("computeResult", again)) == {
        "nonce": ["The nonce was used before in a request of the same text; take another."]
    }
    # nor does it lock its owner out
    assert scene.ledger.last_nonce(ANNE.address) == 3456
    assert scene.ask("computeResult", scene.result_fields(job, 1, 3457)).data == b"01" * 10


@pytest.mark.parametrize(("first", "second"), [((12, 3456), (1, 23456)), ((1, 23456), (12, 3456))])
def test_of_two_readings_at_the_same_time_one_counts(
    scene: Scene, first: tuple[int, int], second: tuple[int, int]
) -> None:
    job = scene.started(1)
    scene.end(job, names=[f"{number:02}" for number in range(20)])
    api, codes, together = scene.api, [], threading.Barrier(2)

    def ask(reading: tuple[int, int]) -> None:
        together.wait(30)
        fields = scene.result_fields(job, *reading)
        codes.append(scene.ask("computeResult", fields, api=api).status_code)

    threads = [threading.Thread(target=ask, args=(reading,)) for reading in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200, 400]


def test_a_result_that_was_fetched_is_no_stop_of_its_job(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    # index 1 and nonce 23456 are, without a document, the stop of this job with nonce 123456
    captured = scene.result_fields(job, 1, 23456)
    scene.ask("computeResult", captured)
    as_stop = {**without(captured, "index"), "nonce": "123456"}
    for route in ("computeStop", "computeDelete", "computeStatus"):
        assert list(errors_of(scene.ask(route, as_stop))) == ["nonce"]
    assert list(errors_of(scene.ask("computeStop", {**as_stop, "documentId": "1", "nonce": "23456"}))) == [
        "signature"
    ]
    assert scene.ledger.last_nonce(ANNE.address) == 23456
    assert not scene.record(job).removed


def test_the_last_digits_of_a_document_are_no_part_of_a_nonce(scene: Scene) -> None:
    did = next(name for name in map(derived_did, map(str, range(100))) if name[-1] in "123456789")
    scene.data_sets[did] = DataSet(did=did, label="registry", service_id="0", trusted_algorithms=TRUSTED)
    captured = scene.start_fields(7, dataset={"documentId": did, "serviceId": "0", "transferTxId": "order"})
    assert scene.ask("computeStart", captured).status_code == 200
    cut = {**captured["dataset"], "documentId": did[:-1]}
    answer = scene.ask("computeStart", {**captured, "dataset": cut, "nonce": f"{did[-1]}7"})
    assert answer.status_code == 400
    assert scene.ledger.last_nonce(ANNE.address) == 7


def test_a_document_cut_short_in_a_status_or_a_stop_uses_no_nonce_up(scene: Scene) -> None:
    did = next(
        name
        for name in map(derived_did, map(str, range(1000)))
        if name[-2:-1].isalpha() and name[-1] in "123456789"
    )
    scene.data_sets[did] = DataSet(did=did, label="registry", service_id="0", trusted_algorithms=TRUSTED)
    job = scene.started(1, dataset={"documentId": did, "serviceId": "0", "transferTxId": "order"})
    captured = scene.of_job(job, 7)
    cut = {**captured, "documentId": did[:-1], "nonce": f"{did[-1]}7"}
    assert scene.ask("computeStatus", cut).get_json() == []
    assert "signature" in errors_of(scene.ask("computeStop", cut))
    listing = {**without(cut, "jobId"), "signature": ANNE.sign(f"{ANNE.shown}{did}7")}
    assert scene.ask("computeStatus", listing).get_json() == []
    assert scene.ledger.last_nonce(ANNE.address) == 1


def test_a_stop_and_a_delete_need_no_document_and_are_no_result_later(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    text = f"{ANNE.shown}{job['jobId']}"
    fields = {"consumerAddress": ANNE.shown, "jobId": job["jobId"]}
    captured = {**fields, "nonce": "123", "signature": ANNE.sign(f"{text}123")}
    assert scene.ask("computeStop", captured).status_code == 200
    as_result = {**captured, "index": "1", "nonce": "23"}
    assert list(errors_of(scene.ask("computeResult", as_result))) == ["nonce"]
    assert scene.ask("computeStatus", {**fields, "nonce": "124", "signature": ANNE.sign(f"{text}124")}).json
    gone = {**fields, "nonce": "125", "signature": ANNE.sign(f"{text}125")}
    assert scene.ask("computeDelete", gone).get_json()[0]["removed"] == 1


@pytest.mark.parametrize(
    ("label", "cut", "nonce"), [("visits1", "visits", "17"), ("visits12", "visits1", "27")]
)
def test_a_start_on_a_name_that_ends_in_a_digit_is_no_start_on_another(
    scene: Scene, label: str, cut: str, nonce: str
) -> None:
    for name in (label, cut):
        did = derived_did(name)
        scene.data_sets[did] = DataSet(did=did, label=name, service_id="0", trusted_algorithms=TRUSTED)
    captured = scene.start_fields(7, dataset={"documentId": label, "serviceId": "0", "transferTxId": "order"})
    assert scene.ask("computeStart", captured).status_code == 200
    other = {**captured, "dataset": {**captured["dataset"], "documentId": cut}, "nonce": nonce}
    assert list(errors_of(scene.ask("computeStart", other))) == ["nonce"]
    assert scene.ledger.count_open() == 1


def test_a_name_that_ends_in_a_letter_may_be_signed(scene: Scene) -> None:
    scene.started(5, dataset={"documentId": "patients", "serviceId": "0", "transferTxId": "order"})


def test_a_paid_start_of_the_newer_dialect_starts_nothing_in_the_other(scene: Scene) -> None:
    fields = {**scene.start_fields(5), "signature": ANNE.sign(f"{ANNE.shown}5startCompute")}
    assert list(errors_of(scene.ask("computeStart", fields))) == ["signature"]


def test_clients_that_sign_a_stop_without_nonce_or_send_none_are_refused(scene: Scene) -> None:
    job = scene.started(1)
    fields = scene.of_job(job, 2)
    unsigned = {**fields, "signature": ANNE.sign(f"{ANNE.shown}{job['jobId']}{DATA}")}
    assert list(errors_of(scene.ask("computeStop", unsigned))) == ["signature"]
    assert list(errors_of(scene.ask("computeDelete", without(unsigned, "nonce"), as_json=True))) == ["nonce"]


def test_a_text_that_can_be_read_in_two_ways_is_marked_by_every_lower_of_them() -> None:
    """Who replays a text reads it with a higher nonce: whatever was read with a lower one must have marked it."""
    operations = [*VERBS_OF_JOBS, Operation.START, Operation.CREATE_TOKEN, Operation.RESULT]
    names = [DATA, MORE_DATA, "patients", "visits1", "visits", "1", ""]
    nonces = [str(nonce) for nonce in (1, 2, 3, 11, 12, 13, 21, 23, 112, 123, 312, 1123)]
    made: dict[str, dict[int, bool]] = {}
    for operation, name, nonce, index in product(operations, names, nonces, ("0", "1", "12", "3")):
        if operation is Operation.START and not name:
            continue  # refused before anything else
        about = {"consumerAddress": ADDRESS, "address": ADDRESS, "jobId": JOB, "index": index}
        if operation is Operation.START:
            del about["jobId"]
        fields = Fields({**about, "documentId": name, "dataset": {"documentId": name}})
        text = specified_message(operation, fields, nonce=nonce)
        assert text is not None
        marks = made.setdefault(text, {})
        marks[int(nonce)] = marks.get(int(nonce), True) and may_be_cut_elsewhere(operation, fields)
    read_twice = [marks for marks in made.values() if len(marks) > 1]
    assert len(read_twice) > 10
    assert all(marks[nonce] for marks in read_twice for nonce in sorted(marks)[:-1])


VERBS_OF_JOBS = (Operation.STATUS, Operation.STOP, Operation.DELETE)
