"""A shell ignores Ctrl-C for what it runs in the background, and so would all processes that tests start there."""

import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
