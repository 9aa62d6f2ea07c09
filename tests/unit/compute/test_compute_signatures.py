"""Signatures: the published vectors, both counts of `v`, both mirror images of `s`, and what is none."""

import pytest

from node_agent.compute.signatures import parse_address, shown_address, signer_of
from tests.doubles.wallet import Wallet

ADDRESS = "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"
DID = "did:op:" + "ab" * 32
JOB = "4d32947065bb46c8b87c1f7adfb7ed8b"
ORDER_OF_THE_CURVE = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
VECTORS = {
    "start": (
        f"{ADDRESS}{DID}2",
        "0x997d0a256839192f4681ef11db44064ceae9fb7b541b8d528a7fe9249396f8b5"
        "6f00d3d1e0d2336f716e1f76dd73c846c3101cc87434114dbabd3ae0ccb9d4301c",
    ),
    "stop": (
        f"{ADDRESS}{JOB}{DID}3",
        "0x6f30e531c42841e5145582d8a67f508f82ec26089fab4e5657dc02bc25a44f78"
        "5e8cb8439ca9b6a0e57d7b52abdcb7c48006cbfd5bc55d8534fcc7f6b9fe0b131b",
    ),
    "result": (
        f"{ADDRESS}{JOB}04",
        "0x50da054e61089947d5e502bdf76fb6a7bc832c0c987a73f2fae3196791553628"
        "40c1136557510309fc78c229014e43e6672bca062f0d613a97c0bc2b47e10ca51c",
    ),
    "token": (
        f"{ADDRESS}5",
        "0x2353744f35ca5adbf600e7828666f436bd5aa2cc74c90b88e5c474e203a904bc"
        "42f1e52dd08dee9758805e57cff7a99824e9f1e95ee7078c58ed9c0cd7632c6f1c",
    ),
    "free start": (
        f"{ADDRESS}6freeStartCompute",
        "0x0568f02af34a2ad03fa3617b91725072f0669fd3a3d940eacc179bbf3983f13f"
        "0e89d391df2c79fa96a9f5cde5d626c7c7671c9a364add74d68670da3b4bd3e31c",
    ),
}


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
        "١" * 130,
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
