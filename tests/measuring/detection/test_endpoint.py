"""The client of an OpenAI-compatible API, against a real server behind a proxy that fails as real ones do."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from itertools import pairwise
from urllib.parse import quote

import pytest

from tests.servers import MODEL, Proxy, Reply, make_endpoint, server_url
from versatune_plugin.measuring.detection.endpoint import RefusedRequest

TEXTS = [f"text {number}" for number in range(8)]
SECRET = "sk-very/secret+0123456789"


@pytest.fixture(scope="module")
def server():
    return server_url()


@pytest.fixture
def proxy(server):
    with Proxy(server) as proxy:
        yield proxy


def ask(session, text):
    """A chat about a text, as short as can be."""
    content = f"<text>\n{text}\n</text>"
    answer = session.chat(messages=[{"role": "user", "content": content}], max_tokens=1)
    return json.loads(answer)["usage"]["completion_tokens"]


def try_out(endpoint):
    return endpoint.try_out(lambda session: ask(session, "the start"))


def all_of(endpoint, texts=TEXTS):
    """The answer to each text."""
    return dict(endpoint.stream(ask, texts))


def is_question(request):
    """Whether it asks about one of our texts, rather than at the start."""
    return request.text in TEXTS


# --- answers ------------------------------------------------------------------------------------------------


def test_every_job_is_answered_once_and_so_many_at_a_time(proxy):
    endpoint = make_endpoint(proxy.url)
    assert try_out(endpoint) == 1
    assert all_of(endpoint) == dict.fromkeys(TEXTS, 1)
    assert set(proxy.seen[text] for text in TEXTS) == {1}
    assert proxy.most_in_flight == 4
    assert (endpoint.counts["num_requests"], endpoint.counts["num_retries"]) == (9, 0)
    assert endpoint.counts["num_completion_tokens"] == 9
    assert endpoint.counts["num_prompt_tokens"] > 9
    assert all_of(endpoint, []) == {}


def test_requests_keep_to_the_limit_per_minute(proxy):
    times = []
    proxy.behave = lambda request: times.append(time.monotonic())
    all_of(make_endpoint(proxy.url, requests_per_minute=240), TEXTS[:4])
    assert all(later - earlier > 0.15 for earlier, later in pairwise(times))  # 0.25 s apart, when they start


# --- a server that fails ------------------------------------------------------------------------------------


def test_429_500_time_outs_and_dropped_connections_are_repeated(proxy):
    faults = {
        TEXTS[0]: Reply(429, "{}", {"retry-after": "1"}),
        TEXTS[1]: Reply(500, "oops"),
        TEXTS[2]: Reply(after_seconds=4),
        TEXTS[3]: Reply(drop=True),
        TEXTS[4]: Reply(503, "{}"),
        TEXTS[5]: Reply(408, "{}"),
        TEXTS[6]: Reply(409, "{}"),
    }
    times = []

    def behave(request):
        if request.text == TEXTS[0]:
            times.append(time.monotonic())
        return faults.get(request.text) if request.number == 1 else None

    proxy.behave = behave
    endpoint = make_endpoint(proxy.url, concurrency=8, timeout_seconds=3)
    assert set(all_of(endpoint)) == set(TEXTS)
    assert [proxy.seen[text] for text in TEXTS] == [2] * 7 + [1]
    assert endpoint.counts["num_retries"] == 7
    assert times[1] - times[0] >= 1  # as Retry-After asks


def test_a_server_that_is_down_for_a_while_is_waited_for_and_nothing_is_lost_or_asked_twice(proxy, caplog):
    done = Counter()
    for text, _ in make_endpoint(proxy.url, concurrency=2).stream(ask, TEXTS):
        done[text] += 1
        if done.total() == 2:
            proxy.stop()
            threading.Timer(3.0, proxy.start).start()
    assert done == dict.fromkeys(TEXTS, 1)
    assert set(proxy.seen[text] for text in TEXTS) == {1}
    assert caplog.text.count(f"{proxy.url} cannot be reached") == 1
    assert caplog.text.count("waiting for it, 20 s at most") == 1
    assert caplog.text.count("answers again") == 1


def test_a_server_that_stays_down_ends_it_after_everything_finished_was_handed_over(proxy):
    done = []

    def ask_all():
        for text, _ in make_endpoint(proxy.url, concurrency=2, patience_seconds=2.0).stream(ask, TEXTS):
            done.append(text)
            if len(done) == 2:
                proxy.behave = lambda request: Reply(503, "{}")

    began = time.monotonic()
    with pytest.raises(ConnectionError, match=f"{proxy.url} failed: status 503"):
        ask_all()
    assert 2 <= len(done) == len(set(done)) <= 4
    assert time.monotonic() - began < 15


def test_a_job_on_which_a_healthy_server_always_fails_is_refused_in_the_end(proxy):
    """The others are answered meanwhile, so it is the job and not the server."""
    answer = Reply(body='{"usage": {"completion_tokens": 1}}', after_seconds=0.3)
    proxy.behave = lambda request: Reply(500, "{}") if request.text == TEXTS[0] else answer

    def ask_or_refuse(session, text):
        try:
            return ask(session, text)
        except RefusedRequest:
            return None

    endpoint = make_endpoint(proxy.url, concurrency=2, patience_seconds=1.5)
    answers = dict(endpoint.stream(ask_or_refuse, [TEXTS[0], *(f"other {number}" for number in range(12))]))
    assert [text for text, found in answers.items() if found is None] == [TEXTS[0]]


def test_a_server_that_is_down_at_the_start_is_an_error_within_seconds(proxy, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    proxy.stop()
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=f"{proxy.url} cannot be reached") as caught:
        try_out(make_endpoint(proxy.url, patience_seconds=600))
    proxy.start()
    assert time.monotonic() - began < 5
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_never_answers_at_the_start_is_an_error(proxy):
    proxy.behave = lambda request: Reply(after_seconds=2)
    with pytest.raises(ConnectionError, match=r"did not answer within 0\.5 s"):
        try_out(make_endpoint(proxy.url, timeout_seconds=0.5))


def test_a_wrong_model_name_or_path_is_an_error_that_says_what_is_there(server):
    with pytest.raises(ValueError, match=f"has no model 'smol'; it has: {MODEL}"):
        try_out(make_endpoint(server, model="smol"))
    with pytest.raises(ValueError, match="base URLs usually end in /v1"):
        try_out(make_endpoint(server.removesuffix("/v1") + "/api"))


@pytest.mark.parametrize("no_list", [Reply(404, "{}"), Reply(body="<html>")])
def test_a_server_that_does_not_list_its_models_is_asked_all_the_same(proxy, no_list):
    proxy.behave = lambda request: no_list if request.path == "/models" else None
    assert try_out(make_endpoint(proxy.url)) == 1


# --- the key ------------------------------------------------------------------------------------------------


def test_the_key_is_sent(proxy, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", f" {SECRET}\n")
    try_out(make_endpoint(proxy.url, api_key_env="JUDGE_KEY"))
    assert {request.headers["authorization"] for request in proxy.requests} == {f"Bearer {SECRET}"}


@pytest.mark.parametrize(("status", "path"), [(401, "/models"), (403, "/chat/completions")])
def test_a_refused_key_is_an_error_at_once_that_names_the_variable(proxy, monkeypatch, status, path):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    proxy.behave = lambda request: Reply(status, "{}") if request.path == path else None
    with pytest.raises(PermissionError, match=f"JUDGE_KEY: the key in it was refused \\(status {status}\\)"):
        try_out(make_endpoint(proxy.url, api_key_env="JUDGE_KEY"))
    assert sum(request.path == path for request in proxy.requests) == 1


def test_a_key_that_is_missing_or_that_no_header_can_hold_is_an_error_that_names_the_variable(proxy, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    proxy.behave = lambda request: Reply(401, "{}")
    with pytest.raises(PermissionError, match="JUDGE_KEY: it is not set"):
        try_out(make_endpoint(proxy.url, api_key_env="JUDGE_KEY"))
    monkeypatch.setenv("JUDGE_KEY", f"{SECRET}\nX-Evil: 1 ü")
    with pytest.raises(ValueError, match="JUDGE_KEY: a key must be printable ASCII") as caught:
        make_endpoint(proxy.url, api_key_env="JUDGE_KEY")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_the_key_is_nowhere_even_if_the_server_echoes_it(proxy, monkeypatch, caplog, capfd, status):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)

    def echo(request):
        header = request.headers["authorization"]
        said = json.dumps({"error": {"message": f"bad header: {header}", "again": quote(header)}}).replace("/", "\\/")
        return Reply(status, said) if is_question(request) else None

    proxy.behave = echo
    endpoint = make_endpoint(proxy.url, patience_seconds=1.0)
    try_out(endpoint)
    raised = ""
    with pytest.raises((OSError, ValueError)) as caught:
        all_of(endpoint, TEXTS[:2])
    error = caught.value
    while error is not None:
        raised += "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
        error = error.__context__ or error.__cause__
    assert ("(words that repeat the key)" in raised) == (status != 401)
    for place in (raised, caplog.text, repr(endpoint), repr(endpoint.counts), "".join(capfd.readouterr())):
        assert "secret" not in place


# --- being ended --------------------------------------------------------------------------------------------


def test_closing_the_iterator_ends_the_requests(proxy):
    answers = make_endpoint(proxy.url, concurrency=2).stream(ask, [f"text {number}" for number in range(50)])
    next(answers)
    answers.close()
    time.sleep(0.3)  # what was on its way arrives
    num_requests = len(proxy.requests)
    time.sleep(0.3)
    assert len(proxy.requests) == num_requests < 12
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("versatune")]


ASK_UNTIL_INTERRUPTED = """
import sys
from tests.servers import make_endpoint
from tests.measuring.detection.test_endpoint import TEXTS, ask
for text, _ in make_endpoint(sys.argv[1]).stream(ask, TEXTS):
    print(text, flush=True)
