"""The end of a room that lives inside it: runs commands, and measures each whole process.

Run as a script by :mod:`tests.bench.room`, already in new network and mount namespaces. It
imports little and stays small on purpose: Linux counts the memory of the process that spawns
into the peak of the process that was spawned, so this one's size is the least that is seen.

Reads one JSON request a line, answers one JSON object a line, ends when its input does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

# What programs keep between two calls: the xtables lock, and files of their own. In the room
# each is an empty directory, so that neither meets the host's.
PRIVATE = ("/run", "/var/lib/nfctl")


def spawn(request: dict[str, str | list[str]]) -> dict[str, float]:
    """Run one command to its end: its exit code, seconds of wall and CPU, and peak memory."""
    argv = [str(word) for word in request["argv"]]
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    files = [
        (os.POSIX_SPAWN_OPEN, 0, str(request.get("stdin", os.devnull)), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(request.get("stdout", os.devnull)), write, 0o600),
    ]
    if "stderr" in request:
        files.append((os.POSIX_SPAWN_OPEN, 2, str(request["stderr"]), write, 0o600))
    start = time.perf_counter()
    try:
        # Python ignores SIGPIPE; what it starts should not.
        pid = os.posix_spawnp(
            argv[0], argv, os.environ, file_actions=files, setsigdef=[signal.SIGPIPE]
        )
    except OSError as error:
        return {"code": 127, "errno": error.errno or 0}
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    return {
        "code": os.waitstatus_to_exitcode(status),
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "rss_kib": usage.ru_maxrss,
    }


def main() -> None:
    """Make the private directories, say that the room is ready, and serve."""
    for path in PRIVATE:
        if os.path.isdir(path):  # noqa: PTH112 - pathlib would double this process
            mount = ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", path]
            if spawn({"argv": mount})["code"]:
                sys.exit(f"cannot mount a private {path}")
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(spawn(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
