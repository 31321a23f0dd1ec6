"Check a PANDA folder from Kaggle: everything that is wrong with it, folds, colours of the tissue, canvases on request."
import sys
from patchgd_nb.experiment.command import main

if __name__ == '__main__': sys.exit(main(['prepare', 'panda'] + sys.argv[1:]))   # `patchgd prepare panda`
