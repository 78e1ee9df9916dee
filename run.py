"""Run one experiment: compose the config, skip it if it is done, run the algorithm, write the record.

python run.py                                    a small real model, on a CPU, in minutes
python run.py model=llama2_70b prune.frac=0.5    the paper's run
python run.py -m prune.frac=0,0.25,0.5           several points of one study
python run.py --help                             the groups, and how to list their choices and options
"""

import sys

from depthcut.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
