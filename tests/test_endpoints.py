"""The breaker before a chat server, by a clock of our own, and the choice among several."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch.errors import Unavailable, UserError
from zerosearch.inference.endpoints import (
    FAILURES,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    NEAR,
    PATIENCE,
    Breaker,
    Endpoint,
    Endpoints,
)


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.one_of(st.sampled_from(["fail", "succeed", "probe ends"]), st.floats(0, 40))))
def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_probe_through_after_a_growing_pause(
    events: list[str | float],
) -> None:
    clock = FakeClock()
    breaker, failures, opened, pause = Breaker(clock), 0, 0.0, FIRST_PAUSE
    for event in events:
        before = breaker.state
        match event:
            case float():
                clock.now += event
            case "succeed":
                breaker.succeeded()
                failures, pause = 0, FIRST_PAUSE
                assert breaker.state == "closed"
            case "fail":
                breaker.failed()
                if before == "closed":
                    failures += 1
                    assert (breaker.state == "open") is (failures == FAILURES)
                    opened = clock.now
                else:
                    assert breaker.state == before
            case "probe ends" if before == "half_open":
                breaker.probe_failed()
                opened, pause = clock.now, min(2 * pause, LONGEST_PAUSE)
                assert breaker.state == "open"
        if breaker.state == "open":
            failures = 0
            assert breaker.wants_a_probe is (clock.now >= opened + pause)
            if breaker.wants_a_probe:
                breaker.begin_probe()
        assert breaker.lets_pass is (breaker.state == "closed")
        assert breaker.state != "half_open" or not breaker.wants_a_probe, "one probe at a time"


def test_a_server_that_asks_to_be_left_alone_is() -> None:
    clock = FakeClock()
    breaker = Breaker(clock)
    breaker.rest(5)
    breaker.rest(2)
    assert not breaker.lets_pass
    clock.now += 4.9
    assert not breaker.lets_pass
    clock.now += 0.1
    assert breaker.lets_pass
    breaker.rest(60)
    for _ in range(FAILURES):
        breaker.failed()
    clock.now += 59
    assert not breaker.wants_a_probe
    clock.now += 1
    assert breaker.wants_a_probe


# The choice


async def no_probe(endpoint: Endpoint) -> None: ...


def three() -> Endpoints:
    return Endpoints([f"http://{name}/v1" for name in "abc"], 0.0, no_probe)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), min_size=3, max_size=3))
def test_the_least_loaded_of_the_healthy_is_chosen(state: list[tuple[int, int, bool]]) -> None:
    servers = three()
    for server, (under_way, calls, healthy) in zip(servers.all, state, strict=True):
        server.under_way, server.calls = under_way, calls
        if not healthy:
            server.breaker.probe_failed()
    chosen = servers.free()
    loads = [(under_way, calls) for under_way, calls, healthy in state if healthy]
    assert (chosen is None) is (not loads)
    if chosen:
        assert chosen.breaker.state == "closed" and (chosen.under_way, chosen.calls) == min(loads)
        assert servers.free(but={chosen}) is not chosen


def test_a_group_keeps_to_one_server_while_loads_are_near_and_others_keep_theirs_when_it_fails() -> None:
    servers, groups = three(), [f"group {number}" for number in range(60)]
    homes = {group: servers.free(group=group) for group in groups}
    assert {servers.all.index(home) for home in homes.values() if home} == {0, 1, 2}
    first = servers.all[0]
    first.under_way = NEAR
    assert {group: servers.free(group=group) for group in groups} == homes
    first.under_way = NEAR + 1
    assert not any(servers.free(group=group) is first for group in groups)
    first.under_way = 0
    first.breaker.probe_failed()
    for group, home in homes.items():
        assert servers.free(group=group) is home or home is first
    assert servers.free(but=servers.all, group="any") is None


def test_a_probe_that_ends_with_its_event_loop_may_be_sent_again() -> None:
    clock = FakeClock()

    async def long_probe(endpoint: Endpoint) -> None:
        await asyncio.sleep(60)

    servers = Endpoints(["http://a/v1", "http://b/v1"], 0.0, long_probe, clock)
    broken = servers.all[0].breaker
    for _ in range(2):
        broken.probe_failed()
        clock.now += LONGEST_PAUSE
        assert asyncio.run(servers.choose(clock.now)) is servers.all[1]
        assert broken.state == "open"


def test_who_waits_too_long_learns_how_each_server_failed() -> None:
    servers = three()
    for server in servers.all:
        server.breaker.probe_failed()
        server.trouble = f"did not answer at {server.name}"
    with pytest.raises(Unavailable, match=r"0 s: http://a/v1 did not .*; http://b/v1 did not .*; http://c/v1 did"):
        asyncio.run(servers.choose(since=0.0))


@pytest.mark.parametrize("url", ["ftp://me:word@host/v1", "http://[::1", "http://me:word@[::1", "me:word@host"])
def test_what_is_no_address_is_said_without_its_password(url: str) -> None:
    with pytest.raises(UserError, match="no server's address") as caught:
        Endpoint(url)
    assert "word" not in str(caught.value)


def test_servers_that_answer_others_are_there_but_no_request_waits_for_ever() -> None:
    clock = FakeClock()
    servers = Endpoints(["http://a/v1"], 300.0, no_probe, clock)
    since = clock.now
    while clock.now - since < 299 * PATIENCE:
        clock.now += 299
        servers.check_outage(since)
        servers.answered()
    with pytest.raises(Unavailable, match="answered others, but put a request off for 3000 s"):
        clock.now += 299
        servers.check_outage(since)
    with pytest.raises(Unavailable, match="no chat server was there for 300 s"):
        clock.now += 1
        servers.check_outage(since)
