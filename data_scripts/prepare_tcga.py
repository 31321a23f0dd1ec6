"Check slides of TCGA, match them with their labels, and split them by patient."
import sys
from patchgd_nb.experiment.command import main

if __name__ == '__main__': sys.exit(main(['prepare', 'tcga'] + sys.argv[1:]))   # `patchgd prepare tcga`
