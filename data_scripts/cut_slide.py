"Cut regions out of any slide, in the layout of Kaggle's PANDA, graded by their share of tissue."
import argparse
from patchgd_nb.datasets.panda import cut_regions

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--slide', required=True, help='a TIFF or SVS file')
    parser.add_argument('--out', required=True, help='folder to make')
    parser.add_argument('--n', type=int, default=24, help='regions')
    parser.add_argument('--size', type=int, default=1024, help='pixels a side of a region')
    parser.add_argument('--seed', type=int, default=0, help='of the places where regions are cut')
    print(cut_regions(**vars(parser.parse_args())))
