"""Arguments for a judge's chat template, such as the one that turns a model's thinking off."""

import json
from collections.abc import Mapping

# The dictionaries that JSON can hold, as the command line and config.json can tell them.
TemplateKwargs = dict[str, bool | int | float | str | list | dict | None]

_NO_THOUGHT = {"enable_thinking": False}  # Qwen's, and of most models that can do without


def check_template_kwargs(kwargs: TemplateKwargs) -> None:
    """Raises ValueError for what JSON does not hold as it is."""
    try:
        kept = json.loads(json.dumps(kwargs, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"chat_template_kwargs must be a dict that JSON can hold ({error}), got {kwargs!r}") from error
    if not isinstance(kwargs, dict) or kept != kwargs:  # keys that are numbers, tuples
        raise ValueError(f"chat_template_kwargs must be a dict of texts to what JSON can hold, got {kwargs!r}")


def or_no_thought(kwargs: Mapping[str, object]) -> str:
    """The end of an advice: that a model need not think. Empty where its template has been told so."""
    if any("think" in name and not value for name, value in kwargs.items()):
        return ""
    return f", or turn the model's thinking off (often by chat_template_kwargs = {_NO_THOUGHT})"
