"""gift-train score: what `gift-generate score` hands on. Imports nothing heavy until the command runs."""

import typer

from gift_shared.options import takes_options
from gift_shared.score_options import ScoreOptions


@takes_options
def score(options: ScoreOptions) -> None:
    """Note how well a CLIP finds that each picture of an output folder shows its caption; a recipe's [replay] may select by it.

    OUT/scores/NAME.parquet gets the cosine of picture and own caption, and that caption's rank among all of the plan. Any number of workers
    may score one folder; stopped at any moment, the same command goes on.
    """
    from gift_shared.preemption import PreemptionNotice

    with PreemptionNotice() as notice:  # before the imports, which take seconds: a signal that comes meanwhile is not lost
        from gift_train.scoring.score import score as score_folder
        from gift_train.training.faults import machine_faults

        with machine_faults():
            score_folder(options, notice, typer.echo)
