"""Kinds of blocks to build one's own on, and ``Webhook``, which calls an address: under the names Prefect has for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, SecretStr

from ..errors import HarkError
from .blocks import Block
from .logging import get_logger, get_run_logger
from .persistence.block_schema import all_secret

__all__ = [
    "CredentialsBlock", "DatabaseBlock", "JobBlock", "JobRun", "NotificationBlock", "NotificationError",
    "ObjectStorageBlock", "SecretBlock", "SecretDict", "Webhook",
]  # fmt: skip

T = TypeVar("T")


SecretDict = Annotated[dict[str, Any], AfterValidator(all_secret)]
"""A mapping whose values are secrets: read with ``.get_secret_value()`` each."""


class NotificationError(HarkError):
    """A notification could not be sent; ``log`` is what the sender said."""

    def __init__(self, log: str) -> None:
        super().__init__(f"the notification was not sent: {log}")
        self.log = log


class _Logs(Block):
    @property
    def logger(self) -> Any:
        """The logger of the run the code is in; outside of any, one under the block's name."""
        from .context import current_run

        return get_run_logger() if current_run.get() is not None else get_logger(type(self).__name__)


class CredentialsBlock(_Logs, ABC):
    """What is needed to get at some service; ``get_client`` gives what speaks to it."""

    @abstractmethod
    def get_client(self, *args: Any, **kwargs: Any) -> Any:
        """Return a client of the service."""


class NotificationBlock(_Logs, ABC):
    """What can tell people something."""

    @abstractmethod
    def notify(self, body: str, subject: str | None = None) -> Any:
        """Send a message."""

    @contextmanager
    def raise_on_failure(self) -> Generator[Self]:
        """For subclasses that swallow failures: raise ``NotificationError`` inside the block instead."""
        yield self


class JobRun(ABC, Generic[T]):
    """A job that was started somewhere else."""

    @abstractmethod
    def wait_for_completion(self) -> Any:
        """Wait until it has ended."""

    @abstractmethod
    def fetch_result(self) -> T:
        """Return what it came to."""


class JobBlock(_Logs, ABC):
    """What can start jobs somewhere else."""

    @abstractmethod
    def trigger(self) -> Any:
        """Start a job and return its ``JobRun``."""


class SecretBlock(_Logs, ABC):
    """A secret that is kept somewhere else."""

    @abstractmethod
    def read_secret(self) -> Any:
        """Return its bytes."""

    @abstractmethod
    def write_secret(self, secret_data: bytes) -> Any:
        """Keep other bytes; return its name."""


class DatabaseBlock(_Logs, ABC):
    """A database: entered, it is connected; left, it is not any more."""

    @abstractmethod
    def fetch_one(self, operation: str, parameters: Any = None, **execution_kwargs: Any) -> Any:
        """Return one row."""

    @abstractmethod
    def fetch_many(
        self, operation: str, parameters: Any = None, size: int | None = None, **execution_kwargs: Any
    ) -> Any:
        """Return up to ``size`` rows."""

    @abstractmethod
    def fetch_all(self, operation: str, parameters: Any = None, **execution_kwargs: Any) -> Any:
        """Return all rows."""

    @abstractmethod
    def execute(self, operation: str, parameters: Any = None, **execution_kwargs: Any) -> Any:
        """Do something that returns no rows."""

    @abstractmethod
    def execute_many(self, operation: str, seq_of_parameters: Any, **execution_kwargs: Any) -> Any:
        """Do it once for each of the parameters."""


class ObjectStorageBlock(_Logs, ABC):
    """A store of files."""

    @abstractmethod
    def download_object_to_path(self, from_path: str, to_path: str, **download_kwargs: Any) -> Any:
        """Copy one to a file."""

    @abstractmethod
    def download_object_to_file_object(
        self, from_path: str, to_file_object: Any, **download_kwargs: Any
    ) -> Any:
        """Copy one to an open file."""

    @abstractmethod
    def download_folder_to_path(self, from_folder: str, to_folder: str, **download_kwargs: Any) -> Any:
        """Copy all below a folder."""

    @abstractmethod
    def upload_from_path(self, from_path: str, to_path: str, **upload_kwargs: Any) -> Any:
        """Keep a file."""

    @abstractmethod
    def upload_from_file_object(self, from_file_object: Any, to_path: str, **upload_kwargs: Any) -> Any:
        """Keep what an open file holds."""

    @abstractmethod
    def upload_from_folder(self, from_folder: str, to_folder: str, **upload_kwargs: Any) -> Any:
        """Keep all below a folder."""


class Webhook(Block):
    """An address to call: ``Webhook.load("ci").call({"ref": "main"})``, awaited in async code.

    Args:
        headers: sent along; secrets, like the address.
        verify: whether certificates are checked.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    url: SecretStr
    headers: SecretDict = Field(default_factory=dict)
    verify: bool = True

    def call(self, payload: Any = None) -> Any:
        """Call the address and return the answer (``httpx.Response``).

        Args:
            payload: sent as JSON; a text as it is.
        """
        from .sync_async.either import is_async_here

        return self.acall(payload) if is_async_here() else self._call(payload)

    def _call(self, payload: Any) -> Any:
        import httpx

        with httpx.Client(verify=self.verify) as client:
            return client.request(**self._request(payload))

    async def acall(self, payload: Any = None) -> Any:
        """Do what ``call`` does, in async code."""
        import httpx

        async with httpx.AsyncClient(verify=self.verify) as client:
            return await client.request(**self._request(payload))

    def _request(self, payload: Any) -> dict[str, Any]:
        headers = {name: value.get_secret_value() for name, value in self.headers.items()}
        body = {"content": payload} if isinstance(payload, str | bytes) else {"json": payload}
        if payload is None:
            body = {}
        return {"method": self.method, "url": self.url.get_secret_value(), "headers": headers, **body}
