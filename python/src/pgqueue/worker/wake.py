"""An event that other threads may set and that can be awaited with a timeout, cheaply."""

from __future__ import annotations

import asyncio


class Wake:
    """Belongs to one event loop; ``set`` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._set = False

    def set(self) -> None:
        """Wake whoever waits, or the next one who will. Costs nothing while it is already set."""
        if not self._set:
            self._set = True
            try:
                self._loop.call_soon_threadsafe(self._arrive)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _arrive(self) -> None:
        if self._set:  # else it was noticed before, as time was over in the same moment
            self._event.set()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, and reset it.

        Args:
            timeout: seconds; None waits for ever.

        Returns:
            True if it was set, False if the time is over.
        """
        timer = None if timeout is None else self._loop.call_later(timeout, self._event.set)
        try:
            await self._event.wait()
        finally:
            if timer is not None:
                timer.cancel()
            was_set, self._set = self._set, False
            self._event.clear()
        return was_set
