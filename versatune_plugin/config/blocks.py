"""Pydantic blocks that report every mistake at once; an unknown key comes with the nearest valid name."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from versatune_plugin.domains import nearest, quotes_hint

Problem = tuple[tuple[str, ...], str]
"""Where (path of keys below the block) and what is wrong."""


_SECRET = re.compile(r"api_?key|secret|password|passwd|bearer|credential|access_?token|hf_?token", re.IGNORECASE)


def _error(where: tuple, message: str, given: Any) -> InitErrorDetails:
    kind = PydanticCustomError("versatune", "{message}", {"message": message})
    return InitErrorDetails(type=kind, loc=where, input=_without_secrets(given, where[-1] if where else ""))


def _message(error: ErrorDetails) -> str:
    """What is wrong, and what to do where YAML has read a name as something else."""
    return error["msg"] + (quotes_hint(error["input"]) if error["type"] == "string_type" else "")


def _without_secrets(given: Any, key: Any = "") -> Any:
    """What was given, as it may be shown in an error: a key put into the YAML by mistake stays out of the log."""
    if isinstance(given, Mapping):
        return {name: _without_secrets(value, name) for name, value in given.items()}
    return "(not shown)" if _SECRET.search(str(key)) else given


def _without_tag(where: tuple) -> tuple:
    """Without what pydantic adds to the keys of the YAML."""
    where = where[:-1] if where[-1:] == ("[key]",) else where
    return where[:1] + where[2:] if where[1:2] in (("numbers",), ("names",), ("name",)) else where


class Block(BaseModel):
    """A block that reports unknown keys, wrong values and contradictions together."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _report_all_mistakes(cls, data, handler):
        if not isinstance(data, Mapping):
            return handler(data)
        unknown = [key for key in data if key not in cls.model_fields]
        errors = [_error((key,), f"unknown key{nearest(str(key), cls.model_fields)}", data[key]) for key in unknown]
        empty = {key for key in data if data[key] is None and key in cls.model_fields and cls._is_block(key)}
        valid = {key: value for key, value in data.items() if key not in empty | set(unknown)}
        wrong: set = set()
        try:
            block = handler(valid)
        except ValidationError as error:
            errors += [_error(_without_tag(e["loc"]), _message(e), e["input"]) for e in error.errors(include_url=False)]
            wrong = {e["loc"][0] for e in error.errors() if e["loc"]}
            block = cls._of_valid_keys(handler, {key: value for key, value in valid.items() if key not in wrong})
        if block is not None:
            contradictions = [problem for problem in block.problems() if problem[0][0] not in wrong]
            errors += [_error(where, message, data.get(where[0])) for where, message in contradictions]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return block

    @classmethod
    def _is_block(cls, key: str) -> bool:
        """Whether the key holds a block that is there by default; left empty in a YAML, it is the default."""
        factory = cls.model_fields[key].default_factory
        return isinstance(factory, type) and issubclass(factory, Block)

    @staticmethod
    def _of_valid_keys(handler, data):
        """What the keys with valid values say, to look for contradictions between them; None where one is needed."""
        try:
            return handler(data)
        except ValidationError:
            return None

    def problems(self) -> list[Problem]:
        """Contradictions between keys that are valid one by one."""
        return []

    def changed(self) -> list[str]:
        """Keys with another value than their default; Axolotl hands a block back with all keys set."""
        return [key for key, field in type(self).model_fields.items() if getattr(self, key) != field.get_default()]


def readable(error: ValidationError, prefix: str = "versatune") -> list[str]:
    """One line per mistake: the key, what is wrong, what was given."""
    return [
        ".".join([prefix, *map(str, e["loc"])]) + f": {e['msg']} (given: {e['input']!r})"
        for e in error.errors(include_url=False)
    ]
