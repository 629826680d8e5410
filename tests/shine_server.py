"""Runs ``shine`` commands, each in a process of its own that need not load PyTorch anew.

Reads one JSON line per command (see `run`) and answers with its exit code. Each command runs in a
fork of this process, which has never run one itself.
"""

import importlib
import json
import os
import resource
import signal
import sys

import shine_em.cli

for name in (
    "torch._dynamo", "matplotlib.pyplot", "scipy.signal", "shine_em.files", "shine_em.demo",
    "shine_em.video",
):  # fmt: skip
    importlib.import_module(name)


def run(
    arguments: list[str],
    folder: str,
    stdout: str,
    stderr: str,
    timeout: int,
    largest_file: int,
    stop_at: str,
) -> None:
    """Become the command; never returns. Ctrl-C is pressed when it shows the word ``stop_at``."""
    os.chdir(folder)
    signal.alarm(timeout)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    for name, number in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if stop_at:
        show = sys.stdout.write

        def impatient(text: str) -> int:
            if stop_at in text:
                signal.raise_signal(signal.SIGINT)
            return show(text)

        sys.stdout.write = impatient  # type: ignore[method-assign]
    sys.argv = ["shine", *arguments]
    code = 1
    try:
        shine_em.cli.main(arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


for line in sys.stdin:
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        run(**json.loads(line))
