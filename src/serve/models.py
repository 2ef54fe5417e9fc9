"""The models of a server: loaded at the start or on first use, in bounded memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from ..config import Config
from ..cuda_utils import available_memory, select_device
from ..data.chat_context import ChatContext
from ..errors import AGI2Error, safe_repr
from ..formats.model_dir import TrainedModel, load_trained
from ..formats.run_dir import WEIGHTS, resolve_folder
from ..inference.engine_thread import EngineThread
from ..inference.model_runner import ModelRunner, max_batch_rows
from ..inference.prefix_cache import PrefixCache
from ..inference.prepare import prepare_for_generation
from ..tokenizer import load_tokenizer
from ..utils import human_bytes, log
from .errors import RequestError, closing
from .settings import ServeSettings


@dataclass(frozen=True)
class ModelSource:
    """A model on disk, as it is served.

    Args:
        name: by which requests name it.
        config: its configuration, with what the command line changes.
        argument: the folder or TOML file that the user has named.
    """

    name: str
    config: Config
    argument: str

    @cached_property
    def folder(self) -> Path:
        """The folder of its weights."""
        return resolve_folder(self.config, self.argument)

    @cached_property
    def weight_bytes(self) -> int:
        """Size of its weights on disk, an estimate of their size in memory."""
        return os.path.getsize(self.folder / WEIGHTS)

    @cached_property
    def created(self) -> int:
        """When its weights were saved, in seconds since 1970."""
        return int(os.path.getmtime(self.folder / WEIGHTS))

    @cached_property
    def has_template(self) -> bool:
        """Whether the model was trained on conversations."""
        return load_tokenizer(self.folder).has_roles


@dataclass
class ServedModel:
    """A loaded model and the engine that generates with it."""

    source: ModelSource
    trained: TrainedModel
    engine: EngineThread
    chat: ChatContext
    """Encodes conversations: with the model's template, or as turns of plain text."""
    users: int = 0
    """Number of requests that use it now."""
    embedding: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while hidden states are computed, outside the engine."""

    @property
    def name(self) -> str:
        """The name by which requests name it."""
        return self.source.name

    @property
    def positions(self) -> int:
        """Number of tokens that the model can attend to."""
        return self.trained.model.config.max_seq_len

    @property
    def has_template(self) -> bool:
        """Whether it was trained on conversations."""
        return self.chat.template is not None


def load_served(source: ModelSource, settings: ServeSettings) -> ServedModel:
    """Load a model, prepare it for generation and start its engine.

    Raises:
        AGI2Error: if it cannot be loaded, or its configuration is not one that can be served.
    """
    config = source.config
    if config.speculative != "none":
        raise AGI2Error('speculative = "ngram" decodes one sequence at a time: remove it')
    trained = load_trained(config, select_device(config.device), source.argument)
    prepare_for_generation(trained.model, config.quantize)
    trained = TrainedModel(trained.model, trained.tokenizer, config)
    runner = ModelRunner(trained.model, trained.tokenizer.vocab_size)
    cache = PrefixCache(settings.prefix_cache_bytes) if settings.prefix_cache_bytes else None
    engine = EngineThread(
        runner,
        max_rows=settings.max_rows or max_batch_rows(trained.model),
        max_waiting=settings.max_waiting,
        prefix_cache=cache,
    )
    return ServedModel(source, trained, engine, ChatContext(trained.tokenizer, config.model_seed))


class ModelRegistry:
    """Loads models when they are used, and unloads the one that was idle longest for another.

    Args:
        sources: with different names.
        settings: limits of the engines and of memory.

    Raises:
        AGI2Error: if there is none, two have the same name, or one is larger than the memory.
    """

    def __init__(self, sources: Sequence[ModelSource], settings: ServeSettings) -> None:
        self.sources = {source.name: source for source in sources}
        if not sources or len(self.sources) < len(sources):
            raise AGI2Error("name at least one model, and each only once")
        self.budget = settings.model_memory or available_memory(torch.device("cpu")) // 2
        self._settings = settings
        self._loaded: dict[str, ServedModel] = {}
        """In the order of their last use."""
        self._lock = asyncio.Lock()
        self.is_closed = False
        """Whether new requests are refused."""
        for source in sources:
            if source.weight_bytes > self.budget:
                raise AGI2Error(
                    f"{source.argument}: its weights take {human_bytes(source.weight_bytes)}, more "
                    f"than the {human_bytes(self.budget)} of all models: raise --model-memory"
                )

    @property
    def loaded(self) -> list[ServedModel]:
        """The models that are in memory."""
        return list(self._loaded.values())

    @property
    def first(self) -> str:
        """The name of the first model."""
        return next(iter(self.sources))

    def source(self, name: str) -> ModelSource:
        """Return the model of a name.

        Raises:
            RequestError: if there is none.
        """
        found = self.sources.get(name)
        if found is None:
            raise RequestError(
                f"there is no model {safe_repr(name)}: /v1/models lists them",
                status=404,
                param="model",
                code="model_not_found",
            )
        return found

    def is_loaded(self, name: str) -> bool:
        """Return whether a model is in memory."""
        return name in self._loaded

    async def load_first(self) -> None:
        """Load models in their order, as many as there is memory for."""
        free = self.budget
        for source in self.sources.values():
            free -= source.weight_bytes
            if free < 0:
                return
            async with self.use(source.name):
                pass

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[ServedModel]:
        """Context manager of a loaded model, which is not unloaded within it.

        Raises:
            RequestError: if there is none of this name, all others are in use and leave no memory,
                or the server is shutting down.
            AGI2Error: if it cannot be loaded.
        """
        source = self.source(name)
        async with self._lock:
            served = self._loaded.pop(name, None)
            if served is None:
                if self.is_closed:
                    raise closing()
                await self._make_room(source.weight_bytes)
                served = await asyncio.to_thread(load_served, source, self._settings)
                log.info("%s is loaded", name)
            self._loaded[name] = served
            served.users += 1
        try:
            yield served
        finally:
            served.users -= 1

    async def _make_room(self, size: int) -> None:
        """Unload idle models, the one used longest ago first, until `size` bytes fit."""
        while sum(each.source.weight_bytes for each in self.loaded) + size > self.budget:
            idle = next((each for each in self.loaded if not each.users), None)
            if idle is None:
                raise RequestError(
                    "other models are in use and leave no memory for this one: try again later",
                    status=503,
                    code="model_not_loaded",
                    headers={"Retry-After": "5"},
                )
            del self._loaded[idle.name]
            await asyncio.to_thread(idle.engine.close)
            log.info("%s is unloaded: another model needs its memory", idle.name)

    async def close(self, seconds: float) -> None:
        """Refuse new requests; end the engines when their sequences have finished.

        Args:
            seconds: after which unfinished sequences are cancelled.
        """
        self.is_closed = True
        engines = [each.engine for each in self.loaded]
        await asyncio.gather(*(asyncio.to_thread(each.close, seconds) for each in engines))
