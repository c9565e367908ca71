"""Every error Hark raises, in one tree. Branch by what the caller can do about it.

::

    HarkError
    ├── DefinitionError          fix what you wrote (flow, rule, YAML, settings); trying again cannot help
    │   ├── ParameterError         a flow was called with parameters it does not take; ParameterBindError,
    │   │                          ParameterTypeError and SignatureMismatchError say in which way
    │   ├── ReservedArgumentError  a parameter has a name that calls keep for themselves; also a TypeError
    │   ├── InvalidNameError       a name may not stand in events and addresses; also a ValueError
    │   ├── InvalidValueError      a value is none of those that may stand there; also a ValueError
    │   ├── HashError              what a cache key is made of cannot be hashed
    │   ├── MappingError           `.map` was given iterables it cannot pair up: MappingMissingIterable,
    │   │                          MappingLengthMismatch
    │   ├── Unpicklable            a value cannot go to another process; also a TypeError
    │   ├── TemplateError          a template does not parse, or failed while rendering
    │   ├── UnknownName            a deployment, channel, secret, … that does not exist; UnknownBlock, UnknownBlockKind,
    │   │                          UnknownLimit and MissingFlow are of this kind
    │   ├── SlotsRefused           a limit cannot give what was asked of it; also a ValueError
    │   ├── BlockUnfit             a saved block does not fit its class any more; also a RuntimeError
    │   ├── ScriptFailed           the file a flow is in cannot be imported
    │   ├── NotSerializable        a result cannot be written by its serializer; also a TypeError
    │   └── EventInvalid           an event breaks a rule of the envelope; also a ValueError
    ├── RefusedError             asked for something that may not be done (now)
    │   ├── GuardFailed            somebody else wrote first; read again and decide again
    │   ├── RunLost                this process no longer owns the run; stop writing
    │   ├── MoveRefused            that move between states does not exist
    │   ├── NotPaused              ... a run that is not paused cannot be resumed
    │   ├── EnteredTwice           a transaction was entered again; also a RuntimeError
    │   ├── ResultLocked           somebody else has locked the key of a result; also a RuntimeError
    │   ├── SuspendRefused         nobody could take the run up again by itself; also a RuntimeError
    │   ├── NotRunning             ... or it has ended, or is being cancelled: a SuspendRefused and a MoveRefused
    │   ├── BlockNotSaved          it takes a block that has been saved; also a RuntimeError
    │   ├── BlockRegistrationRefused  ``Block`` itself was to be registered
    │   ├── AlreadyHeld            the home, lease or name is held by another
    │   ├── AlreadyExists          something of this name is there, and overwriting it was not asked for; also a ValueError
    │   ├── EventRefused           the broker will not store this event, for a reason that stays
    │   ├── LogRewound             the log ends before the position asked for; fold again from the start
    │   ├── MissingContextError    something that needs a run was called outside one
    │   └── AccessDenied           no key, or a key that may not do this
    ├── LimitError               a stated bound was reached
    │   ├── EventTooLarge          the encoded event is larger than the broker takes
    │   ├── BufferFull             the publisher's buffer is full; wait and try again
    │   ├── StreamFull             the broker holds as much of this as it may; also a BusUnavailable
    │   ├── SlotsTimedOut          the slots of a limit were not free in time; also a TimeoutError
    │   ├── SlotsLost              the slots of a limit went to others while the code ran
    │   └── RateLimited            more per time than was agreed; carries ``retry_after_s``
    ├── UnavailableError         try later: broker, database or a service cannot be reached
    │   ├── BusUnavailable
    │   ├── ResultStorageFailed    a storage of results could not be read or written
    │   ├── SourceFailed           the repository a flow's code is in could not be fetched
    │   ├── NotificationFailed     some addresses of a channel did not take the message
    │   └── BrokerStartFailed
    ├── DataError                what was stored cannot be used; giving up is all that is left
    │   ├── SecretUnreadable       a secret was encrypted with another key than the one at hand
    │   ├── ObjectCorrupt          a stored object is incomplete, or its bytes are not what was stored
    │   ├── ReadModelDamaged       the files of the read model are gone, cut or overwritten; fold the log anew
    │   └── BackupUnreadable       a file is no backup, or one that is cut off, damaged, or of a newer Hark
    └── RunError                 what running somebody's code came to
        ├── FlowFailed / TaskFailed / RunCrashed / RunCancelled
        ├── ProcessDied            the process in which a task ran died; a RunCrashed
        ├── RunUnfinished          its result was asked for before it ended
        │   ├── RunPaused            ... while it was paused
        │   └── UpstreamFailed       a task was not run, because what it waits for did not complete
        │       └── DependsOnItself    ... or because it waits for itself; also a ValueError
        ├── RunTimedOut            it took longer than its `timeout_seconds`; also a TimeoutError
        ├── PauseTimedOut          a paused run was not resumed in time; also a TimeoutError
        ├── RunWaitTimedOut        a run somebody waited for did not end in time; also a TimeoutError
        ├── EventWaitTimedOut      the event a run waited for did not come in time; also a TimeoutError
        └── ResultMissing          a recorded result cannot be read back; also a ValueError

An error carries its facts as attributes; nobody needs to parse a message.
"""

