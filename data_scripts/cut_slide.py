"Cut regions out of any slide, in the layout of Kaggle's PANDA, graded by their share of tissue."
import sys
from patchgd_nb.experiment.command import main

if __name__ == '__main__': sys.exit(main(['cut'] + sys.argv[1:]))   # `patchgd cut`
