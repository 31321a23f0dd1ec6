"Make an UltraMNIST data set: a few digits on a large black canvas, labelled by their sum."
import argparse
from patchgd_nb.datasets.ultramnist import make_ultramnist

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out', required=True, help='folder to make')
    parser.add_argument('--train', type=int, default=1000, help='images to train with')
    parser.add_argument('--valid', type=int, default=200, help='images to validate with, of other digits')
    parser.add_argument('--image-size', type=int, default=4000, help='pixels a side; 512 in the small setting')
    parser.add_argument('--min-sum', type=int, default=0, help='smallest sum')
    parser.add_argument('--max-sum', type=int, default=27, help='largest sum; 9 in the small setting')
    parser.add_argument('--mnist',
                        help="folder of MNIST's IDX files; downloaded unless given, or scikit-learn's digits")
    parser.add_argument('--seed', type=int, default=0, help='the same seed makes the same images')
    parser.add_argument('--workers', type=int, help='processes; one per core unless given')
    parser.add_argument('--format', choices=('png', 'jpeg'), default='png', help='of the images')
    print(make_ultramnist(**vars(parser.parse_args())))
