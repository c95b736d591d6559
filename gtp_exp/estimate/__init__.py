"""What a command would compute, before anything starts: jobs, distinct stages, passes, tokens, disk, time.

    gtp-exp -m experiment=NAME --estimate

jobs.py composes the jobs on Hydra's side. The rest runs in a process of its own, as a worker does, because
the classes that the YAML names import torch: facts.py builds every job and reads the data that is on this
machine, plan.py lists the distinct stages, rates.py asks finished runs how long such stages took, table.py
writes it down. Nothing is downloaded, nothing is written, nothing is started.
"""
