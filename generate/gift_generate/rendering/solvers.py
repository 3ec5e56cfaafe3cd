"""Which solver denoises: the checkpoint's own, the authors' below fifty steps, or one that was asked for; and whether a plan fits it.

A distilled model was trained for one solver, few steps and a guidance of its own. Another solver would paint noise, and say nothing.
"""

import copy
import inspect
import re
from typing import Any, NamedTuple

import diffusers

from gift_generate.model_families import FAMILIES
from gift_generate.rendering.families.base import Family
from gift_generate.rendering.model_options import ModelOptions
from gift_generate.rendering.renderer import BatchConstants
from gift_shared.errors import ConfigError, first_line, unknown_name

FEWEST_STEPS_OF_OWN_SOLVER = 50  # below, the authors' code switches to multistep DPM-Solver (METHODS 3.1)
AUTHORS_SOLVER = "DPMSolverMultistepScheduler"
CONSISTENCY_SOLVERS = ("LCMScheduler", "TCDScheduler")
MOST_DISTILLED_STEPS = 8
SEVERAL_SOLVERS = "the pipeline's own"  # of one that has a stage for each
DISTILLED_NAME = re.compile(r"turbo|lightning|hyper-?sd", re.IGNORECASE)
SETTING_UP_ERRORS = (ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError, LookupError, AssertionError)


class Distilled(NamedTuple):
    """A model that was made for few steps: how it is known, which of the known families it is like, and how much guidance it bears."""

    because: str
    model_family: str
    most_guidance: float | None  # None: any, since it is a number that the model takes in


class Solvers:
    """The schedulers that a pipeline is used with."""

    def __init__(self, family: Family, options: ModelOptions) -> None:
        self._own: Any = getattr(family.pipeline, "scheduler", None)
        self._asked = options.scheduler
        self._others: dict[str, Any] = {}
        self._family = family
        self._model = options.model
        self.distilled = distilled(family, options)
        if self._asked is not None:
            self._other(self._asked)  # a wrong name is told before work
        elif any("lcm" in f"{lora.path.parent.name} {lora.path.name}".lower() for lora in options.loras or ()) and not self._is_consistency:
            raise ConfigError(
                "--lora: a file called lcm makes a latent consistency model, which has a solver of its own: add --scheduler LCMScheduler. "
                "If it is none, name the solver that you want."
            )

    @property
    def name(self) -> str:
        """For the record of an output folder."""
        own = type(self._own).__name__ if self._own is not None else SEVERAL_SOLVERS
        return self._asked or (f"{own}, below {FEWEST_STEPS_OF_OWN_SOLVER} steps multistep DPM-Solver" if self._follows_authors else own)

    @property
    def _is_consistency(self) -> bool:
        return (self._asked or type(self._own).__name__) in CONSISTENCY_SOLVERS

    @property
    def _follows_authors(self) -> bool:
        return self._family.follows_authors and self.distilled is None and AUTHORS_SOLVER in _names(self._own.compatibles)

    def for_steps(self, denoising_steps: int) -> Any:
        """The one that takes so many steps; None where a pipeline has several and keeps them."""
        if self._asked is not None:
            return self._other(self._asked)
        if not self._follows_authors or denoising_steps >= FEWEST_STEPS_OF_OWN_SOLVER:
            return self._own
        return self._other(AUTHORS_SOLVER)

    def check(self, constants: BatchConstants) -> list[str]:
        """The solver in use, and what is odd about the plan's numbers. Raises ConfigError where they contradict the model."""
        solver = self.for_steps(constants.denoising_steps)
        steps, guidance = constants.denoising_steps, constants.guidance_scale
        if solver is not None:
            _require_steps(solver, steps)
        why = "asked for" if self._asked else "the model's own" if solver is self._own else "the authors' rule below 50 steps"
        name = f"{type(solver).__name__} ({why})" if solver is not None else SEVERAL_SOLVERS
        return [f"solver  {name}, {_steps(steps)}, {self._guidance(guidance)}", *self._oddities(steps, guidance)]

    def _guidance(self, guidance_scale: float) -> str:
        if not self._family.takes_guidance:
            return "no guidance: the model takes none"
        if self._family.is_guided(guidance_scale):
            return f"guidance {guidance_scale:g}"
        return f"guidance {guidance_scale:g}{'' if self._takes_any_guidance else ' (off)'}"

    @property
    def _takes_any_guidance(self) -> bool:
        """Whether guidance is an input of the model, so that no number turns it off."""
        return not self._family.is_guided(2.0)

    def _oddities(self, steps: int, guidance: float) -> list[str]:
        oddities = []
        if not self._family.takes_guidance and guidance > 1:
            oddities.append(f"the plan's guidance of {guidance:g} changes nothing with this model")
        if self.distilled is None:
            if steps <= MOST_DISTILLED_STEPS and guidance <= 1 and self._family.takes_guidance:
                oddities.append(f"{_steps(steps)} without guidance: that is for distilled models, and nothing tells that this is one")
            return [f"warning: {oddity}" for oddity in oddities]
        family = FAMILIES[self.distilled.model_family]
        plan = (
            f"plan with --model-family {self.distilled.model_family} ({_steps(family.denoising_steps)}, guidance {family.guidance_scale:g})"
        )
        if self.distilled.most_guidance is not None and guidance > self.distilled.most_guidance:
            contradiction = (
                f"{self._model} is distilled ({self.distilled.because}), and the plan's guidance of {guidance:g} is not for such"
            )
            if self._asked is None:
                raise ConfigError(f"{contradiction}: {plan}. If it is not distilled, name its solver with --scheduler.")
            oddities.append(contradiction)
        if steps > MOST_DISTILLED_STEPS:
            oddities.append(f"{steps} steps are many for a distilled model ({self.distilled.because}): {plan}")
        return [f"warning: {oddity}" for oddity in oddities]

    def _other(self, name: str) -> Any:
        """A scheduler set up as the checkpoint's own. Raises ConfigError if the two do not fit, or it needs a package that is not there."""
        if self._own is None:
            raise ConfigError("--scheduler: this pipeline has several of its own, which it keeps; leave it out.")
        valid = {kind.__name__: kind for kind in [type(self._own), *self._own.compatibles]}
        if AUTHORS_SOLVER in valid:  # such schedulers are not listed by those that they may take the place of
            valid |= {known: getattr(diffusers, known) for known in CONSISTENCY_SOLVERS}
        if name not in valid:
            raise ConfigError(unknown_name("scheduler for this model", name, sorted(valid)))
        if name not in self._others:
            try:
                self._others[name] = valid[name].from_config(self._own.config)
            except (ImportError, *SETTING_UP_ERRORS) as error:
                raise ConfigError(f"--scheduler {name} cannot be set up: {first_line(error)}") from error
        return self._others[name]


