"""What travels instead of what algorithms write, and what they read instead of what travelled."""

import json
from base64 import b64decode, b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from node_agent.errors import KeyMissing
from node_agent.payload.chunks import Literal
from node_agent.payload.envelope import seal, seal_blob, unseal, unseal_blob
from node_agent.payload.keys import PrivateKey
from node_agent.payload.longtext import spool_json
from node_agent.proxy.sealer import MAX_ORGANIZATIONS, CannotSeal, EnvelopeSealer, PlainSealer
from tests.doubles.foreign import for_somebody_else

UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
MESSAGES = [
    b"",
    b"{}",
    b"\x00\xff binary",
    "päng 🎉".encode(),
    bytes(range(256)) * 1000,
]


def new_key():
    return PrivateKey(rsa.generate_private_key(public_exponent=65537, key_size=2048))


OWN, OTHER = new_key(), new_key()
KEYS = {1: OWN.public, 2: OTHER.public}


def public_key_of(organization):
    if organization not in KEYS:
        raise KeyMissing(f"Organization {organization} has no public key.")
    return KEYS[organization]


@pytest.fixture
def sealer():
    return EnvelopeSealer(OWN, public_key_of)


@pytest.fixture
def parse(tmp_path):
    return lambda body: spool_json(body, tmp_path, threshold=1000, limit=1 << 24)


def joined(body):
    found = b"".join(body)
    assert len(found) == body.length
    return found


def text(content):
    return b64encode(content).decode()


def sealed(content, key=OWN):
    return b"".join(seal([content], key.public)).decode()


def opened(message, key):
    return b"".join(unseal([message.encode()], key))


# --- inputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", MESSAGES)
def test_each_input_is_sealed_for_its_organization_and_the_rest_stays(sealer, parse, content):
    task = {
        "image": "i",
        "organizations": [{"id": 1, "input": text(content)}, {"id": 2, "input": text(b"x")}],
        "databases": [{"label": "default", "query": 'select "a"'}],
    }
    body = Literal(json.dumps(task).encode())
    sent = json.loads(joined(sealer.seal_inputs(body, parse(body))))
    first, second = sent["organizations"]
    assert opened(first.pop("input"), OWN) == content
    assert opened(second.pop("input"), OTHER) == b"x"
    assert (first, second) == ({"id": 1}, {"id": 2})
    assert {**sent, "organizations": 0} == {**task, "organizations": 0}


@pytest.mark.parametrize(
    ("organizations", "said"),
    [
        ([{"id": 3, "input": "e30="}], "Organization 3 has no public key"),
        ([{"id": 1, "input": "e30="}, {"id": 2, "input": "e30"}], "organization 2 is not base64"),
        ([{"id": 1, "input": "%%%%"}], "organization 1 is not base64"),
        ([{"id": 1, "input": "\ud83d"}], "organization 1 is not base64"),
        ([{"id": 1, "input": "e30=" * 1000 + "e30"}], "organization 1 is not base64"),
        ([{"id": 1, "input": {"method": "m"}}], "needs an `id` and an `input`"),
        ([{"id": 1, "input": None}], "needs an `id` and an `input`"),
        ([{"id": 1}], "needs an `id` and an `input`"),
        ([{"id": "1", "input": "e30="}], "needs an `id` and an `input`"),
        ([{"id": True, "input": "e30="}], "needs an `id` and an `input`"),
        ([1], "needs an `id` and an `input`"),
        ({"id": 1, "input": "e30="}, "must be a list"),
        ([{"id": 1, "input": ""}] * (MAX_ORGANIZATIONS + 1), f"at most {MAX_ORGANIZATIONS}"),
    ],
)
def test_what_cannot_be_sealed_is_refused_with_the_reason(sealer, parse, organizations, said):
    body = Literal(json.dumps({"organizations": organizations}).encode())
    with pytest.raises(CannotSeal, match=said):
        sealer.seal_inputs(body, parse(body))


def test_an_input_that_lies_in_the_blob_store_is_named_as_it_is(sealer):
    task = {"organizations": [{"id": 1, "input": UUID}]}
    assert json.loads(joined(sealer.seal_inputs(Literal(b"not read"), task))) == task


# --- results --------------------------------------------------------------------------------------------------


