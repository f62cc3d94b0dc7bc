"""The free disk below which a worker takes no jobs, so that one job does not fill the disk under all others."""

from collections.abc import Callable

import structlog

from jobs.settings import Settings
from worker.machine import free_bytes

log = structlog.get_logger()


class DiskFloor:
    """Watches the data folder's disk; tells the log when it gets low and when it no longer is, not each time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._told = False

    def holds(self, make_room: Callable[[], object]) -> bool:
        """Whether enough is free for work, if need be after `make_room`."""
        floor = self._settings.min_free_disk_bytes
        free = free_bytes(self._settings.data_dir)
        if free < floor:
            make_room()
            free = free_bytes(self._settings.data_dir)
        low = free < floor
        if low and not self._told:
            log.warning(
                "the disk is nearly full: no jobs are taken until there is room",
                folder=str(self._settings.data_dir.absolute()),
                free_bytes=free,
                min_free_disk_bytes=floor,
            )
        elif self._told and not low:
            log.info("there is room on the disk again: jobs are taken", free_bytes=free)
        self._told = low
        return not low
