"Make the synthetic cohort: biopsies in the layout of Kaggle's PANDA."
import sys
from patchgd_nb.experiment.command import main

if __name__ == '__main__': sys.exit(main(['make', 'panda'] + sys.argv[1:]))   # `patchgd make panda`