from __future__ import annotations

from collections.abc import Sequence

from .error_forms import *  # noqa: F403 - the tree is one, for all who ask
from .error_forms import (
    DefinitionError,
    HarkError,
    MissingFlowError,
    MissingResult,
    NotPausedError,
    ObjectAlreadyExists,
    ObjectNotFound,
)

# --- fix what you wrote -------------------------------------------------------------------------------


class InvalidNameError(DefinitionError, ValueError):
    """A name is empty, too long, or has characters that may not stand in events and addresses."""


class InvalidValueError(DefinitionError, ValueError):
    """A value is none of those that may stand there."""


class HashError(DefinitionError, ValueError):
    """A value that a cache key is made of can neither be written as JSON nor pickled."""


class MappingError(DefinitionError):
    """``.map`` was given nothing to iterate over, or iterables of different lengths."""


class MappingMissingIterable(MappingError):
    """``.map`` was given nothing to iterate over."""


class MappingLengthMismatch(MappingError):
    """``.map`` was given iterables of different lengths."""


class Unpicklable(DefinitionError, TypeError):
    """A value that has to go to another process, or come back from one, cannot be pickled."""


class TemplateError(DefinitionError):
    """A template does not parse, or failed while rendering."""


_MOST_NAMES = 8
"""Names that an error tells of, at most."""
_LISTED_BY = {
    "flow run": "runs", "task run": "tasks", "event": "events", "artifact": "artifacts", "dead letter": "dlq",
    "approval": "approvals", "variable": "variables", "limit": "limits",
}  # fmt: skip
"""Which command lists things of a kind that are too many to be named."""


class UnknownName(ObjectNotFound):
    """A named thing does not exist; the message suggests near ones."""

    def __init__(self, kind: str, name: str, *, known: Sequence[str] = ()) -> None:
        from difflib import get_close_matches

        near = get_close_matches(name, known, n=1, cutoff=0.6)
        tail = f"; did you mean {near[0]!r}?" if near else ""
        published = self._published(kind, name)
        DefinitionError.__init__(
            self,
            f"{published}{': ' if published else ''}there is no {kind} named {name!r}{tail}",
            hint="" if near else _what_there_is(kind, known),
        )
        self.kind, self.name, self.suggestion = kind, name, near[0] if near else None

    def _published(self, kind: str, name: str) -> str:
        """Return what Prefect says of such a thing, which programs and tests look for; "" where it has no words of its own."""
        return ""


def _what_there_is(kind: str, known: Sequence[str]) -> str:
    if not known:
        return f"`hark {_LISTED_BY[kind]} ls` lists them" if kind in _LISTED_BY else ""
    more = f" and {len(known) - _MOST_NAMES} more" if len(known) > _MOST_NAMES else ""
    return f"there is {', '.join(map(repr, sorted(known)[:_MOST_NAMES]))}{more}"


class UnknownBlock(UnknownName, ValueError):
    """There is no saved block of this name."""

    def _published(self, kind: str, name: str) -> str:
        slug, slash, last = name.partition("/")
        return f"Unable to find block document named {last} for block type {slug}" if slash else ""


class UnknownBlockKind(UnknownName):
    """Nothing that has been imported is a block of this kind; import its class first."""


