"Cut regions out of any slide and write them as a folder in the layout of Kaggle's PANDA, graded by their share of tissue."
import argparse
from patchgd_nb.datasets.panda import cut_regions

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument('--slide', required=True, help='a TIFF or SVS file')
    p.add_argument('--out', required=True, help='folder to make')
    p.add_argument('--n', type=int, default=24, help='regions')
    p.add_argument('--size', type=int, default=1024, help='pixels a side of a region')
    p.add_argument('--seed', type=int, default=0, help='of the places where regions are cut')
    print(cut_regions(**vars(p.parse_args())))
