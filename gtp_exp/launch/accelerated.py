"""Start workers through Accelerate's launcher: `accelerate launch`, but that ends as its workers end.

The launcher itself answers a worker's failure by a traceback of its own, below the line in which the worker
has said what is wrong, and by an exit status of its own.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Launch what the command line says, as `accelerate launch` does, and exit with a failed worker's status.

    Negative statuses, of workers that were killed, become 128 plus the signal, as a shell tells them.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torchrun's account of a failure: the processes, their numbers and a summary of each.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args())
    except subprocess.CalledProcessError as error:
        status = error.returncode
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
    except SignalException as error:
        status = -error.sigval
    except KeyboardInterrupt:
        status = -signal.SIGINT
    else:
        status = 0
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
