"""What may be said of a generation, in one object that every way in builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import TypedDict

from phi_edge.constraint import Constraint
from phi_edge.drafting import DRAFT_TOKENS

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_MAX_SHOWN_CHARACTERS = 80

Finite = Annotated[float, Field(allow_inf_nan=False)]


class SharedOptions(BaseModel):
    """Options that Python, the API and `phi-edge chat` have by the same names.

    A field that is added here is there in all three; its description is what help says of it.
    """

    # What checks values is built when the first ones come, and not by the import.
    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, defer_build=True
    )

    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens of a completion; unset, as many as the context holds.",
    )
    temperature: Finite = Field(
        default=0.0, ge=0, description="0 takes the most likely token; above, answers vary more."
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
    repetition_penalty: Finite = Field(
        default=1.0,
        gt=0,
        description="Logits of tokens that the prompt or the completion has are divided by it "
        "where they are positive, and multiplied where not; 1 changes nothing.",
    )
    # The next two are OpenAI's: https://platform.openai.com/docs/api-reference/chat/create
    presence_penalty: Finite = Field(
        default=0.0, description="Taken once from the logit of each token that the completion has."
    )
    frequency_penalty: Finite = Field(
        default=0.0, description="Taken from it as often as the completion has the token."
    )
    seed: int | None = Field(
        default=None, description="Makes draws repeatable; completion k draws with the seed plus k."
    )
    draft_tokens: int = Field(
        default=DRAFT_TOKENS,
        ge=0,
        description="Most tokens that are guessed ahead where a text repeats itself; 0 for none. "
        "It changes the speed, and the answer no more than rounding does.",
    )


class GenerationOptions(SharedOptions):
    """How completions of a prompt are generated. It cannot be changed; `replace` makes another.

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
        n: Completions of the prompt, which share its prefill.

    Raises:
        ValueError: A value is out of its range or of another type.
        TypeError: There is no such option.
    """

    logit_bias: Mapping[int, Finite] = {}
    stop: Sequence[str] | str = ()
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
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def replace(self, **fields: Unpack[OptionFields]) -> GenerationOptions:
        """Make a copy in which some fields are others."""
        return GenerationOptions(**{**dict(self), **fields})


class OptionFields(TypedDict, total=False):
    """The fields of `GenerationOptions`, as keywords of a call."""

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
    logit_bias: Mapping[int, float]
    stop: Sequence[str] | str
    num_logprobs: int | None
    json_schema: Mapping[str, Any] | None
    constraint: Constraint | None
    n: int


def _plain_error(error: ValidationError) -> ValueError | TypeError:
    """What pydantic found first, in a line."""
    problem = error.errors(include_url=False)[0]
    name = ".".join(map(str, problem["loc"][:1]))
    if problem["type"] == "extra_forbidden":
        return TypeError(f"there is no option {name!r}")
    message = problem["msg"].removeprefix("Value error, ")
    if not name:
        return ValueError(message)
    shown = repr(problem["input"])
    if len(shown) > _MAX_SHOWN_CHARACTERS:
        shown = f"{shown[:_MAX_SHOWN_CHARACTERS]}..."
    return ValueError(f"{name}: {message}, not {shown}")