class BlockUnfit(DefinitionError, RuntimeError):
    """What is stored of a block does not fit its class; ``load(…, validate=False)`` takes it as it is."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(
            f"block {key!r} cannot be loaded: {why}",
            hint="load it with validate=False and save it again with overwrite=True",
        )
        self.key = key


class SlotsRefused(DefinitionError, ValueError):
    """A limit cannot give what was asked of it, however long one waits."""


class UnknownLimit(UnknownName, SlotsRefused):
    """There is no limit of this name."""

    def _published(self, kind: str, name: str) -> str:
        return f"Concurrency limits {[name]} must be created before acquiring slots"


class MissingFlow(MissingFlowError, UnknownName):
    """A file or module has no flow of the name asked for."""

    def _published(self, kind: str, name: str) -> str:
        where = kind.removeprefix("flow in ")
        return f"Flow function with name {name!r} not found in {where!r}" if where != kind else ""


class MissingFile(DefinitionError, FileNotFoundError):
    """The file that an entrypoint names is not there."""


class ScriptFailed(DefinitionError):
    """The file a flow is in raised while it was imported; ``user_exc`` is what it raised."""

    def __init__(self, user_exc: Exception, path: str) -> None:
        super().__init__(f"Script at {str(path)!r} encountered an exception: {user_exc!r}")
        self.user_exc, self.path = user_exc, path


class SourceUnknown(DefinitionError, TypeError):
    """What was given as the source of a flow's code is of no kind that code can be had from."""


class NotSerializable(DefinitionError, TypeError):
    """A result cannot be written by the serializer it is to be written with."""


class EventInvalid(DefinitionError, ValueError):
    """An event breaks a rule of the envelope; ``field`` names the attribute."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"event attribute {field!r} {problem}")
        self.field, self.problem = field, problem


# --- refused ------------------------------------------------------------------------------------------


class RefusedError(HarkError):
    """What was asked may not be done, or not now."""


class ResultLocked(RefusedError, RuntimeError):
    """A result was to be written whose key somebody else has locked."""


class EnteredTwice(RefusedError, RuntimeError):
    """A transaction was entered again."""


class SuspendRefused(RefusedError, RuntimeError):
    """A run was to be suspended that nobody could take up again by itself."""


class GuardFailed(RefusedError):
    """A guarded append named a sequence that is no longer the last one: somebody else wrote first."""

    def __init__(self, subject: str, *, expected: int) -> None:
        super().__init__(f"append on {subject!r} expected last sequence {expected}, and it was not")
        self.subject, self.expected = subject, expected


class RunLost(RefusedError):
    """This process no longer owns the run: another one wrote its next transition."""

    def __init__(self, run_id: str, *, reason: str) -> None:
        super().__init__(f"run {run_id} is no longer ours: {reason}")
        self.run_id, self.reason = run_id, reason


class MoveRefused(RefusedError):
    """The table of allowed moves has no such move."""

    def __init__(self, run_id: str, *, from_state: str, to_state: str, why: str = "") -> None:
        tail = f": {why}" if why else ""
        super().__init__(f"run {run_id} is {from_state} and cannot become {to_state}{tail}")
        self.run_id, self.from_state, self.to_state = run_id, from_state, to_state


class NotPaused(NotPausedError, MoveRefused):
    """A run that is not paused was to be resumed."""

    def __init__(self, run_id: str, *, from_state: str) -> None:
        super().__init__(run_id, from_state=from_state, to_state="resumed", why="it is not paused")


class NotRunning(MoveRefused, SuspendRefused):
    """A run that has ended, or is being cancelled, was to be paused or suspended."""

    def __init__(self, run_id: str, *, from_state: str, to_state: str = "suspended") -> None:
        super().__init__(run_id, from_state=from_state, to_state=to_state, why="it is not running")


class AlreadyExists(ObjectAlreadyExists, RefusedError, ValueError):
    """Something of this name is there already, and ``overwrite=True`` was not said."""

    def __init__(self, kind: str, name: str) -> None:
        RefusedError.__init__(
            self,
            f"{kind} {name!r} already exists: the name is already in use",
            hint="say overwrite=True to change it",
        )
        self.kind, self.name = kind, name


class BlockNotSaved(RefusedError, RuntimeError):
    """What was asked for takes a block that has been saved under a name."""

    def __init__(self, slug: str) -> None:
        super().__init__(f"this block of kind {slug!r} has not been saved; call its save(name) first")


class BlockRegistrationRefused(RefusedError):
    """``Block`` itself is no kind of block."""


class AlreadyHeld(RefusedError):
    """A home, lease or name is held by another; ``holder`` says by whom."""

    def __init__(self, what: str, *, holder: str, hint: str = "") -> None:
        super().__init__(f"{what} is held by {holder}", hint=hint)
        self.what, self.holder = what, holder


class MissingContextError(RefusedError, RuntimeError):
    """Something that only means anything inside a flow or task run was called outside one."""


class EventRefused(RefusedError):
    """The broker will not store an event, and sending it again cannot help."""

    def __init__(self, subject: str, *, msg_id: str = "", why: str) -> None:
        super().__init__(f"the broker refuses the event {msg_id or '(no id)'} on {subject!r}: {why}")
        self.subject, self.msg_id, self.why = subject, msg_id, why


class LogRewound(RefusedError):
    """The log ends before the position asked for, or has another event there: the broker lost its tail, or is another one."""

    def __init__(self, stream: str, *, after: int, head: int) -> None:
        super().__init__(
            f"the stream {stream}, which ends at sequence {head}, has lost what was read up to sequence {after}",
            hint="whatever was folded from the lost part must be folded again from the start: `hark rebuild`",
        )
        self.stream, self.after, self.head = stream, after, head


class AccessDenied(RefusedError):
    """No key was given, or the key may not do this."""


# --- limits -------------------------------------------------------------------------------------------


class LimitError(HarkError):
    """A stated bound was reached."""


class EventTooLarge(LimitError):
    """The encoded event is larger than the broker takes; trying again cannot help."""

    def __init__(self, subject: str, *, size_bytes: int, limit_bytes: int, index: int | None = None) -> None:
        """``index``: its place among those given together, from 0."""
        which = "event" if index is None else f"event [{index}]"
        super().__init__(
            f"{which} on {subject!r} is {size_bytes} bytes, and the broker takes {limit_bytes} at most",
            hint="put large data in the object store and send a reference in `data`",
        )
        self.subject, self.size_bytes, self.limit_bytes, self.index = subject, size_bytes, limit_bytes, index


class BufferFull(LimitError):
    """The publisher's buffer is full: events are made faster than the broker takes them."""

    def __init__(self, *, size: int) -> None:
        super().__init__(f"{size} events are waiting to be published, which is the bound")
        self.size = size