def answer(**fields):
    return {"id": 1, "blob_storage_used": False, "run": {"id": 1, "link": "/api/run/1"}, **fields}


def read(sealer, parse, document):
    return json.loads(joined(sealer.open_results(Literal(json.dumps(document).encode()), parse)))


@pytest.mark.parametrize("content", MESSAGES)
def test_a_result_that_is_sealed_for_this_node_is_read_in_base64(sealer, parse, content):
    one = read(sealer, parse, answer(result=sealed(content)))
    assert b64decode(one.pop("result")) == content
    assert one == {name: value for name, value in answer().items() if name != "result"}


def test_on_a_page_each_result_is_looked_at_by_itself(sealer, parse):
    foreign = for_somebody_else(lambda: sealed(b"c", OTHER).encode(), unseal, OWN)
    page = {
        "data": [
            answer(result=sealed(b"a" * 5000)),
            answer(result=sealed(b"b")),
            answer(result=foreign.decode()),
            answer(result=None),
            answer(result=""),
            answer(result="nothing sealed" * 200),
            answer(result=UUID, blob_storage_used=True),
            answer(result=sealed(b"d"), blob_storage_used=True),
            answer(result=7),
            answer(),
            "odd",
        ],
        "links": {"first": "/api/result?task_id=1&page=1"},
    }
    found = read(sealer, parse, page)
    expected = [dict(part) if isinstance(part, dict) else part for part in page["data"]]
    expected[0]["result"], expected[1]["result"] = text(b"a" * 5000), text(b"b")
    assert found == {"data": expected, "links": page["links"]}


def test_a_damaged_result_passes_as_it_is(sealer, parse):
    message = sealed(b"a" * 5000)
    for damaged in (
        message[:-1],
        message[:400],
        message + "!",
        message.replace("$", "", 1),
        "$$",
        "$" * 5000,
    ):
        assert read(sealer, parse, answer(result=damaged))["result"] == damaged


@pytest.mark.parametrize("document", [[], None, 1, "text"])
def test_an_answer_without_results_passes_as_it_is(sealer, parse, document):
    body = Literal(json.dumps(document).encode())
    assert sealer.open_results(body, parse) is body


# --- blobs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", MESSAGES)
def test_a_blob_is_sealed_for_the_key_in_the_header_and_opened_with_ours(sealer, content):
    sent = joined(sealer.seal_blob(Literal(content), OTHER.public.wire))
    assert b"".join(unseal_blob([sent], OTHER)) == content
    kept = b"".join(seal_blob([content], OWN.public))
    assert joined(sealer.open_blob(Literal(kept))) == content


@pytest.mark.parametrize(("header", "said"), [("", "Missing X-Public-Key header"), ("abc", "cannot be used")])
def test_a_blob_without_a_key_to_seal_it_for_is_refused(sealer, header, said):
    with pytest.raises(CannotSeal, match=said):
        sealer.seal_blob(Literal(b"x"), header)


def test_a_blob_for_somebody_else_passes_as_it_is(sealer):
    body = Literal(for_somebody_else(lambda: b"".join(seal_blob([b"x"], OTHER.public)), unseal_blob, OWN))
    assert sealer.open_blob(body) is body


# --- without encryption -----------------------------------------------------------------------------------------


def test_without_encryption_inputs_and_results_are_not_even_looked_at():
    plain, body = PlainSealer(), Literal(b"anything")
    assert plain.seal_inputs(body, {}) is body
    assert plain.open_results(body, pytest.fail) is body


@pytest.mark.parametrize("content", MESSAGES)
def test_without_encryption_blobs_travel_as_base64(content):
    plain = PlainSealer()
    sent = joined(plain.seal_blob(Literal(content), "no key at all"))
    assert sent == b64encode(content)
    assert joined(plain.open_blob(Literal(sent))) == content


def test_without_encryption_a_blob_that_is_not_base64_passes_as_it_is():
    body = Literal(b"not base64!")
    assert PlainSealer().open_blob(body) is body


def test_a_task_that_nests_too_deeply_cannot_be_sealed(sealer):
    deep = []
    for _ in range(300_000):
        deep = [deep]
    with pytest.raises(CannotSeal, match="nested too deeply"):
        sealer.seal_inputs(
            Literal(b"{}"), {"organizations": [{"id": 1, "input": text(b"{}")}], "kwargs": deep}
        )
