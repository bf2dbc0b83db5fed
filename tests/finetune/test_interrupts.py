from __future__ import annotations

import contextlib
import signal
import threading

import pytest

from frostline.finetune.interrupts import listening, loading


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_the_first_signal_asks_and_the_second_stops_at_once(number):
    with listening() as stop:
        stop.obey()
        signal.raise_signal(number)
        assert stop.made
        with pytest.raises(KeyboardInterrupt):
            stop.obey()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_handlers_are_as_before_afterwards():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]

    def fail_inside() -> None:
        with listening():
            assert not set(before) & {signal.getsignal(number) for number in numbers}
            raise ValueError("from inside")

    with pytest.raises(ValueError, match="from inside"):
        fail_inside()
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_thread_that_may_not_handle_signals_trains_all_the_same():
    made = []

    def train() -> None:
        with listening() as stop:
            made.append(stop.made)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert made == [False]


def test_a_ctrl_c_that_is_swallowed_while_loading_is_not_lost():
    with loading():
        with contextlib.suppress(KeyboardInterrupt):  # as an import of compiled code may
            signal.raise_signal(signal.SIGINT)
        with listening() as stop, pytest.raises(KeyboardInterrupt):
            stop.obey()
    with listening() as stop:
        stop.obey()
