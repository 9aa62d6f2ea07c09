import struct

from node_agent.runtime.holder_inside import NAME_SERVER, unreachable_route


def test_the_route_closes_exactly_the_engines_name_server_in_the_table_that_is_asked_first():
    message = unreachable_route(NAME_SERVER)
    length, kind, flags, _, _ = struct.unpack_from("=IHHII", message)
    family, bits, _, _, table, _, _, route_type, _ = struct.unpack_from("=BBBBBBBBI", message, 16)
    assert (length, kind, flags) == (len(message), 24, 0x605)
    assert (family, bits, table, route_type) == (2, 32, 255, 7)
    assert message[-4:] == bytes([127, 0, 0, 11])
