"Check photographs that lie in a folder per class, train/<class>/ and val/<class>/, as in ImageNet."
import sys
from patchgd_nb.experiment.command import main

if __name__ == '__main__': sys.exit(main(['prepare', 'folder'] + sys.argv[1:]))   # `patchgd prepare folder`
