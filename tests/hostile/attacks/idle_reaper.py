"""PID 1 of the sandbox is made to run only when nothing else wants to, and then there is always something that does."""

import os

from attempts import attempt, say

SPINNERS = 50


def main() -> None:
    attempt("idle", lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)))
    attempt("one processor", lambda: os.sched_setaffinity(1, {min(os.sched_getaffinity(0))}))
    for _ in range(SPINNERS):
        if os.fork() == 0:
            while True:
                pass
    say("done", "yes")
    while True:
        pass


if __name__ == "__main__":
    main()
