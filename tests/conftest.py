"""What tests share that run whole programs.

A shell ignores Ctrl-C for what it runs in the background, nohup ignores SIGHUP, and so would all processes that tests
start there.
"""

import signal

import pytest
import torch

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module")
def one_thread():
    """The same numbers on every machine, whatever its number of cores; and threads survive no fork."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
