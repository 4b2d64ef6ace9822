import json

import pytest

from tests.servers import MODEL, START_TOKEN_ID, Proxy, Reply, make_endpoint, server_url
from versatune_plugin.measuring.detection.endpoint_generation import EndpointGenerator
from versatune_plugin.measuring.detection.samples import Sample


@pytest.fixture(scope="module")
def server():
    return server_url()


@pytest.fixture
def proxy(server):
    with Proxy(server) as proxy:
        yield proxy


def make_generator(url, concurrency=4, patience_seconds=20, **settings):
    endpoint = make_endpoint(url, concurrency=concurrency, patience_seconds=patience_seconds)
    return EndpointGenerator(endpoint, start_token_id=START_TOKEN_ID, **{"max_new_tokens": 6} | settings)


def is_draw(request):
    """Whether it asks for a sample, rather than at the start."""
    return "seed" in request.body


def completion(**change):
    answer = {
        "choices": [{"text": "a", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    return Reply(body=json.dumps(answer | change))


# --- with a real server -------------------------------------------------------------------------------------


def test_every_wanted_sample_is_drawn_once_from_the_start_token_alone(proxy):
    generator = make_generator(proxy.url)
    samples = list(generator.generate(0, [7, 0, 3, 4, 9]))
    assert sorted(index for index, _ in samples) == [0, 3, 4, 7, 9]
    draws = [request.body for request in proxy.requests if is_draw(request)]
    assert len(draws) == len({draw["seed"] for draw in draws}) == 5
    for draw in draws:
        assert draw["prompt"] == [START_TOKEN_ID]
        assert (draw["max_tokens"], draw["temperature"], draw["top_p"]) == (6, 1.0, 1.0)
    for _, sample in samples:
        assert sample.text
        assert 1 <= sample.num_tokens <= 6
        assert sample.finished or sample.num_tokens == 6
    assert generator.report() == {
        "url": proxy.url,
        "num_requests": 6,
        "num_retries": 0,
        "num_prompt_tokens": 6,
        "num_completion_tokens": 1 + sum(sample.num_tokens for _, sample in samples),
    }


def test_a_sample_is_the_same_whenever_it_is_drawn_and_others_differ(server):
    first = dict(make_generator(server).generate(0, range(4)))
    again = dict(make_generator(server, concurrency=1).generate(0, [2, 1]))
    assert again == {index: first[index] for index in (1, 2)}
    next_iteration = dict(make_generator(server).generate(1, range(4)))
    other_seed = dict(make_generator(server, seed=1).generate(0, range(4)))
    assert len({sample.text for drawn in (first, next_iteration, other_seed) for sample in drawn.values()}) > 10


def test_the_servers_own_sampling_defaults_are_turned_off(server):
    """llama.cpp takes one of the 40 likeliest tokens unless told otherwise, and the start token has more successors."""
    firsts = make_generator(server, max_new_tokens=1, concurrency=8).generate(0, range(200))
    assert len({sample.text for _, sample in firsts}) > 40


def test_top_k_limits_the_choice(server):
    samples = make_generator(server, top_k=1).generate(0, range(3))
    assert len({sample.text for _, sample in samples}) == 1


def test_a_sample_that_ends_by_itself_is_finished():
    with Proxy("http://127.0.0.1:9/v1", lambda request: completion()) as proxy:
        assert list(make_generator(proxy.url).generate(0, [5])) == [(5, Sample("a", 2, True))]


def test_the_identity_tells_what_the_samples_depend_on_and_not_where_they_come_from(proxy, server):
    identity = make_generator(proxy.url, seed=3).identity()
    assert json.loads(json.dumps(identity)) == identity == make_generator(server, seed=3).identity()
    assert identity["name"] == MODEL
    assert identity["start_token_id"] == START_TOKEN_ID
    changes = ({"max_new_tokens": 7}, {"temperature": 0.5}, {"top_p": 0.5}, {"top_k": 9}, {"seed": 4})
    others = [make_generator(server, **{"seed": 3} | change).identity() for change in changes]
    assert len({json.dumps(other) for other in [identity, *others]}) == 6


# --- servers that cannot do it ------------------------------------------------------------------------------


def test_a_server_that_knows_no_top_k_is_used_with_its_defaults_and_that_is_said(proxy, caplog):
    proxy.behave = lambda request: (
        Reply(400, '{"error": "unknown argument: top_k"}') if "top_k" in request.body else None
    )
    generator = make_generator(proxy.url)
    assert generator.identity()["options"] == {}
    assert "unknown argument: top_k" in caplog.text
    assert "the server's own min_p, repetition_penalty and default top_k act on the samples" in caplog.text
    assert len(list(generator.generate(0, range(2)))) == 2
    assert generator.identity() != make_generator(proxy.target).identity()


def test_a_server_that_refuses_token_ids_is_an_error_that_says_what_is_needed(proxy):
    proxy.behave = lambda request: (
        Reply(422, '{"detail": "prompt: str expected"}') if request.path == "/completions" else None
    )
    with pytest.raises(ValueError, match=r"str expected.*need a completions API that takes a prompt of token ids"):
        make_generator(proxy.url).identity()


def test_a_server_that_adds_tokens_to_the_prompt_is_an_error(proxy):
    usage = {"prompt_tokens": 2, "completion_tokens": 1}
    proxy.behave = lambda request: completion(usage=usage) if request.path == "/completions" else None
    with pytest.raises(ValueError, match="counted 2 tokens in a prompt of one token"):
        make_generator(proxy.url).identity()


@pytest.mark.parametrize(
    "bad",
    [
        Reply(body="<html>", headers={"content-type": "text/html"}),
        completion(usage=None),
        completion(choices=[{"text": "a", "finish_reason": "abort"}]),
    ],
    ids=["html", "no usage", "aborted"],
)
def test_an_answer_that_is_no_completion_is_asked_for_again_and_then_an_error(proxy, bad):
    generator = make_generator(proxy.url)
    generator.identity()
    num_bad = iter(range(100))
    proxy.behave = lambda request: bad if next(num_bad) < 2 else None
    assert len(list(generator.generate(0, [0]))) == 1
    proxy.behave = lambda request: bad
    with pytest.raises(ValueError, match="3 answers in a row were no completion"):
        list(generator.generate(0, [0]))
