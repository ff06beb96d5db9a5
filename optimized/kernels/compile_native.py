"""Runs a compiler that must not outlive whoever asked for it: ``compile_native.py DIRECTORY COMMAND …``.

Standard input stays open for as long as the caller lives and wants the result. When it ends early, by a crash or by
SIGKILL, the compiler and its children are killed and the directory of what it has written is removed. Standard
library only, since it is run as a script.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading


def main() -> None:
    directory, *command = sys.argv[1:]
    environment = os.environ | {"TMPDIR": directory}  # where a compiler that is killed leaves its files
    compiler = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment)
    os.setpriority(os.PRIO_PGRP, compiler.pid, 10)  # it must not get in the way of anyone

    is_left = threading.Event()

    def end_with_caller() -> None:
        sys.stdin.buffer.read(1)
        is_left.set()
        os.killpg(compiler.pid, signal.SIGKILL)  # the compiler's own children, too

    threading.Thread(target=end_with_caller, daemon=True).start()
    status = compiler.wait()
    if is_left.is_set():
        shutil.rmtree(directory, ignore_errors=True)
    os._exit(min(abs(status), 255))  # not waiting for the thread that reads


if __name__ == "__main__":
    main()
