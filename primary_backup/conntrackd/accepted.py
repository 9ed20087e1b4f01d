"""The conntrackd.conf that a transition goes by; a promotion may go by the last one that worked."""

import os
from collections.abc import Callable

from primary_backup.conntrackd.client import Daemon, Refused, Unanswered, Unreached
from primary_backup.conntrackd.conf import ConfError, Conntrackd, read_conf, read_file
from primary_backup.plan import Replication, State
from primary_backup.rundir.directory import CONF, RunDir
from primary_backup.settings import Settings

_NO_SYNC = "no Sync section"


class Invalid(Exception):
    """The configuration allows no request; the second argument is what to do."""


class Accepted:
    """The daemon that a transition asks, and the configuration that it is reached by."""

    def __init__(
        self,
        settings: Settings,
        state: State,
        run_dir: RunDir | None,
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        """``run_dir`` has the last configuration that worked, if any did."""
        self.invalid = ""
        """Why the file itself is not used; a client may find out as late as with a request."""
        self.replication: Replication | None = None
        """The settings that decide the plan; None where the configuration could not be read."""
        self.is_idle = False
        """Whether this conntrackd replicates nothing."""
        self.is_own = True
        """Whether the daemon can be started by it: by no other file than the daemon's own."""
        self._settings = settings
        self._run_dir = run_dir
        self._may_spare = state is State.PRIMARY
        self.daemon = Daemon(
            settings.conntrackd, settings.config, None, interrupt=interrupt, spare=self._saved
        )

    def load(self) -> None:
        """Read the configuration, or the last one that worked."""
        config, conf = self._settings.config, self._read(self._settings.config)
        if conf is None or conf.mode is None:
            saved = self._saved(_NO_SYNC)
            # The client accepts an empty file, and reaches no daemon by it.
            config = saved if saved is not None and conf is not None else config
            conf = (self._read(saved) if saved is not None else None) or conf
        self.daemon = self.daemon._replace(config=config, conf=conf)
        self.replication = replication(conf)
        self.is_idle = conf is not None and conf.mode is None
        self.is_own = config == self._settings.config

    @property
    def note(self) -> str:
        """What a person must know of the configuration; empty where it is valid."""
        if not self.invalid:
            return ""
        saved = "the last file that worked was used"
        safe = "only what is safe in every mode was asked"
        return f"{saved if self.daemon.conf else safe}: {self.invalid}"

    def check(self) -> None:
        """Let the client read the file, which changes nothing; raises Invalid."""
        try:
            self.daemon.request(("-s",))
        except (Unreached, Unanswered):
            pass  # it was read and accepted, that is all that counts here
        except Refused as error:
            raise Invalid(
                str(error), "fix what the client names, then run the same command again"
            ) from error
        if self.is_idle:
            raise Invalid(
                f"{self._settings.config} has {_NO_SYNC}: there is nothing to fail over",
                "add `Sync { Mode FTFW { … } UDP { … } }`, or name the right file with --config",
            )

    def _read(self, path: str) -> Conntrackd | None:
        try:
            return read_conf(path)
        except ConfError as error:
            self.invalid = self.invalid or str(error)
            return None

    def _saved(self, why: str) -> str | None:
        """The file for a promotion whose conntrackd.conf is invalid; None where there is none."""
        try:
            if self._run_dir is None or not self._may_spare:
                return None
            if not self._run_dir.read(CONF).startswith(self._origin):
                return None  # that of another --config
        except OSError:
            return None
        self.invalid = self.invalid or f"{self._settings.config}: {why}"
        return os.path.join(self._settings.run_dir, CONF)

    def save(self) -> None:
        """Save the conntrackd.conf that worked, for a promotion that finds it broken."""
        try:
            if self._run_dir is not None:
                self._run_dir.write(CONF, self._origin + read_file(self._settings.config))
        except OSError:
            pass  # then the next one goes without

    @property
    def _origin(self) -> bytes:
        return f"# {self._settings.config}\n".encode()


def replication(conf: Conntrackd | None) -> Replication | None:
    """The settings of a conntrackd.conf that decide the plan; None where there are none."""
    if conf is None or conf.mode is None:
        return None
    return Replication(conf.mode, conf.internal_cache, conf.external_cache)