def distilled(family: Family, options: ModelOptions) -> Distilled | None:
    """Whether a model was made for few steps, by its solver, its inputs or its name; None if nothing tells so."""
    scheduler: Any = getattr(family.pipeline, "scheduler", None)
    solver = type(scheduler).__name__
    is_xl = type(family).__name__ == "StableDiffusionXL"
    config: Any = getattr(scheduler, "config", {})
    if getattr(getattr(family.denoiser, "config", None), "time_cond_proj_dim", None) is not None:
        return Distilled("it takes guidance in as a number", "lcm", None)
    if (options.scheduler or solver) in CONSISTENCY_SOLVERS:
        return Distilled(f"its solver is {options.scheduler or solver}", "lcm-lora", 2.0)
    if family.is_listed and not family.takes_guidance:
        return Distilled("it takes no guidance", "flux-schnell", None)
    is_euler = solver in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
    is_trailing = config.get("timestep_spacing") == "trailing" and not config.get("rescale_betas_zero_snr")
    if is_euler and is_trailing and config.get("prediction_type") == "epsilon":
        return Distilled("its solver's timestep spacing is trailing", "sdxl-turbo" if is_xl else "sd-turbo", 1.0)
    if DISTILLED_NAME.search(options.model.rpartition("/")[2]):
        like = {"StableDiffusion3": "sd-3.5-large-turbo", "StableDiffusionXL": "sdxl-turbo", "StableDiffusion": "sd-turbo"}
        if type(family).__name__ in like:
            return Distilled("its name says so", like[type(family).__name__], 1.0)
    return None


def _steps(number: int) -> str:
    return "1 step" if number == 1 else f"{number} steps"


def _names(classes: list[type]) -> set[str]:
    return {kind.__name__ for kind in classes}


def _require_steps(solver: Any, denoising_steps: int) -> None:
    """Raises ConfigError if the solver does not take so many steps; tried on a copy."""
    if getattr(solver.config, "stochastic_sampling", False):
        raise ConfigError(
            f"{type(solver).__name__} with stochastic_sampling draws noise that no seed of an image decides; name another solver."
        )
    tried = copy.deepcopy(solver)
    accepted = inspect.signature(tried.set_timesteps).parameters
    needed = {"mu": 1.0} if "mu" in accepted and getattr(solver.config, "use_dynamic_shifting", False) else {}
    try:
        tried.set_timesteps(denoising_steps, **needed)
    except SETTING_UP_ERRORS as error:
        raise ConfigError(
            f"{type(solver).__name__} does not take the {denoising_steps} steps of the plan: {first_line(error)} "
            "Make a plan with other --steps, or name another --scheduler."
        ) from error
