"""What a table of a recipe is, and the kinds of numbers in it."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _from_home(path: str) -> str:
    """The path with the user's home folder in place of a leading `~`."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise PydanticCustomError("home", "a path in a home folder that is known") from None


FilePath = Annotated[str, AfterValidator(_from_home)]
NonEmptyPath = Annotated[str, Field(min_length=1), AfterValidator(_from_home)]
"""Text that names a file or a folder, or may name one."""

PositiveShare = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


def listed(value: object) -> object:
    """A list that was given as words with commas between them; all else as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Section(BaseModel):
    """A table of a recipe: unknown keys and values of another type are errors, nothing is converted."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, validate_default=True
    )
