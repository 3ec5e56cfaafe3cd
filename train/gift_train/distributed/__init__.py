"""One training step on several processes: who takes which rows, and how all of them come by the same numbers.

A *rank* is one process of a run. Every rank holds the whole student and encodes its share of a batch; features are gathered, so every
rank computes the loss of the whole batch. Going backward, a rank follows its own rows alone and needs nobody: the sum of all ranks'
gradients is the gradient that one process would have. That holds where parameters reach the loss through gathered rows only.

One process is the rule: then everything here hands back what it is given, and torch.distributed is not touched.
"""

from gift_train.distributed.launch import init_distributed as init_distributed
from gift_train.distributed.launch import is_main_process as is_main_process
from gift_train.distributed.launch import require_one_process as require_one_process
from gift_train.distributed.ranks import CPU as CPU
from gift_train.distributed.ranks import MAIN as MAIN
from gift_train.distributed.ranks import SINGLE as SINGLE
from gift_train.distributed.ranks import STEPS_BETWEEN_SYNCS as STEPS_BETWEEN_SYNCS
from gift_train.distributed.ranks import Ranks as Ranks
