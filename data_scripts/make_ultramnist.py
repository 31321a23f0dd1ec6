"Make an UltraMNIST data set: a few digits on a large black canvas, labelled by their sum."
import sys
from patchgd_nb.experiment.command import main

if __name__ == '__main__': sys.exit(main(['make', 'ultramnist'] + sys.argv[1:]))   # `patchgd make ultramnist`
