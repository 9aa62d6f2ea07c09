"""Which calls pass, to the last character."""

import pytest

from node_agent.proxy.routes import ROUTES, Treatment, WrongMethod, find_route

UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.template}")
def test_every_route_of_the_table_is_found(route):
    path = route.template.replace("{id}", "12").replace("{uuid}", UUID)
    found = find_route(route.method, f"/{path}")
    assert found is not None
    assert (found.template, found.treatment, found.path) == (route.template, route.treatment, path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/user",
        "/token/node",
        "/token/container",
        "/task/",
        "//task",
        "/task/1/",
        "/task/x",
        "/task/-1",
        "/task/1.0",
        "/task/٣",
        "/task/1\n",
        "/task/../user",
        "/task/1/status/x",
        "/task/1234567890123456789",
        "/blobstream/not-a-uuid",
        f"/blobstream/{UUID}0",
        "/RUN",
        "/run?task_id=1",
    ],
)
def test_any_other_path_is_unknown(path):
    assert find_route("GET", path) is None


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/run/1", ("GET",)),
        ("DELETE", "/task/1", ("GET",)),
        ("PUT", "/task", ("GET", "POST")),
        ("HEAD", "/version", ("GET",)),
        ("GET", "/blobstream", ("POST",)),
        ("get", "/task", ("GET", "POST")),
    ],
)
def test_a_known_path_with_another_method_names_the_methods_it_has(method, path, allowed):
    with pytest.raises(WrongMethod) as raised:
        find_route(method, path)
    assert raised.value.allowed == allowed


def test_only_version_and_health_need_no_token():
    assert {route.template for route in ROUTES if route.treatment is Treatment.OPEN} == {"version", "health"}
