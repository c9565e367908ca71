"""Names of runs: ``brave-otter`` by default, or what the author's template or function says."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from hashlib import sha256
from string import Formatter
from typing import Any

from ...errors import DefinitionError, InvalidNameError
from ...vocabulary import sendable

__all__ = ["check_name", "check_template", "default_run_name", "flow_name_of", "name_of_run", "render_name"]


def _words(text: str) -> list[str]:
    return text.split()


ADJECTIVES = _words(
    "agile amber ample arctic autumn bold brave bright brisk calm candid chipper civil clever cobalt copper coral cosmic "
    "crisp daring deft dewy eager earnest easy fabled fair fleet fond frank free fresh gentle gilded glad golden grand "
    "hale handy happy hardy honest humble indigo ivory jade jolly keen kind lively loyal lucid lunar mellow merry mild "
    "mint misty modest neat nimble noble olive opal patient placid plucky polar proud quick quiet rapid ready regal "
    "robust rosy royal ruby rustic sage silent silver sleek smart snowy solar solid spry steady stellar still sturdy "
    "sunny swift tidy topaz tranquil true upbeat valiant vivid warm wily winged wise witty zesty"
)
_ANIMALS = _words(
    "badger bat bear beaver bee bison boar bobcat bunting buzzard caribou carp cat chamois cheetah civet cod condor "
    "coot coral cougar crab crane cricket crow curlew deer dingo dolphin dove duck eagle egret eland elk emu falcon "
    "ferret finch fox frog gannet gazelle gecko gibbon goose grebe grouse gull hare hawk hedgehog heron hoopoe horse "
    "hyrax ibex ibis jackal jackdaw jay kestrel kite kiwi koala kudu lark lemur linnet lizard llama lobster lynx "
    "magpie marmot marten martin meerkat merlin mole moose moth mouse newt nightjar ocelot octopus okapi oriole oryx "
    "osprey otter owl panda panther parrot pelican perch petrel pigeon pika plover puffin puma quail rabbit raccoon "
    "raven robin rook salmon seal shrew shrike skylark snail sparrow squid starling stoat stork sturgeon swallow swan "
    "swift tapir teal tern thrush tiger toad trout turtle viper vole walrus warbler weasel whale wolf wombat wren yak"
)


def default_run_name(pick: Callable[[list[str]], str] = random.choice) -> str:
    """Return two words, such as ``brave-otter``: for people to tell runs apart, not unique."""
    return f"{pick(ADJECTIVES)}-{pick(_ANIMALS)}"


def name_of_run(run_id: str) -> str:
    """Return two words that follow from a run's id: asked for twice, a run has one name."""
    drawn = int.from_bytes(sha256(run_id.encode()).digest()[:8])
    return f"{ADJECTIVES[drawn % len(ADJECTIVES)]}-{_ANIMALS[drawn // len(ADJECTIVES) % len(_ANIMALS)]}"


def flow_name_of(fn: Callable[..., Any]) -> str:
    """Return the default name of a flow: the function's, with dashes; a lambda is called ``unknown-lambda``."""
    name: str = getattr(fn, "__name__", type(fn).__name__)
    return "unknown-lambda" if name == "<lambda>" else name.strip("_").replace("_", "-") or "flow"


def check_name(kind: str, name: object) -> str:
    """Return a name that may stand in events and addresses.

    Raises:
        InvalidNameError: empty, longer than 200 characters, or with one of ``/ % & > < " '`` or a line break.
        TypeError: not a text.
    """
    if not isinstance(name, str):
        call = ". Perhaps you meant to call it?" if callable(name) else ""
        raise TypeError(
            f"Expected string for {kind} parameter 'name'; got {type(name).__name__} instead{call}"
        )
    if not name.strip() or len(name) > 200:
        raise InvalidNameError(f"the name of a {kind} must be a text of 1 to 200 characters, got {name!r}")
    bad = sorted({c for c in name if c in "/%&><\"'" or ord(c) < 32 or 0xD800 <= ord(c) <= 0xDFFF})
    if bad:
        raise InvalidNameError(
            f"the name {name!r} of a {kind} contains an invalid character: {' '.join(repr(c) for c in bad)}",
            hint="leave out / % & > < quotes and control characters",
        )
    return name


def check_template(argument: str, template: object) -> None:
    """Raise if a run name is neither a template nor a function.

    Raises:
        TypeError: neither a string nor callable.
        DefinitionError: a string that is no format template.
    """
    if template is None or callable(template):
        return
    if not isinstance(template, str):
        raise TypeError(
            f"Expected string or callable for {argument!r}; got {type(template).__name__} instead."
        )
    try:
        list(Formatter().parse(template))
    except ValueError as exc:
        raise DefinitionError(f"{argument} {template!r} is not a template: {exc}") from exc


def render_name(argument: str, template: str | Callable[..., str], parameters: Mapping[str, Any]) -> str:
    """Return the name a run gets: ``template`` filled with the parameters, or what the function returns.

    A function may take nothing, or one argument ``parameters``.

    Raises:
        DefinitionError: the template names something that is no parameter.
        TypeError: it is no template and no function, or the function gave no text.
    """
    if isinstance(template, str):
        try:
            return sendable(template.format(**parameters))
        except (KeyError, IndexError, AttributeError, ValueError) as exc:
            raise DefinitionError(
                f"{argument} {template!r} cannot be filled: {exc}",
                hint=f"it may use the parameters {', '.join(parameters) or '(there are none)'}",
            ) from exc
    check_template(argument, template)
    import inspect

    takes = inspect.signature(template).parameters
    name = template(parameters=dict(parameters)) if "parameters" in takes else template()
    if not isinstance(name, str):
        raise TypeError(
            f"Callable {template!r} for {argument!r} returned type {type(name).__name__} but a string is required."
        )
    return sendable(name)
