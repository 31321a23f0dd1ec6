"Look through slides of TCGA, match them with their labels, and split them by patient."
import argparse, json
from patchgd_nb.images.prepare import prepare_tcga

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument('--slides', required=True, help='folder with the slides, in folders of their own or not')
    p.add_argument('--labels', required=True, help="table with columns id and label; an id is a slide's file name, its barcode, or its patient's")
    p.add_argument('--out', required=True, help='folder to make: images.csv with folds, problems.csv')
    p.add_argument('--folds', type=int, default=5, help='parts of the split, balanced by label, a patient in one part only')
    p.add_argument('--seed', type=int, default=0, help='of the split')
    p.add_argument('--quick', action='store_true', help='open the slides only, do not decode them')
    p.add_argument('--workers', type=int, help='processes; one per core unless given')
    print(json.dumps(prepare_tcga(**vars(p.parse_args())), indent=1))