"""


def test_control_c_ends_the_program_while_it_waits_for_the_server(proxy):
    """Also where requests still wait for an answer that may take minutes."""
    proxy.behave = lambda request: None if request.text == TEXTS[0] else Reply(after_seconds=30)
    command = [sys.executable, "-c", "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"]
    command[-1] += ASK_UNTIL_INTERRUPTED  # a shell's background processes ignore it
    with subprocess.Popen([*command, proxy.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == TEXTS[0]
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate()
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert time.monotonic() - began < 3


# --- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "must look like http://localhost:8000/v1, got 'localhost:8000'"),
        (f"http://me:{SECRET}@host/v1", "the endpoint's URL must hold no user, password, query or fragment"),
        (f"http://host/v1?key={SECRET}", "the endpoint's URL must hold no user, password, query or fragment"),
    ],
)
def test_a_url_that_is_none_or_holds_a_secret_is_an_error(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_endpoint(url)
    assert "secret" not in str(caught.value)


def test_importing_the_module_loads_no_client_and_its_use_says_what_to_install():
    code = (
        "import sys; from versatune_plugin.measuring.detection.endpoint import Endpoint\n"
        "assert not {'openai', 'httpx', 'torch', 'transformers'} & set(sys.modules)\n"
        "sys.modules['openai'] = None\n"
        "try: Endpoint(base_url='http://localhost/v1', model='m')\n"
        "except ImportError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "endpoints need the openai client: pip install 'versatune_plugin[endpoint]'"
