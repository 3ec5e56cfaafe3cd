"""What torchrun, accelerate launch and srun tell their processes, in variables of the environment."""

from collections.abc import Mapping

from gift_shared.errors import ConfigError


def number_from(environment: Mapping[str, str], *names: str, default: int) -> int:
    """The first of these variables that is set and not empty; `default` if none is. Raises ConfigError if it is no number."""
    for name in names:
        text = environment.get(name, "")
        if not text:
            continue
        try:
            return int(text)
        except ValueError as error:
            raise ConfigError(
                f"The variable {name} of a launcher must be a number, found {text!r}. Unset it to start one process without a launcher."
            ) from error
    return default


def local_rank_from(environment: Mapping[str, str], default: int) -> int:
    """A process's number among those of its machine: as torchrun and accelerate tell it, or srun."""
    return number_from(environment, "LOCAL_RANK", "SLURM_LOCALID", default=default)
