"Check photographs that lie in a folder per class, train/<class>/ and val/<class>/, as in ImageNet."
import argparse, json
from patchgd_nb.images.prepare import prepare_folder

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--data-dir', required=True, help='folder with train/ and val/, a folder per class in each')
    parser.add_argument('--out', required=True, help='folder to make: images.csv, problems.csv')
    parser.add_argument('--quick', action='store_true', help='open the images only, do not decode them')
    parser.add_argument('--workers', type=int, help='processes; one per core unless given')
    print(json.dumps(prepare_folder(**vars(parser.parse_args())), indent=1))
