"""What may be said of a generation, in one object that every way in builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self, TypedDict, Unpack

from phi_edge.errors import shorten
from phi_edge.generation.constraint import Constraint
from phi_edge.generation.drafting import DRAFT_TOKENS

_MAX_SHOWN_CHARACTERS = 80

# What is added to logits; far beyond what any token needs, and far from what float32 holds.
Addend = Annotated[float, Field(ge=-1e4, le=1e4)]


def _as_tuple(stop: Sequence[str] | str) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)


class SharedOptions(BaseModel):
    """Options that Python, the API and `phi-edge chat` have by the same names.

    A field that is added here is there in all three; its description is what help says of it.
    """

    # What checks values is built when the first ones come, and not by the import.
    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, defer_build=True
    )

    max_tokens: int | None = Field(default=None, ge=1, description="Most tokens of an answer.")
    temperature: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="0 takes the most likely token; above, answers vary more.",
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Keep the fewest most likely tokens whose probabilities add up to this.",
    )
    top_k: int | None = Field(
        default=None, ge=1, description="Keep so many of the most likely tokens."
    )
    # Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2024, https://arxiv.org/abs/2407.01082
    min_p: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Keep tokens with at least this part of the largest probability.",
    )
    # Keskar et al., "CTRL", 2019, https://arxiv.org/abs/1909.05858, section 4.1
    repetition_penalty: float = Field(
        default=1.0,
        ge=0.01,
        le=100,
        description="Above 1, tokens that the prompt or the answer has become less likely: their "
        "logits are divided by it where positive, and multiplied where negative.",
    )
    # The presence and frequency penalties of https://platform.openai.com/docs/api-reference/chat
    presence_penalty: Addend = Field(
        default=0.0, description="Subtracted from the logit of each token that the answer has."
    )
    frequency_penalty: Addend = Field(
        default=0.0,
        description="Subtracted from a token's logit once for each time that the answer has it.",
    )
    seed: int | None = Field(default=None, description="Makes draws repeatable.")
    draft_tokens: int = Field(
        default=DRAFT_TOKENS,
        ge=0,
        description="Most tokens that are guessed ahead where a text repeats itself; 0 for none. "
        "This changes the speed, and the answer no more than rounding does.",
    )


class GenerationOptions(SharedOptions):
    """How completions of a prompt are generated. Fields cannot be set; `replace` makes a copy.

    A completion ends with an end token, a text of `stop`, or its token `max_tokens`, or else where
    the context does.

    `repetition_penalty`, `logit_bias`, the other penalties and the constraint change the logits, in
    this order. They are divided by `temperature`. `top_k` keeps some tokens, `top_p` a part of
    these, and `min_p` a part of those: one of the rest is drawn.

    Attributes:
        logit_bias: Token id -> what is added to its logit.
        stop: Texts that end a completion and are not part of it.
        num_logprobs: Give log probabilities with each event, of the token and of so many of the
            most likely ones; none when None.
        json_schema: JSON schema by which a completion validates, unless `max_tokens` cuts it.
        constraint: The same for what no schema says; each completion gets a copy.
        n: Completions of the prompt, which share its prefill. The k-th, from 0, draws with the
            seed plus k.

    Raises:
        ValueError: A value is out of its range, or cannot be read as what it has to be.
        TypeError: There is no such option.
    """

    logit_bias: Mapping[int, Addend] | None = None
    stop: Annotated[Sequence[str] | str, AfterValidator(_as_tuple)] = ()
    num_logprobs: int | None = Field(default=None, ge=0)
    json_schema: Mapping[str, Any] | None = None
    constraint: Constraint | None = None
    n: int = Field(default=1, ge=1)

    if not TYPE_CHECKING:  # type checkers make the signature of the fields

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise _plain_error(error) from None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "" in self.stop_strings:
            raise ValueError("stop: a stop string cannot be empty")
        if self.json_schema is not None and self.constraint is not None:
            raise ValueError("json_schema and constraint exclude each other")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return _as_tuple(self.stop)

    def replace(self, **fields: Unpack[OptionFields]) -> GenerationOptions:
        """Make a copy in which some fields are others."""
        return GenerationOptions(**{**dict(self), **fields})


class OptionFields(TypedDict, total=False):
    """The fields of `GenerationOptions` once more, for type checkers: keywords of a call."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int | None
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    draft_tokens: int
    logit_bias: Mapping[int, float] | None
    stop: Sequence[str] | str
    num_logprobs: int | None
    json_schema: Mapping[str, Any] | None
    constraint: Constraint | None
    n: int


def _plain_error(error: ValidationError) -> ValueError | TypeError:
    """Say in a line what pydantic found first."""
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        return TypeError(f"there is no option {name!r}")
    message = problem["msg"].removeprefix("Value error, ")
    if not name:
        return ValueError(message)
    shown = shorten(repr(problem["input"]), _MAX_SHOWN_CHARACTERS)
    return ValueError(f"{name}: {message}, not {shown}")
