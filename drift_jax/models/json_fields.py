"""Values of a JSON object from anywhere: checked, or refused by the name of their field."""

from typing import Any

Fields = dict[str, Any]


def whole(fields: Fields, name: str, *, most: int = 2**31) -> int:
    """A whole number from 1 to `most`.

    Raises:
      ValueError: naming the field.
    """
    value: Any = fields.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} is {value!r}; expected a whole number from 1 to {most}")
    return int(value)


def positive(fields: Fields, name: str) -> float:
    """A finite number above 0.

    Raises:
      ValueError: naming the field.
    """
    value: Any = fields.get(name)
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value!r}; expected a number above 0")
    return float(value)


def not_implemented(name: str, value: Any, *expected: Any) -> ValueError:
    """The refusal of a value that would change the model's numbers; to be raised."""
    wanted = " or ".join(map(repr, expected))
    return ValueError(f"{name} = {value!r} is not implemented; expected {wanted}")
