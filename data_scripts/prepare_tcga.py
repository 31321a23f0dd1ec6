"Check slides of TCGA, match them with their labels, and split them by patient."
import argparse, json
from patchgd_nb.images.prepare import prepare_tcga

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--slides', required=True, help='folder with the slides, in folders of their own or not')
    parser.add_argument('--labels', required=True,
                        help="table with columns id and label; an id is a slide's file name, barcode or patient")
    parser.add_argument('--out', required=True, help='folder to make: images.csv with folds, problems.csv')
    parser.add_argument('--folds', type=int, default=5,
                        help='parts of the split, balanced by label, a patient in one part only')
    parser.add_argument('--seed', type=int, default=0, help='of the split')
    parser.add_argument('--quick', action='store_true', help='open the slides only, do not decode them')
    parser.add_argument('--workers', type=int, help='processes; one per core unless given')
    print(json.dumps(prepare_tcga(**vars(parser.parse_args())), indent=1))
