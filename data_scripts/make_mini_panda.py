"Make the synthetic cohort: biopsies in the layout of Kaggle's PANDA."
import argparse
from patchgd_nb.datasets.panda import make_mini_panda

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out', required=True, help='folder to make')
    parser.add_argument('--n', type=int, default=200, help='slides')
    parser.add_argument('--size', type=int, default=1024, help='pixels along the long side: 1024, 2048 or 4096')
    parser.add_argument('--seed', type=int, default=0, help='the same seed makes the same cohort')
    parser.add_argument('--workers', type=int, help='processes; one per core unless given')
    print(make_mini_panda(**vars(parser.parse_args())))
