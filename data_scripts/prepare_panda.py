"Look through a PANDA folder from Kaggle: everything that is wrong with it, folds, the colours of its tissue, and canvases on request."
import argparse, json
from patchgd_nb.datasets.panda import prepare_panda

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument('--data-dir', required=True, help='folder with train.csv and train_images/; it is only read')
    p.add_argument('--out', required=True, help='folder to make: train.csv with folds, problems.csv, statistics.json, canvas_<size>/')
    p.add_argument('--folds', type=int, default=5, help='parts of the split, balanced by grade and provider')
    p.add_argument('--seed', type=int, default=0, help='of the split')
    p.add_argument('--canvases', type=int, nargs='*', default=[], help='sizes of square canvases to write, 512 1024 2048 4096 say')
    p.add_argument('--quick', action='store_true', help='read headers and a coarse level only; a broken tile is then met in training')
    p.add_argument('--workers', type=int, help='processes; one per core unless given')
    print(json.dumps(prepare_panda(**vars(p.parse_args())), indent=1))
