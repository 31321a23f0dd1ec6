"Check a PANDA folder from Kaggle: everything that is wrong with it, folds, colours of the tissue, canvases on request."
import argparse, json
from patchgd_nb.datasets.panda import prepare_panda

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--data-dir', required=True, help='folder with train.csv and train_images/; it is only read')
    parser.add_argument('--out', required=True,
                        help='folder to make: train.csv with folds, problems.csv, statistics.json, canvas_<size>/')
    parser.add_argument('--folds', type=int, default=5, help='parts of the split, balanced by grade and provider')
    parser.add_argument('--seed', type=int, default=0, help='of the split')
    parser.add_argument('--canvases', type=int, nargs='*', default=[],
                        help='sizes of square canvases to write, 512 1024 2048 4096 say')
    parser.add_argument('--quick', action='store_true',
                        help='read headers and a coarse level only; a broken tile is then met in training')
    parser.add_argument('--workers', type=int, help='processes; one per core unless given')
    print(json.dumps(prepare_panda(**vars(parser.parse_args())), indent=1))
