"""What runs the model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from replaykit.recipe.base import Strict

EngineName = Literal["auto", "vllm", "openai", "transformers"]


class EngineOptions(Strict):
    """What runs the model. A bare word means ``{name: ...}``."""

    name: EngineName = "auto"
    """auto: openai with a server, vllm where it and a GPU are there, else transformers."""
    workers: PositiveInt = 1
    """Processes with a whole model each, on GPUs of their own."""
    tensor_parallel: PositiveInt = 1
    """GPUs that share one model, in vllm."""
    batch_invariant: bool = False
    """Whether vllm makes the same logits to the last digit whatever else is in its batch; slower,
    and for GPUs that have the mode."""
    server: str | None = None
    """The address of an OpenAI-compatible completions server, http://host:8000/v1, for openai."""
    concurrency: PositiveInt = 64
    """Requests that are with the server at a time."""
    timeout_seconds: PositiveFloat = 600.0
    """How long one request to the server may take, in seconds."""
    retries: NonNegativeInt = 8
    """Further tries of a request to the server that failed."""

    @model_validator(mode="after")
    def _server_is_for_openai(self) -> EngineOptions:
        if self.server is not None and self.name not in ("auto", "openai"):
            raise ValueError(f"server: is for the engine openai, not {self.name}")
        if self.server is None and self.name == "openai":
            raise ValueError(
                "server: the engine openai needs the address, such as http://localhost:8000/v1 "
                "(--server)"
            )
        return self

    @model_validator(mode="after")
    def _batch_invariance_is_for_vllm(self) -> EngineOptions:
        if self.batch_invariant and self.server is not None:
            raise ValueError(
                "batch_invariant: a server has it by its own setting, VLLM_BATCH_INVARIANT=1 where "
                "it is started"
            )
        if self.batch_invariant and self.name not in ("auto", "vllm"):
            raise ValueError(f"batch_invariant: is for the engine vllm, not {self.name}")
        return self

    @property
    def here(self) -> EngineOptions:
        """The same without a server, for models that are made here, which no server has."""
        if self.server is None:
            return self
        return self.model_copy(update={"name": "auto", "server": None})


def _from_word(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    return value


EngineOrName = Annotated[
    EngineOptions, BeforeValidator(_from_word, json_schema_input_type=EngineName | EngineOptions)
]
