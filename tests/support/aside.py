"""Steps of a test in a thread of their own, while the test itself waits for what they bring about."""

from __future__ import annotations

import threading


class Aside:
    """Runs steps in a thread and brings their error back."""

    def __init__(self, *steps: object) -> None:
        self._steps = steps
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            for step in self._steps:
                step()  # type: ignore[operator]  # callables of many kinds
        except BaseException as error:  # brought back below
            self._error = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        if self._error is not None:
            raise self._error
