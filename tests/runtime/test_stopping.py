"""Signals that ask to stop: a closed terminal as well, unless it is to be outlived."""

import os
import signal

import pytest

from reslab.runtime.stopping import asked_to_stop

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of a process that was not started to ignore them."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_is_a_request_and_is_given_back(number):
    with asked_to_stop() as request:
        assert not request.is_set
        os.kill(os.getpid(), number)
        assert request.is_set
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_signal_that_the_process_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As under `nohup`.
    with asked_to_stop() as request:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not request.is_set
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_only_a_second_interrupt_is_not_patient():
    with asked_to_stop() as request:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert request.is_set
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_before_it_listens_a_signal_does_what_it_did():
    with asked_to_stop(is_listening=False) as request:
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        request.listen()
        assert signal.getsignal(signal.SIGHUP) != signal.SIG_DFL