class SlotsTimedOut(LimitError, TimeoutError):
    """The slots of a named limit were not free in time."""

    def __init__(self, name: str, *, occupy: int, timeout_s: float) -> None:
        what = "a slot" if occupy == 1 else f"{occupy} slots"
        super().__init__(f"{what} of limit {name!r} did not come free within {timeout_s:g} s")
        self.name, self.occupy, self.timeout_s = name, occupy, timeout_s


class SlotsLost(LimitError):
    """The slots of limits went to others while the code that held them ran: this process was taken for dead."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"the slots of {', '.join(map(repr, names))} were lost while the code ran")
        self.names = tuple(names)


class RateLimited(LimitError):
    """More per time than was agreed; try again after ``retry_after_s`` seconds."""

    def __init__(self, what: str, *, retry_after_s: float) -> None:
        super().__init__(f"{what} is over its rate; try again in {retry_after_s:.1f} s")
        self.what, self.retry_after_s = what, retry_after_s


# --- try later ----------------------------------------------------------------------------------------


class UnavailableError(HarkError):
    """Something outside cannot be reached now."""


class BusUnavailable(UnavailableError):
    """The broker does not answer, or JetStream has no leader."""


class StreamFull(LimitError, BusUnavailable):
    """What the broker keeps of this kind has its stated size; nothing more is taken until something has left."""

    def __init__(self, subject: str, *, why: str) -> None:
        super().__init__(
            f"the broker has no room for {subject!r}: {why}",
            hint="remove what is no longer needed, or raise HARK_BUS__WORK_MAX_BYTES, HARK_BUS__BUCKETS_MAX_BYTES or "
            "HARK_BUS__OBJECTS_MAX_BYTES",
        )
        self.subject, self.why = subject, why


class BrokerStartFailed(UnavailableError):
    """The embedded broker did not come up; the message ends with its last log lines."""


class SourceFailed(UnavailableError):
    """The code of a flow could not be fetched from where it is; ``url`` says where."""

    def __init__(self, url: str, *, why: str, hint: str = "") -> None:
        super().__init__(f"the code at {url} cannot be had: {why}", hint=hint)
        self.url, self.why = url, why


class NotificationFailed(UnavailableError):
    """Some addresses of a channel did not take a message; the others did and will not get it again.

    Attributes:
        channel: its name, or the scheme of a bare address.
        is_named: there is a channel of that name; if not, the addresses stood in the action.
        failures: (address kind such as ``mailto``, redacted reason) of each address that failed.
    """

    def __init__(
        self, channel: str, *, failures: Sequence[tuple[str, str]], sent: int = 0, is_named: bool = True
    ) -> None:
        reasons = "; ".join(f"{kind}: {reason}" for kind, reason in failures)
        others = f" ({sent} took it)" if sent else ""
        many = f"{len(failures)} of {len(failures) + sent} addresses failed{others}: {reasons}"
        if is_named:
            super().__init__(
                f"channel {channel!r}: {many}", hint=f"try it with `hark channels test {channel}`"
            )
        else:
            super().__init__(
                many, hint="look at the address the action names; a channel can be tried by itself"
            )
        self.channel, self.failures, self.sent = channel, tuple(failures), sent


# --- damaged ------------------------------------------------------------------------------------------


class DataError(HarkError):
    """What was stored cannot be used any more."""


class SecretUnreadable(DataError):
    """A secret was encrypted with another key, or its stored form is damaged."""

    def __init__(self, name: str, *, why: str) -> None:
        super().__init__(
            f"the secret {name!r} cannot be read: {why}",
            hint=f"put the old secret.key back, or set it again: `hark secrets set {name}`",
        )
        self.name, self.why = name, why


class ObjectCorrupt(DataError):
    """A stored object is incomplete, or its bytes are not those that were stored."""

    def __init__(self, name: str, *, why: str) -> None:
        super().__init__(
            f"object {name!r} is damaged: {why}",
            hint="restore it from a backup, or make it again and delete it",
        )
        self.name, self.why = name, why


class ReadModelDamaged(DataError):
    """The files of the read model are not what was written to them. Nothing is in them that the log does not have."""

    def __init__(self, path: object, *, why: str) -> None:
        super().__init__(
            f"the read model at {path} is damaged: {why}",
            hint="it is made anew from the log; try again in a moment",
        )
        self.path, self.why = str(path), why


class BackupUnreadable(DataError):
    """A file cannot be restored from: it is no backup, cut off, damaged, or of a newer Hark. Nothing has been changed."""

    def __init__(self, path: str, why: str, *, hint: str = "use another backup") -> None:
        super().__init__(f"{path} cannot be restored: {why}", hint=hint)
        self.path, self.why = path, why


# --- running somebody's code --------------------------------------------------------------------------


class RunError(HarkError):
    """What running a flow or a task came to."""


class FlowFailed(RunError):
    """A flow run ended FAILED without an exception of its own to raise."""


class TaskFailed(RunError):
    """A task run ended FAILED without an exception of its own to raise."""


class RunCrashed(RunError):
    """A run ended CRASHED: its process died or its infrastructure did."""


class ProcessDied(RunCrashed):
    """The process in which a task ran died, or was killed; ``run_id`` says whose it was."""

    def __init__(self, message: str, *, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class RunCancelled(RunError):
    """A run ended CANCELLED."""


class RunUnfinished(RunError):
    """The result of a run was asked for before it ended."""


class RunPaused(RunUnfinished):
    """The result of a run was asked for while it was paused; ``state`` is what it was, if the maker said so."""

    def __init__(self, *args: object, state: object = None) -> None:
        super().__init__(*args)
        self.state = state


class RunTimedOut(RunError, TimeoutError):
    """A flow or task took longer than its ``timeout_seconds``.

    Attributes:
        seconds: the limit.
        run_id: the run whose limit it was, once that has ended; others it passes through did not reach theirs.
    """

    def __init__(self, message: str, *, seconds: float | None = None, run_id: str | None = None) -> None:
        super().__init__(message)
        self.seconds, self.run_id = seconds, run_id


class PauseTimedOut(RunError, TimeoutError):
    """A run paused, and nobody resumed it in time."""


class RunWaitTimedOut(RunError, TimeoutError):
    """A run that somebody waited for did not end in time."""


class EventWaitTimedOut(RunError, TimeoutError):
    """The event somebody waited for did not come in time."""


class UpstreamFailed(RunUnfinished):
    """A task was not run, because what it waits for did not complete."""


class DependsOnItself(UpstreamFailed, ValueError):
    """A task run waits for itself: its future was put into one of its arguments after it had been submitted."""


class ResultMissing(MissingResult, RunError, ValueError):
    """A recorded result cannot be read back; ``run_id`` and ``key`` say which."""

    def __init__(self, run_id: str, key: str, *, why: str) -> None:
        super().__init__(f"the result of run {run_id} under key {key!r} cannot be read: {why}")
        self.run_id, self.key = run_id, key


class ResultStorageFailed(UnavailableError):
    """A storage of results could not be read or written; ``storage`` and ``key`` say which."""

    def __init__(self, storage: str, key: str, *, doing: str, why: str) -> None:
        super().__init__(f"{doing} the result {key!r} at {storage} failed: {why}")
        self.storage, self.key = storage, key
