"""Training in several processes of this machine (DDP), each forked, with progress and errors told to the one here.

fork: the user's modules and data sets need not be picklable, nor their file importable by name. Each process has one
thread: a forked copy of a process that has used OpenMP must not use its pool of threads.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from edgekit import errors
from edgekit.errors import EdgekitError, HostError, UserError
from edgekit.training.lightning_loop import StepReport, TrainingModule

__all__ = ["Relay", "forked_ddp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    """An EdgekitError in one of the processes."""

    kind: str
    message: str
    hint: str | None

    def error(self) -> EdgekitError:
        kind = getattr(errors, self.kind, UserError)
        try:
            made: EdgekitError = kind(self.message, hint=self.hint)
        except TypeError:  # an error with more to it than a message
            made = UserError(self.message, hint=self.hint)
        return made


class Relay:
    """A pipe from each process to this one."""

    def __init__(self, processes: int, on_step: Callable[[StepReport], None] | None) -> None:
        pipes = [multiprocessing.get_context("fork").Pipe(duplex=False) for _ in range(processes)]
        self._readers: list[Connection[Any, Any]] = [reader for reader, _ in pipes]
        self._writers: list[Connection[Any, Any]] = [writer for _, writer in pipes]
        self._on_step = on_step
        self.failure: BaseException | None = None
        """What one of the processes said it ended for, or what the observer of steps raised."""
        self._thread = threading.Thread(target=self._listen, daemon=True, name="edgekit training progress")

    def tell(self, report: StepReport) -> None:
        """In process 0: a step was made."""
        self._writers[0].send(report)

    def refuse(self, error: EdgekitError) -> None:
        """In any process: why it ends."""
        told = _Refused(kind=type(error).__name__, message=str(error), hint=error.hint)
        self._writers[int(os.environ["LOCAL_RANK"])].send(told)

    def start(self) -> None:
        """Listen to the processes."""
        self._thread.start()

    def finish(self) -> None:
        """All processes have ended: hear the rest."""
        for writer in self._writers:
            writer.close()
        self._thread.join()

    def _listen(self) -> None:
        while self._readers:
            for reader in wait(self._readers):
                assert isinstance(reader, Connection)  # noqa: S101 - what was given to wait
                try:
                    self._hear(reader.recv())
                except (EOFError, OSError):
                    self._readers.remove(reader)
                    reader.close()

    def _hear(self, message: StepReport | _Refused) -> None:
        if isinstance(message, _Refused):
            self.failure = self.failure or message.error()
        elif self._on_step is not None and self.failure is None:
            try:
                self._on_step(message)
            except BaseException as e:  # noqa: BLE001 - the observer's own; raised in the caller's thread
                self.failure = e


class _RelayingLauncher(_MultiProcessingLauncher):  # type: ignore[misc]  # Lightning is not followed by mypy
    def __init__(self, strategy: DDPStrategy, relay: Relay) -> None:
        super().__init__(strategy, start_method="fork")
        self._relay = relay

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self._relay.start()
        try:
            given = super().launch(functools.partial(_relayed, self._relay, function), *args, trainer=trainer, **kwargs)
        except ProcessExitedException as e:
            raise HostError(
                f"a training process ended before its time ({e})",
                hint="it may have had no memory: devices: 1 needs less",
            ) from e
        except ProcessRaisedException as e:
            self._relay.finish()
            if self._relay.failure is not None:
                raise self._relay.failure from e
            raise
        except BaseException:  # Ctrl-C: the processes got it too, or are ended here
            self.kill(9)
            raise
        finally:
            self._relay.finish()
        if self._relay.failure is not None:
            raise self._relay.failure
        return given


def _relayed(relay: Relay, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    torch.set_num_threads(1)
    try:
        return function(*args, **kwargs)
    except EdgekitError as e:
        relay.refuse(e)
        raise


class _ForkedDDP(DDPStrategy):  # type: ignore[misc]
    def __init__(self, relay: Relay, **kwargs: Any) -> None:
        super().__init__(start_method="fork", **kwargs)
        self._relay = relay

    def _configure_launcher(self) -> None:
        self._launcher = _RelayingLauncher(self, self._relay)


def forked_ddp(relay: Relay, training: TrainingModule, *, backend: str) -> dict[str, Any]:
    """Arguments for a Trainer that trains in processes of this machine, whatever cluster it is part of."""
    unused = _has_unused_parameters(training)
    strategy = _ForkedDDP(relay, process_group_backend=backend, find_unused_parameters=unused)
    return {"strategy": strategy, "plugins": [LightningEnvironment()]}


def _has_unused_parameters(training: TrainingModule) -> bool:
    """Whether the loss leaves some trained parameter without a gradient, by one step whose effects are taken back."""
    before = {name: value.clone() for name, value in training.state_dict().items()}
    batch = training.batches.source.fetch(training.batches.samples[: training.batches.batch_size])
    try:
        training.objective.step(training.module, batch).loss.backward()  # type: ignore[no-untyped-call]
        return any(p.requires_grad and p.grad is None for p in training.parameters())
    finally:
        training.zero_grad(set_to_none=True)
        training.load_state_dict(before)
